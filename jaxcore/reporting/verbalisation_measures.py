"""What verbalised saliency maps rest on: tokens they show or cite, percentages they state, strings they quote."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxcore.reporting.saliency_search import Snippet
from jaxcore.reporting.verbalisation import (
    COVERAGE_TEMPLATES,
    Citations,
    check_citations,
    cited_strings,
    cited_tokens,
    glue_tokens,
    verbalise,
)


def snippet_mask(found: Iterable[Sequence[Snippet]], shape: tuple[int, int]) -> Bool[np.ndarray, "n length"]:
    """Which tokens the snippets of each text hold."""
    shown = np.zeros(shape, bool)
    for row, snippets in zip(shown, found, strict=True):
        row[[index for snippet in snippets for index in snippet.indices]] = True
    return shown


def adjacent_runs(shown: Bool[np.ndarray, " length"]) -> list[Snippet]:
    """The runs of adjacent tokens among those shown, from left to right; their value and coverage are left at 0."""
    places = np.flatnonzero(shown)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [Snippet(tuple(part.tolist()), 0.0, 0.0) for part in parts if len(part)]


def cited_mask(
    texts: Sequence[str], tokens: Sequence[Sequence[str]], mask: Bool[np.ndarray, "n length"]
) -> Bool[np.ndarray, "n length"]:
    """`cited_tokens` of each verbalisation, within `mask`.

    Raises:
        ValueError: numbers of texts that differ.
    """
    if not len(texts) == len(tokens) == len(mask):
        raise ValueError(f"give one of each per text: got {len(texts)} texts, {len(tokens)} tokens, {len(mask)} masks")
    cited = np.zeros_like(mask)
    for row, text, words in zip(cited, texts, tokens, strict=True):
        row[: len(words)] = cited_tokens(text, words)
    return cited & mask


def all_citations(texts: Iterable[str], sources: Iterable[str]) -> Citations:
    """What texts cite, taken together: `check_citations` of each in its own source."""
    found = [check_citations(text, source) for text, source in zip(texts, sources, strict=True)]
    return Citations(sum(one.total for one in found), tuple(string for one in found for string in one.absent))


def exact_percentages(
    runs: Sequence[Snippet], tokens: Sequence[str], scores: Float[np.ndarray, " length"]
) -> list[bool]:
    """Whether each percentage in a text's sentences is the coverage of the words that stand before it.

    The words are read back from the sentence (`COVERAGE_TEMPLATES`) and located in the text by the run's place; their
    share of the positive scores is summed anew.
    """
    sentence = verbalise(runs, tokens, templates=COVERAGE_TEMPLATES)
    stated = [int(value) for value in re.findall(r"\((\d+) %", re.sub(r"»[^«]*«", "", sentence))]
    named, mass = cited_strings(sentence), float(np.sum(scores[scores > 0], dtype=np.float64))
    if not len(stated) == len(named) == len(runs):
        return [False] * len(runs)
    right = []
    for run, percentage, words in zip(runs, stated, named, strict=True):
        share = max(float(np.sum(scores[list(run.indices)], dtype=np.float64)) / mass, 0.0)
        here = glue_tokens(tokens, run.indices).replace("»", "›").replace("«", "‹")
        right.append(words == " ".join(here.split()) and f"{percentage}" == f"{100 * share:.0f}")
    return right
