"""Highlights of an output as queries for its sources: made by people, or simulated from the facts a sentence states.

Source: LAQuer (Hirsch et al. 2025), laquer.md.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxcore.attribution.answer_attempts import AnswerPrompts
from jaxcore.attribution.lexical_alignment import lexical_align, strip_ending
from jaxcore.attribution.text_spans import Offsets, Span, merge_spans, overlap, text_of
from jaxcore.data.grounded_texts import GroundedText


@dataclasses.dataclass(frozen=True)
class CoarseRow:
    """One line of the attribution that a generator gave: a part of the output, and a part of the sources."""

    output: Offsets | None
    """None: of the whole output."""
    source: Span | None
    """None: this part of the output has no source."""


@dataclasses.dataclass(frozen=True)
class HighlightQuery:
    """A highlighted part of an output, to be attributed to parts of its sources."""

    text: GroundedText
    highlight: tuple[Offsets, ...]
    """Of the output; may be discontinuous, but lies in one sentence."""
    sentence: Offsets
    """Of the output, around the highlight."""
    candidates: tuple[Span, ...]
    """Where the sources may be searched: what the coarse attribution allows."""
    gold: tuple[Span, ...] = ()
    """What people aligned with the highlight, where known."""

    def words(self) -> str:
        """The highlighted text."""
        return text_of(self.highlight, self.text.output)


def transfer_candidates(rows: Iterable[CoarseRow], spans: Sequence[Offsets], *, aligned: bool = True) -> list[Span]:
    """The sources of those parts of the output that the spans touch; of all parts where the attribution is not aligned.

    The test is symmetric: a highlight within a sentence gets that sentence's sources.
    """
    found = [
        row.source
        for row in rows
        if row.source is not None
        and (not aligned or row.output is None or any(overlap(row.output, span) for span in spans))
    ]
    return merge_pieces(found)


def merge_pieces(spans: Iterable[Span]) -> list[Span]:
    """Each span once, in order; spans that overlap are joined, spans that only touch stay apart (sentences)."""
    kept: list[Span] = []
    for span in sorted(set(spans)):
        if kept and kept[-1].document == span.document and span.start < kept[-1].end:
            kept[-1] = merge_spans([kept[-1], span])[0]
        else:
            kept.append(span)
    return kept


def simulated_highlight(
    fact: str,
    sentence: Offsets,
    output: str,
    *,
    normalise: Callable[[str], str] = strip_ending,
    max_missing: int = 1,
) -> list[Offsets] | None:
    """The words of an output's sentence that say a fact; None if more than `max_missing` content words are not there.

    Args:
        fact: a statement that the sentence makes, in its own words as far as possible.
        sentence: its place in the output.
    """
    alignment = lexical_align(fact, output[slice(*sentence)], normalise=normalise)
    if len(alignment.missing_content()) > max_missing:
        return None
    return [(sentence[0] + start, sentence[0] + end) for start, end in alignment.spans()] or None


_FACTS_INSTRUCTION = (
    "Break the sentence down into independent facts, one a line, each beginning with '- '. Use the sentence's own "
    "words."
)
_FACTS_EXAMPLES = (
    (
        "The ferry, which had left Oslo at noon, sank off Skagen with 40 people on board.",
        ("The ferry had left Oslo at noon.", "The ferry sank off Skagen.", "40 people were on board."),
    ),
    (
        "Her first novel sold badly but won the Booker Prize in 1984.",
        ("Her first novel sold badly.", "Her first novel won the Booker Prize.", "She won the Booker Prize in 1984."),
    ),
)


def facts_prompt(sentence: str) -> str:
    """Asks a language model for the facts of a sentence."""
    parts = [_FACTS_INSTRUCTION]
    for example, facts in _FACTS_EXAMPLES:
        parts.append("\n".join([f"Sentence: {example}", *(f"- {fact}" for fact in facts)]))
    parts.append(f"Sentence: {sentence}\n")
    return "\n\n".join(parts)


def parse_facts(answer: str) -> list[str]:
    """The facts of an answer: its lines, without the leading dash."""
    lines = (line.strip().removeprefix("-").strip() for line in answer.splitlines())
    return [line for line in lines if line]


def simulated_highlights(
    texts: Sequence[GroundedText], generate: AnswerPrompts, *, most: int = 10, seed: int = 42, max_missing: int = 1
) -> list[list[tuple[Offsets, list[Offsets]]]]:
    """Highlights of each output, each with its sentence: those of the facts that a language model finds in it.

    At most `most` of an output are drawn, by a generator of the seed and the text's name, so that no order of texts
    matters. The sentences of all texts are asked about in one call of `generate`.
    """
    places = [(number, sentence) for number, text in enumerate(texts) for sentence in text.output_sentences]
    answers = generate([facts_prompt(texts[number].output[slice(*sentence)]) for number, sentence in places], seed)
    found: list[list[tuple[Offsets, list[Offsets]]]] = [[] for _ in texts]
    for (number, sentence), answer in zip(places, answers, strict=True):
        for fact in parse_facts(answer):
            highlight = simulated_highlight(fact, sentence, texts[number].output, max_missing=max_missing)
            if highlight:
                found[number].append((sentence, highlight))
    return [_drawn(rows, most, [seed, zlib.crc32(text.name.encode())]) for rows, text in zip(found, texts, strict=True)]


def _drawn(rows: list[Any], most: int, seed: list[int]) -> list[Any]:
    """At most so many of the rows, in their order."""
    if len(rows) <= most:
        return rows
    return [rows[index] for index in sorted(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
