"""Does an explanation say what the model does? Measures that remove or keep the tokens it ranks highest.

All take `inputs` [batch, time, ...] (embeddings), token scores [batch, time] and a mask: tokens leave or
enter in the order of their scores, highest first (ties by position), replaced by a baseline. Padding is never counted,
and never touched. Attributions of a method that satisfies completeness have `completeness_error` besides.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcore.attribution.chunking import chunked_map
from jaxcore.attribution.input_checks import (
    Baseline,
    Score,
    broadcast_baseline,
    check_positive,
    check_score,
    checked_finite,
    checked_mask,
)

ERASER_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of tokens over which comprehensiveness and sufficiency are averaged (DeYoung et al. 2020)."""


class PerturbationCurve(NamedTuple):
    """The score as tokens leave (or enter): scores [batch, points] at the shares of tokens changed [batch, points]."""

    fractions: Float[Array, "batch points"]
    scores: Float[Array, "batch points"]


def comprehensiveness(
    score: Score,
    inputs: Float[Array, "batch time ..."],
    token_scores: Float[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    baseline: Baseline = 0.0,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """How much the score falls without the tokens called important: ``mean_q score(x) - score(x without top q)``.

    High is faithful. A bin is a share of the text's tokens, ``ceil(q n)`` of them, or a number of tokens.

    Args:
        score: maps inputs to [batch], usually a probability.
        inputs: [batch, time, ...], one vector per token.
        token_scores: importance; for methods whose sign means nothing, magnitudes.
        mask: True at tokens; all by default.
        baseline: what replaces a token, broadcast against `inputs`.
        fractions: the bins q in [0, 1]; `ERASER_FRACTIONS` by default.
        counts: instead, bins as numbers of tokens (a single one: the measure at k).
        chunk_size: bins evaluated together; by default as many as fit `memory_budget`, see
            `jaxcore.attribution.chunking`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        [batch], in the unit of the score.

    Raises:
        ValueError: inputs, score or baseline as for every method; token scores or mask that are not [batch, time],
            scores at tokens that are not finite; no bins, bins out of range, or both kinds.

    Source: DeYoung et al. 2020 (ERASER), the mean over bins (AOPC).
    """
    order = removal_order(token_scores, mask)
    bins = _bin_counts(_num_tokens(order, mask), fractions, counts)
    scores = _scores_at(score, inputs, order, bins, baseline, _removed, chunk_size, memory_budget)
    return checked_finite(score(inputs) - jnp.mean(scores, axis=1), "comprehensiveness")


def sufficiency(
    score: Score,
    inputs: Float[Array, "batch time ..."],
    token_scores: Float[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    baseline: Baseline = 0.0,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """How far the score falls with only the tokens called important: ``mean_q score(x) - score(top q of x)``.

    Low is faithful. Args, errors and source as in `comprehensiveness`.
    """
    order = removal_order(token_scores, mask)
    bins = _bin_counts(_num_tokens(order, mask), fractions, counts)
    scores = _scores_at(score, inputs, order, bins, baseline, _kept, chunk_size, memory_budget)
    return checked_finite(score(inputs) - jnp.mean(scores, axis=1), "sufficiency")


def deletion_curve(
    score: Score,
    inputs: Float[Array, "batch time ..."],
    token_scores: Float[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    baseline: Baseline = 0.0,
    num_steps: int = 20,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> PerturbationCurve:
    """The score as tokens are replaced by the baseline, most important first, from none to all.

    Point s of 0..num_steps has ``round(s n / num_steps)`` of the text's n tokens removed, so that with num_steps >= n
    every token is a point. A low `area_under_curve` is faithful.

    Args: as in `comprehensiveness`. Source: Petsiuk et al. 2018 (RISE); Samek et al. 2017.
    """
    return _curve(score, inputs, token_scores, mask, baseline, num_steps, _removed, chunk_size, memory_budget)


def insertion_curve(
    score: Score,
    inputs: Float[Array, "batch time ..."],
    token_scores: Float[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    baseline: Baseline = 0.0,
    num_steps: int = 20,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> PerturbationCurve:
    """The score as tokens are put into the baseline, most important first. A high area is faithful.

    Args and source as in `deletion_curve`.
    """
    return _curve(score, inputs, token_scores, mask, baseline, num_steps, _kept, chunk_size, memory_budget)


def area_under_curve(curve: PerturbationCurve) -> Float[Array, " batch"]:
    """Area under a curve over the share of tokens, by the trapezoid rule; in the unit of the score."""
    return jnp.trapezoid(curve.scores, curve.fractions, axis=1)


def removal_order(
    token_scores: Float[Array, "batch time"], mask: Bool[Array, "batch time"] | None = None
) -> Int[Array, "batch time"]:
    """Each token's place by decreasing score, 0 for the highest (ties by position); `time` at padding.

    Raises:
        ValueError: scores or mask that are not [batch, time], scores at tokens that are not finite.
    """
    if jnp.ndim(token_scores) != 2:
        raise ValueError(
            f"token scores must be [batch, time]: got {list(jnp.shape(token_scores))} "
            "(reduce embedding dimensions first, with sum_over_dims say)"
        )
    scores = jnp.asarray(token_scores)
    tokens = checked_mask(mask, scores.shape)
    scores = checked_finite(jnp.where(tokens, scores, 0), "token_scores")
    places = jnp.argsort(jnp.argsort(jnp.where(tokens, -scores, jnp.inf), axis=1, stable=True), axis=1)
    return jnp.where(tokens, places, scores.shape[1])


def replace_top_tokens(
    inputs: Shaped[Array, "batch time ..."],
    order: Int[Array, "batch time"],
    counts: Int[Array, " batch"],
    *,
    baseline: Any = 0.0,
) -> Shaped[Array, "batch time ..."]:
    """The inputs with each text's `counts` highest tokens (by `removal_order`) replaced by the baseline.

    Inputs may be embeddings or token ids (with the mask token's id as the baseline).
    """
    return _removed(inputs, jnp.broadcast_to(jnp.asarray(baseline, inputs.dtype), inputs.shape), order, counts)


def _removed(inputs: Array, baseline: Array, order: Array, counts: Array) -> Array:
    is_token = order < order.shape[1]  # counts may be larger than a text
    return jnp.where(over_tokens(is_token & (order < counts[:, None]), inputs), baseline, inputs)


def _kept(inputs: Array, baseline: Array, order: Array, counts: Array) -> Array:
    is_token = order < order.shape[1]
    return jnp.where(over_tokens(is_token & (order >= counts[:, None]), inputs), baseline, inputs)


def over_tokens(tokens: Array, inputs: Array) -> Array:
    """[batch, time] with axes of length one for the others of the inputs."""
    return tokens.reshape(*tokens.shape, *(1,) * (inputs.ndim - 2))


def _num_tokens(order: Array, mask: Array | None) -> Array:
    return jnp.sum(checked_mask(mask, order.shape), axis=1)


def _scores_at(
    score: Score,
    inputs: Array,
    order: Array,
    bins: Array,
    baseline: Baseline,
    change: Callable[..., Array],
    chunk_size: int | None,
    memory_budget: int | None,
) -> Array:
    """The scores [batch, bins] of the inputs changed by each of the counts `bins` [bins, batch]."""
    check_score(score, inputs)
    if not hasattr(inputs, "ndim") or inputs.shape[:2] != order.shape:
        raise ValueError(
            f"inputs must be one array [batch, time, ...] whose tokens are scored, {list(order.shape)}: got "
            f"{[list(leaf.shape) for leaf in jax.tree.leaves(inputs)]}"
        )
    base = broadcast_baseline(baseline, inputs)
    scores = chunked_map(
        lambda counts: score(change(inputs, base, order, counts)),
        bins,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    )
    return scores.T


def _curve(
    score: Score,
    inputs: Array,
    token_scores: Array,
    mask: Array | None,
    baseline: Baseline,
    num_steps: int,
    change: Callable[..., Array],
    chunk_size: int | None,
    memory_budget: int | None,
) -> PerturbationCurve:
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    order = removal_order(token_scores, mask)
    length = _num_tokens(order, mask)
    steps = jnp.arange(num_steps + 1)[:, None]
    bins = (2 * steps * length + num_steps) // (2 * num_steps)  # rounded, in whole numbers
    scores = _scores_at(score, inputs, order, bins, baseline, change, chunk_size, memory_budget)
    fractions = (bins / jnp.maximum(length, 1)).T.astype(scores.dtype)
    return PerturbationCurve(fractions, checked_finite(scores, "perturbation curve"))


def _bin_counts(length: Array, fractions: Sequence[float] | None, counts: Sequence[int] | None) -> Array:
    """How many tokens each bin takes of each text, [bins, batch]."""
    if fractions is not None and counts is not None:
        raise ValueError("give either fractions or counts, not both")
    if counts is not None:
        if not len(counts) or min(counts) < 0:
            raise ValueError(f"counts must be one or more numbers of tokens, none negative: got {list(counts)}")
        return jnp.minimum(jnp.asarray(counts, jnp.int32)[:, None], length)
    shares = np.asarray(ERASER_FRACTIONS if fractions is None else fractions, np.float32)
    if not shares.size or shares.min() < 0 or shares.max() > 1:
        raise ValueError(f"fractions must be one or more shares in [0, 1]: got {shares.tolist()}")
    return jnp.ceil(shares[:, None] * length - 1e-4).astype(jnp.int32)  # 1e-4: 0.1 * 30 is 3 in any dtype
