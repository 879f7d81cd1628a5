"""Reasoning traces as sentences: where a chain of thought is cut, and which tokens each sentence has."""

import itertools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

MIN_SENTENCE_LENGTH = 10
"""Characters; shorter pieces join a neighbour."""
_BOUNDARY = re.compile(r"(?<=[.?!])(?=[ \n])|(?=\n\n)|(?=\r\n\r\n)")
_OPEN, _CLOSE = "<think>", "</think>"

Span = tuple[int, int]


def sentence_spans(text: str, *, tail: Literal["drop", "keep"] = "drop") -> list[Span]:
    """Where the sentences of a chain of thought begin and end in `text`, as characters.

    What lies between the think tags (all of it where there are none) is cut behind ``.``, ``?`` or ``!`` that a space
    or a newline follows, and at blank lines; pieces are stripped. A piece of fewer than 10 characters joins the next
    one, the last one the previous one. A sentence therefore covers everything between its first and its last piece.

    Args:
        text: prompt, chain of thought and answer, or the chain of thought alone.
        tail: what happens to text behind the last boundary: left out, as in the released code, or a sentence of its
            own, as in the released data.

    Raises:
        ValueError: a text without a boundary (with "keep": without any sentence).

    Source: Bogdan et al. 2025 (Thought Anchors), released code and data.
    """
    begin, end = _thought(text)
    cuts = [begin + match.start() for match in _BOUNDARY.finditer(text[begin:end])]
    edges = [begin, *cuts, *([end] if tail == "keep" else [])]
    pieces = [span for a, b in itertools.pairwise(edges) if (span := _stripped(text, a, b)) is not None]
    if not pieces:
        raise ValueError(
            f"no sentence boundary (one of . ? ! before a space or newline, or a blank line) in {text[begin:end]!r:.80}"
        )
    return _merged(pieces)


def split_sentences(text: str, *, tail: Literal["drop", "keep"] = "drop") -> list[str]:
    """The sentences of a chain of thought as they stand in `text`; see `sentence_spans`."""
    return [text[start:end] for start, end in sentence_spans(text, tail=tail)]


def token_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> Int[np.ndarray, "sentences 2"]:
    """The tokens of each sentence, ``[first, behind the last)``, from the characters of tokens and sentences.

    A token belongs to a sentence if they share a character; one that two sentences share belongs to the first.

    Args:
        offsets: first character of each token and the one behind its last, in order, from a tokenizer that read the
            whole text (special tokens are empty).
        spans: of sentences, in order, without overlap.

    Raises:
        ValueError: a sentence without a token of its own.
    """
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    found = np.zeros((len(spans), 2), np.int32)
    behind = 0
    for number, (start, end) in enumerate(spans):
        own = np.flatnonzero((ends > start) & (starts < end) & (ends > starts))
        own = own[own >= behind]
        if not len(own):
            raise ValueError(f"sentence {number} (characters {start} to {end}) has no token of its own")
        behind = int(own[-1]) + 1
        found[number] = own[0], behind
    return found


def _thought(text: str) -> Span:
    """The chain of thought; stripped where tags tell it from the rest, so that "." before a tag is no boundary."""
    begin, end = 0, len(text)
    if _OPEN in text:
        begin = text.index(_OPEN) + len(_OPEN)
        again = text.find(_OPEN, begin)
        end = end if again < 0 else again
    close = text.find(_CLOSE, begin, end)
    if begin == 0 and close < 0:
        return begin, end
    return _stripped(text, begin, end if close < 0 else close) or (begin, begin)


def _stripped(text: str, start: int, end: int) -> Span | None:
    """The span without white space at its ends; None if nothing is left."""
    piece = text[start:end]
    core = piece.strip()
    if not core:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(core)


def _merged(pieces: list[Span]) -> list[Span]:
    """Short pieces joined to a neighbour; a length counts one blank between joined pieces."""
    sentences: list[Span] = []
    start, length = pieces[0][0], -1
    for piece in pieces:
        start, length = (piece[0], -1) if length < 0 else (start, length)
        length += 1 + piece[1] - piece[0]
        if length >= MIN_SENTENCE_LENGTH:
            sentences.append((start, piece[1]))
            length = -1
    if length >= 0:  # the last ones were too short
        start = sentences.pop()[0] if sentences else start
        sentences.append((start, pieces[-1][1]))
    return sentences
