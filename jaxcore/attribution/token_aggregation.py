"""From attributions of embeddings to scores of tokens, and from scores of tokens to scores of words and sentences.

    tokens = sum_over_dims(integrated_gradients(score, embeddings))      # [batch, time]
    words = aggregate_tokens(tokens, word_ids_array(encoding.word_ids(i) for i in range(batch)))

A token belongs to the segment (word, sentence, span) whose number its id says; special tokens and padding have id -1
and belong to none.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxcore.losses.attribution_alignment import pool_segments

Reduction = Literal["sum", "mean", "max", "max_abs"]

NO_SEGMENT = -1
"""The segment id of special tokens and padding."""


class SegmentScores(NamedTuple):
    """Scores [batch, segments], and which of these segments a text has (False: no token, score 0)."""

    scores: Float[Array, "batch segments"]
    mask: Bool[Array, "batch segments"]


def sum_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``sum_d a[t, d]``: signed; keeps completeness (token scores sum to what the attributions sum to)."""
    return jnp.sum(attributions, axis=-1, dtype=_float_of(attributions))


def abs_sum_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``| sum_d a[t, d] |``: the magnitude of a token's total effect.

    Source: Neely et al. 2022 (A Song of (Dis)agreement), the ranking of every gradient method.
    """
    return jnp.abs(sum_over_dims(attributions))


def mean_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``1/D sum_d a[t, d]``: signed; a token's own coefficient where all its dimensions carry it (LIME, occlusion)."""
    return jnp.mean(attributions, axis=-1, dtype=_float_of(attributions))


def mean_abs_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``1/D sum_d |a[t, d]|``: dimensions of opposite sign do not cancel."""
    return jnp.mean(jnp.abs(attributions), axis=-1, dtype=_float_of(attributions))


def l2_norm_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``sqrt(sum_d a[t, d]^2)``; its gradient at an all-zero token is 0."""
    squares = jnp.sum(jnp.square(attributions.astype(_float_of(attributions))), axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def max_abs_over_dims(attributions: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """``max_d |a[t, d]|`` (the saliency of Simonyan et al. 2014, section 3)."""
    return jnp.max(jnp.abs(attributions), axis=-1)


def aggregate_tokens(
    token_scores: Float[Array, "batch time"],
    segment_ids: Int[ArrayLike, "batch time"],
    *,
    reduction: Reduction = "sum",
    num_segments: int | None = None,
) -> SegmentScores:
    """Scores of words (sentences, spans) from those of their tokens: ``r_{t: id_t = w} s_t``.

    Args:
        token_scores: one number per token; those of special tokens and padding are not looked at, NaN included.
        segment_ids: the segment of each token, -1 for none; see `word_ids_array`, `word_ids_from_offsets`,
            `span_ids_from_offsets`. Ids need not be sorted: a segment's tokens may lie apart.
        reduction: "sum" (keeps completeness), "mean", "max", or "max_abs" (the score of largest magnitude, its sign
            kept).
        num_segments: width of the result; by default the largest id + 1, which must be known outside `jax.jit`.

    Raises:
        ValueError: shapes that differ, ids below -1 or beyond num_segments, an unknown reduction, or ids traced by
            `jax.jit` without num_segments.
    """
    if reduction not in {"sum", "mean", "max", "max_abs"}:
        raise ValueError(f"unknown reduction {reduction!r}: expected sum, mean, max or max_abs")
    width = _checked_ids(token_scores, segment_ids, num_segments)
    ids = jnp.asarray(segment_ids)
    scores = jnp.asarray(token_scores).astype(_float_of(jnp.asarray(token_scores)))
    counts = pool_segments(jnp.ones_like(scores), ids, num_segments=width)
    if reduction in ("sum", "mean"):
        totals = pool_segments(scores, ids, num_segments=width)
        return SegmentScores(totals if reduction == "sum" else totals / jnp.maximum(counts, 1), counts > 0)
    high = _largest(scores, ids, width)
    if reduction == "max_abs":
        low = -_largest(-scores, ids, width)
        high = jnp.where(high >= -low, high, low)
    return SegmentScores(jnp.where(counts > 0, high, 0), counts > 0)


def word_ids_array(
    word_ids: Iterable[Sequence[int | None]], *, length: int | None = None
) -> Int[np.ndarray, "batch time"]:
    """Fast tokenizers' ``word_ids()`` (None at special tokens) as an array, -1 for None and as padding to `length`.

    Raises:
        ValueError: no texts, or one with more tokens than `length`.
    """
    rows = [[NO_SEGMENT if word is None else word for word in row] for row in word_ids]
    if not rows:
        raise ValueError("word_ids hold no texts: expected one sequence of word numbers per text")
    longest = max(map(len, rows))
    if length is not None and longest > length:
        raise ValueError(f"a text has {longest} tokens, more than length {length}: truncate it, or raise length")
    array = np.full((len(rows), longest if length is None else length), NO_SEGMENT, np.int32)
    for row, words in zip(array, rows, strict=True):
        row[: len(words)] = words
    return array


def word_ids_from_offsets(
    offsets: Int[ArrayLike, "batch time 2"], texts: Sequence[str]
) -> Int[np.ndarray, "batch time"]:
    """The word of each token, words being what whitespace separates in the text (punctuation stays with its word).

    Unlike a tokenizer's own `word_ids`, the same for every tokenizer, so that methods on different models can be
    compared word by word. A token that begins with the space before a word belongs to that word, as does one that is
    that space; trailing spaces belong to the last word.

    Args:
        offsets: character positions [start, end) of each token in its text, as fast tokenizers give with
            ``return_offsets_mapping``; start = end at special tokens and padding.
        texts: the texts that were tokenised, one per row. For pairs call once per text, with the other's tokens empty.

    Raises:
        ValueError: offsets that are not [batch, time, 2], or reach beyond their text.
    """
    words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    checked = _checked_offsets(offsets, words)
    for row, (text, spans) in enumerate(zip(texts, checked, strict=True)):
        if spans.max(initial=0) > len(text):
            raise ValueError(
                f"offsets of text {row} reach to character {spans.max()}, but it has {len(text)}: are texts and "
                "offsets of the same order?"
            )
    return np.stack([_first_word_after(spans, found) for spans, found in zip(checked, words, strict=True)])


def span_ids_from_offsets(
    offsets: Int[ArrayLike, "batch time 2"], spans: Sequence[Sequence[tuple[int, int]]]
) -> Int[np.ndarray, "batch time"]:
    """The span (sentence, phrase, rationale) of each token: the one it shares most characters with, -1 for none.

    Args:
        offsets: as in `word_ids_from_offsets`.
        spans: per text, character positions [start, end) of its spans, which do not overlap; of two that share equally
            many characters with a token, the first counts.

    Raises:
        ValueError: offsets that are not [batch, time, 2], spans of another number of texts, empty or overlapping.
    """
    checked = _checked_offsets(offsets, spans)
    ids = np.full(checked.shape[:2], NO_SEGMENT, np.int32)
    for row, (tokens, found) in enumerate(zip(checked, spans, strict=True)):
        if not len(found):
            continue
        starts, ends = np.asarray(found, int).T
        order = np.argsort(starts)
        if np.any(starts >= ends) or np.any(ends[order][:-1] > starts[order][1:]):
            raise ValueError(f"spans of text {row} must be non-empty [start, end) and not overlap: got {list(found)}")
        shared = np.minimum(tokens[:, 1:], ends) - np.maximum(tokens[:, :1], starts)
        best = np.argmax(shared, axis=1)
        ids[row] = np.where(np.max(shared, axis=1) > 0, best, NO_SEGMENT)
    return ids


def _largest(scores: Array, ids: Array, width: int) -> Array:
    """The largest score of each segment, -inf for one without tokens."""
    ids = jnp.where(ids < 0, width, ids)  # one more segment, cut off at the end, takes what belongs to none
    return jax.vmap(lambda s, i: jax.ops.segment_max(s, i, num_segments=width + 1)[:width])(scores, ids)


def _checked_ids(token_scores: Array, segment_ids: ArrayLike, num_segments: int | None) -> int:
    if jnp.ndim(token_scores) != 2 or jnp.shape(token_scores) != jnp.shape(segment_ids):
        raise ValueError(
            f"token_scores and segment_ids must share one shape [batch, time]: got {list(jnp.shape(token_scores))} and "
            f"{list(jnp.shape(segment_ids))} (first reduce embedding dimensions, with sum_over_dims say)"
        )
    if isinstance(segment_ids, jax.core.Tracer):
        if num_segments is None:
            raise ValueError("segment_ids are traced (by jax.jit, say): give num_segments, the number of segments")
        return num_segments
    ids = np.asarray(segment_ids)
    if not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < NO_SEGMENT:
        raise ValueError(f"segment_ids must be integers, -1 for no segment: got {ids.dtype}, smallest {ids.min()}")
    width = int(ids.max(initial=NO_SEGMENT)) + 1
    if num_segments is not None and num_segments < width:
        raise ValueError(f"segment id {width - 1} is beyond num_segments {num_segments}")
    return width if num_segments is None else num_segments


def _checked_offsets(offsets: ArrayLike, texts: Sequence) -> np.ndarray:
    array = np.asarray(offsets)
    if array.ndim != 3 or array.shape[-1] != 2 or array.shape[0] != len(texts):
        raise ValueError(f"offsets must be [{len(texts)}, time, 2], one row per text: got {list(array.shape)}")
    return array


def _first_word_after(tokens: np.ndarray, words: list[tuple[int, int]]) -> np.ndarray:
    """Per token, the first word that ends after the token's start; the last word if none does."""
    starts, ends = tokens.T
    found = np.searchsorted([end for _, end in words], starts, side="right")
    found = np.minimum(found, len(words) - 1)  # -1, no segment, for a text without words
    return np.where(starts < ends, found, NO_SEGMENT).astype(np.int32)


def _float_of(array: Array) -> np.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)
