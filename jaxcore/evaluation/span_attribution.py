"""How good source spans are that are attributed to parts of an output: against people's spans, and by entailment.

Source: LAQuer (Hirsch et al. 2025), laquer.md. Neither entailment nor length is to be read alone: long attributions are
entailing, short ones are short.
"""

import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxcore.attribution.lexical_alignment import is_content, strip_ending, words_with_offsets
from jaxcore.attribution.text_spans import Span, merge_spans, num_characters, shared_characters
from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval

Entail = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
"""Whether each premise entails the hypothesis beside it."""


class SpanAgreement(NamedTuple):
    """Agreement of predicted with gold spans, counted in characters."""

    precision: float
    recall: float
    f1: float


def span_agreement(predicted: Collection[Span], gold: Collection[Span]) -> SpanAgreement:
    """``P = |p & g| / |p|,  R = |p & g| / |g|,  F1 = 2 P R / (P + R)`` over characters; all 0 without a predicted span.

    Raises:
        ValueError: no gold span.
    """
    wanted = num_characters(gold)
    if not wanted:
        raise ValueError("no gold span to compare with: leave the query out, or count it as non-attributed")
    shared, given = shared_characters(predicted, gold), num_characters(predicted)
    precision, recall = (shared / given if given else 0.0), shared / wanted
    return SpanAgreement(precision, recall, 2 * shared / (given + wanted))


def token_agreement(predicted: Collection[Span], gold: Collection[Span], documents: Mapping[str, str]) -> SpanAgreement:
    """`span_agreement` in words: a word is in a span that has any of its characters."""
    wanted, given = (_words_of(spans, documents) for spans in (gold, predicted))
    if not wanted:
        raise ValueError("no gold word to compare with")
    shared = len(wanted & given)
    return SpanAgreement(
        shared / len(given) if given else 0.0, shared / len(wanted), 2 * shared / (len(given) + len(wanted))
    )


def _words_of(spans: Iterable[Span], documents: Mapping[str, str]) -> set[tuple[str, int]]:
    found = set()
    for document, start, end in merge_spans(spans):
        text = documents[document]
        begin = text.rfind(" ", 0, start) + 1  # a word cut by the span counts
        stop = text.find(" ", end)
        for _, first, last in words_with_offsets(text[begin : len(text) if stop < 0 else stop]):
            if begin + first < end and begin + last > start:
                found.add((document, begin + first))
    return found


def content_coverage(query: str, spans: Iterable[Span], documents: Mapping[str, str]) -> float:
    """Share of a query's content words of which the attributed text has a form; 1 for a query without any."""
    wanted = {strip_ending(word) for word, *_ in words_with_offsets(query) if is_content(word)}
    there = {
        strip_ending(word)
        for document, start, end in spans
        for word, *_ in words_with_offsets(documents[document][start:end])
    }
    return len(wanted & there) / len(wanted) if wanted else 1.0


def attribution_premise(spans: Iterable[Span], documents: Mapping[str, str]) -> str:
    """The attributed text as a premise.

    Spans of a document in their order, joined by spaces, white space collapsed; a span that does not end in punctuation
    gets a period; documents, in the order of `documents`, are joined by a line break and a space.
    """
    parts = []
    merged = merge_spans(spans)
    for name, text in documents.items():
        pieces = [" ".join(text[span.start : span.end].split()) for span in merged if span.document == name]
        pieces = [piece if piece[-1] in string.punctuation else f"{piece}." for piece in pieces if piece]
        if pieces:
            parts.append(" ".join(pieces))
    return "\n ".join(parts)


class AutoAis(NamedTuple):
    """Entailment of queries by what is attributed to them."""

    score: float
    """Share of all queries that are entailed."""
    entailed: tuple[bool, ...]
    non_attributed: float
    """Share of queries without any attributed text: they count as not entailed."""


def autoais(premises: Sequence[str], hypotheses: Sequence[str], entail: Entail) -> AutoAis:
    """Share of hypotheses that their premises entail; an empty premise entails nothing and is not asked about.

    Raises:
        ValueError: no queries, or lists of different length.
    """
    if not premises or len(premises) != len(hypotheses):
        raise ValueError(
            f"expected as many premises as hypotheses, at least one: got {len(premises)}, {len(hypotheses)}"
        )
    asked = [number for number, premise in enumerate(premises) if premise]
    entailed = np.zeros(len(premises), bool)
    if asked:
        entailed[asked] = entail([premises[number] for number in asked], [hypotheses[number] for number in asked])
    return AutoAis(float(entailed.mean()), tuple(entailed.tolist()), 1 - len(asked) / len(premises))


def entailment_input(premise: str, hypothesis: str) -> str:
    """The one-line input of TrueTeacher, ``premise: ... hypothesis: ...``."""
    return f"premise: {' '.join(premise.split())} hypothesis: {' '.join(hypothesis.split())}"


def paired_gain(
    first: Float[np.ndarray, " queries"],
    second: Float[np.ndarray, " queries"],
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    rng: np.random.Generator | int = 0,
) -> ConfidenceInterval:
    """Bootstrap interval of ``mean(first - second)`` over queries, resampling whole groups (topics)."""
    gains = np.asarray(first, float) - np.asarray(second, float)
    return bootstrap_interval(gains, groups=np.asarray(groups), resamples=resamples, rng=rng)
