"""Which source tokens support a query, from the inner states of a model: on device, padded, masked.

A row has the states of S source tokens and Q query tokens. `pieces` [S] says which piece of the sources (sentence,
passage) a token is of: -1 for padding and for what is no candidate. A piece's tokens stand in a row, and what is
selected never runs over from one piece into the next. Functions take one row; `jax.vmap` them.

Sources: LAQuer (Hirsch et al. 2025), attribution from internals, as laquer.md reconstructs it; windows after Phukan et
al. 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcore.losses.similarity import unit_vectors

NO_PIECE = -1
"""The piece of padding and of tokens that are no candidates."""


class Localised(NamedTuple):
    """The source tokens that were chosen, and each one's score."""

    kept: Bool[Array, " source"]
    scores: Float[Array, " source"]


def mean_state(states: Float[Array, "tokens dim"], mask: Bool[Array, " tokens"]) -> Float[Array, " dim"]:
    """Mean of the masked tokens' states, in float32: what to subtract before cosines are taken.

    Hidden states of language models share a large common part, by which any two of them look alike. Attention sinks
    (the first token) must be out of the mask, or the mean is of them alone.
    """
    total = jnp.sum(jnp.where(mask[:, None], states.astype(jnp.float32), 0), axis=0)
    return total / jnp.maximum(jnp.sum(mask), 1)


def query_similarity(
    source: Float[Array, "source dim"], query: Float[Array, "query dim"], query_mask: Bool[Array, " query"]
) -> Float[Array, " source"]:
    """``m_s = max_q cos(h_s, h_q)``; -1 for a query without tokens."""
    cosines = unit_vectors(source) @ unit_vectors(query).T
    return jnp.max(jnp.where(query_mask, cosines, -1.0), axis=1, initial=-1.0)


def supported_runs(
    chosen: Bool[Array, " source"], pieces: Int[Array, " source"], *, max_gap: int = 2, min_run: int = 2
) -> Bool[Array, " source"]:
    """Chosen tokens with gaps of at most `max_gap` tokens closed, then without runs of fewer than `min_run` tokens."""
    chosen = chosen & (pieces >= 0)
    places = jnp.arange(len(pieces))
    before, after = _nearest(chosen)
    one_piece = (pieces[before] == pieces) & (pieces[after] == pieces)
    closed = chosen | (one_piece & chosen[before] & chosen[after] & (after - before - 1 <= max_gap))
    follows = jnp.concatenate([jnp.zeros(1, bool), closed[:-1] & closed[1:] & (pieces[:-1] == pieces[1:])])
    first, last = closed & ~follows, closed & ~jnp.append(follows[1:], False)
    starts = jax.lax.cummax(jnp.where(first, places, -1))
    ends = jax.lax.cummin(jnp.where(last, places, len(pieces)), reverse=True)
    return closed & (ends - starts + 1 >= min_run)


def localise_tokens(
    source: Float[Array, "source dim"],
    pieces: Int[Array, " source"],
    query: Float[Array, "query dim"],
    query_mask: Bool[Array, " query"],
    *,
    threshold: float | Float[Array, ""] = 0.5,
    max_gap: int = 2,
    min_run: int = 2,
) -> Localised:
    """Runs of source tokens that are close to some token of the query: ``max_q cos(h_s, h_q) > threshold``."""
    scores = jnp.where(pieces >= 0, query_similarity(source, query, query_mask), -1.0)
    return Localised(supported_runs(scores > threshold, pieces, max_gap=max_gap, min_run=min_run), scores)


def piece_scores(
    source: Float[Array, "source dim"],
    pieces: Int[Array, " source"],
    query: Float[Array, "query dim"],
    query_mask: Bool[Array, " query"],
    *,
    num_pieces: int,
) -> Float[Array, " pieces"]:
    """How much of the query each piece has: ``mean_q max_{s in piece} cos(h_s, h_q)`` (late interaction).

    -1 for a piece without tokens.
    """
    cosines = unit_vectors(source) @ unit_vectors(query).T
    slots = jnp.where(pieces >= 0, pieces, num_pieces)
    best = jax.ops.segment_max(cosines, slots, num_segments=num_pieces + 1)[:num_pieces]
    best = jnp.where(jnp.isfinite(best), best, -1.0)
    return jnp.sum(jnp.where(query_mask, best, 0), axis=1) / jnp.maximum(jnp.sum(query_mask), 1)


def localise_windows(
    source: Float[Array, "source dim"],
    pieces: Int[Array, " source"],
    query: Float[Array, "query dim"],
    query_mask: Bool[Array, " query"],
    *,
    num_anchors: int = 5,
    max_length: int = 20,
    min_share: float = 0.9,
    max_windows: int = 3,
) -> Localised:
    """Windows around the tokens that are closest to the query as a whole.

        h_q = mean of the query's states;   anchors: the `num_anchors` tokens of highest cos(h_s, h_q)
        windows: up to `max_length` tokens of one piece with an anchor among them, scored by cos(mean(window), h_q)

    The best window is taken, then those of at least `min_share` of its score that overlap none taken before, up to
    `max_windows`; none of negative score. States are scaled to unit length first. Window sums of length l + 1 are those
    of length l and one token more: O(S D) memory, and none of the cancellation that differences of prefix sums suffer
    in float32.
    """
    units = unit_vectors(source)
    total = jnp.sum(jnp.where(query_mask[:, None], unit_vectors(query), 0), axis=0)
    target = unit_vectors(total)
    scores = jnp.where(pieces >= 0, units @ target, -jnp.inf)
    size = len(pieces)
    cut = jnp.sort(scores)[-min(num_anchors, size)]
    anchors = (scores >= cut) & (pieces >= 0)
    counts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(anchors)])
    starts = jnp.arange(size)

    def longer(sums: Array, extra: Array) -> tuple[Array, Array]:
        last = jnp.minimum(starts + extra, size - 1)
        sums = sums + units[last]
        valid = (starts + extra < size) & (pieces == pieces[last]) & (pieces >= 0)
        valid &= counts[last + 1] > counts[starts]
        return sums, jnp.where(valid, unit_vectors(sums) @ target, -jnp.inf)

    length = min(max_length, size)
    _, table = jax.lax.scan(longer, jnp.zeros_like(units), jnp.arange(length))
    found = _take_windows(table, min_share=min_share, max_windows=max_windows)
    return Localised(found & jnp.any(query_mask), jnp.where(pieces >= 0, scores, -1.0))


def attention_scores(
    attention: Float[Array, "heads tokens tokens"],
    source_mask: Bool[Array, " tokens"],
    query_mask: Bool[Array, " tokens"],
    output_mask: Bool[Array, " tokens"],
) -> Float[Array, " tokens"]:
    """What the query's tokens attend to among the sources, more than the output's tokens do in the mean.

        p[t, s] = mean_h A[h, t, s] / sum_s mean_h A[h, t, s]   (s over sources)
        score_s = mean_{t in query} p[t, s] - mean_{t in output} p[t, s]

    The second term removes attention sinks, which every token attends to. 0 outside the sources.
    """
    weights = jnp.mean(attention.astype(jnp.float32), axis=0) * source_mask
    shares = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-9)

    def mean_over(tokens: Array) -> Array:
        return tokens.astype(jnp.float32) @ shares / jnp.maximum(jnp.sum(tokens), 1)

    return mean_over(query_mask) - mean_over(output_mask)


def _nearest(chosen: Bool[Array, " source"]) -> tuple[Array, Array]:
    """Of each token, the chosen one at or before it and at or behind it; an end of the row where there is none."""
    places = jnp.arange(len(chosen))
    before = jnp.maximum(jax.lax.cummax(jnp.where(chosen, places, -1)), 0)
    after = jnp.minimum(jax.lax.cummin(jnp.where(chosen, places, len(chosen)), reverse=True), len(chosen) - 1)
    return before, after


def _take_windows(
    table: Float[Array, "lengths starts"], *, min_share: float, max_windows: int
) -> Bool[Array, " starts"]:
    """The tokens of the best windows that do not overlap; `table[l, i]` is of the window [i, i + l]."""
    lengths, size = table.shape
    places = jnp.arange(size)
    least = min_share * jnp.max(table)

    def take(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        table, kept = state
        best = jnp.argmax(table)
        extra, start = best // size, best % size
        end = start + extra
        good = (jnp.max(table) >= least) & jnp.isfinite(jnp.max(table))
        kept |= good & (start <= places) & (places <= end)
        overlaps = (places[None] <= end) & (places[None] + jnp.arange(lengths)[:, None] >= start)
        return jnp.where(overlaps, -jnp.inf, table), kept

    return jax.lax.fori_loop(0, max_windows, take, (table, jnp.zeros(size, bool)))[1]
