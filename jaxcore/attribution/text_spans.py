"""Spans of characters: of one text, as (start, end), and of a collection of documents, as `Span`.

A span holds the characters start, start + 1, ..., end - 1, as slices of Python do; spans that only touch share nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from jaxcore.attribution.token_aggregation import NO_SEGMENT, span_ids_from_offsets

Offsets: TypeAlias = tuple[int, int]


class Span(NamedTuple):
    """The characters [start, end) of a document."""

    document: str
    start: int
    end: int


def merge_offsets(spans: Iterable[Offsets], *, gap: int = 0) -> list[Offsets]:
    """Sorted and disjoint: spans with at most `gap` characters between them become one.

    Raises:
        ValueError: a span that is empty or starts before the text.
    """
    merged: list[Offsets] = []
    for start, end in sorted(set(spans)):
        if not 0 <= start < end:
            raise ValueError(f"spans must be [start, end) with 0 <= start < end: got [{start}, {end})")
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def merge_spans(spans: Iterable[Span], *, gap: int = 0) -> list[Span]:
    """`merge_offsets` within each document; documents in the order of their names."""
    by_document: dict[str, list[Offsets]] = {}
    for document, start, end in spans:
        by_document.setdefault(document, []).append((start, end))
    return [
        Span(document, *offsets)
        for document in sorted(by_document)
        for offsets in merge_offsets(by_document[document], gap=gap)
    ]


def overlap(first: Offsets, second: Offsets) -> bool:
    """Whether two spans share a character; symmetric, so a span inside the other overlaps it, too."""
    return max(first[0], second[0]) < min(first[1], second[1])


def num_characters(spans: Iterable[Span]) -> int:
    """Characters in any of the spans, each counted once."""
    return sum(end - start for _, start, end in merge_spans(spans))


def shared_characters(first: Iterable[Span], second: Iterable[Span]) -> int:
    """Characters that are in a span of `first` and in a span of `second`."""
    ours, theirs = merge_spans(first), merge_spans(second)
    return sum(
        max(0, min(a.end, b.end) - max(a.start, b.start)) for a in ours for b in theirs if a.document == b.document
    )


def map_local_to_document(local: Offsets, pieces: Sequence[Offsets], *, joint: int = 1) -> list[Offsets]:
    """Where a span of a text that was joined from pieces of a document lies in the document.

    The text is the pieces in order with `joint` characters between two of them. A span over a joint becomes one span
    per piece; the characters of joints belong to no piece.

    Args:
        local: in the joined text.
        pieces: of the document.

    Raises:
        ValueError: a span that reaches beyond the joined text, or lies within a joint.
    """
    found: list[Offsets] = []
    begin = 0
    for start, end in pieces:
        inside = max(local[0], begin), min(local[1], begin + end - start)
        if inside[0] < inside[1]:
            found.append((inside[0] - begin + start, inside[1] - begin + start))
        begin += end - start + joint
    length = max(begin - joint, 0)
    if not 0 <= local[0] < local[1] <= length or not found:
        raise ValueError(f"[{local[0]}, {local[1]}) is no span of a text of {length} characters joined from pieces")
    return found


def text_of(spans: Iterable[Offsets], text: str, *, joint: str = " ") -> str:
    """The words of the spans, in the order given."""
    return joint.join(text[start:end] for start, end in spans)


def tokens_in_spans(offsets: Int[np.ndarray, "tokens 2"], spans: Sequence[Offsets]) -> Bool[np.ndarray, " tokens"]:
    """Tokens that share a character with a span.

    Args:
        offsets: of each token; start = end for special tokens, which are in no span.
        spans: may overlap.
    """
    return span_ids_from_offsets(np.asarray(offsets)[None], [merge_offsets(spans)])[0] != NO_SEGMENT


def spans_of_tokens(
    kept: Bool[np.ndarray, " tokens"],
    pieces: Int[np.ndarray, " tokens"],
    offsets: Int[np.ndarray, "tokens 2"],
    sources: Sequence[Span],
    documents: Mapping[str, str],
) -> list[Span]:
    """Runs of kept tokens as spans of documents, without white space at their ends.

    Tokens in a row that are of one piece make one span, from the first one's first character to the last one's last: so
    sub-word tokens, and the spaces between words, need no care.

    Args:
        kept: which tokens are chosen.
        pieces: the source each token is of, -1 for none.
        offsets: of each token, counted from the start of its source.
        sources: each piece's place in its document.
        documents: texts by name.
    """
    kept = np.asarray(kept, bool) & (np.asarray(pieces) >= 0)
    before = np.concatenate([[False], kept[:-1] & (pieces[:-1] == pieces[1:])]) if len(kept) else kept
    starts = np.flatnonzero(kept & ~before)
    after = np.concatenate([before[1:] & kept[1:], [False]]) if len(kept) else kept
    ends = np.flatnonzero(kept & ~after)
    found = []
    for first, last in zip(starts, ends, strict=True):
        source = sources[int(pieces[first])]
        start, end = source.start + int(offsets[first, 0]), source.start + int(offsets[last, 1])
        words = documents[source.document][start:end]
        start += len(words) - len(words.lstrip())
        end -= len(words) - len(words.rstrip())
        if start < end:
            found.append(Span(source.document, start, end))
    return found
