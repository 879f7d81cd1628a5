"""Agreement at the top of two rankings: overlap, Kendall's tau of top-k lists, rank-biased overlap.

Conventions (scores, mask, ties, undefined instances, chunks) are those of `jaxcore.attribution.agreement`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.agreement import Mask, Scores, checked_scores, per_instance


def kendall_top_k(
    a: Scores,
    b: Scores,
    mask: Mask = None,
    *,
    k: Int[Array, " instances"] | int,
    tie_penalty: float = 0.5,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " instances"]:
    """Kendall's tau of top-k lists: ``1 - 2 penalty / max(1, number of pairs)``.

    Tokens of equal score share a bucket; a list's top is its first k buckets. Pairs are all {i, j} with i in one
    list's top and j in the other's. A pair costs 1 if the two order it oppositely, `tie_penalty` if exactly one ties
    it, else 0. Without ties and with k = n this is `kendall_tau`; a text of one token scores 1.

    Args:
        k: the number of buckets, for all instances or each; `top_fraction` and `nonzero_count` give usual choices.
        tie_penalty: p in [0, 1]; 0.5 is neutral.
        a, b, mask, chunk_size, memory_budget: as in `kendall_tau`.

    Returns:
        [instances] in [-1, 1]; NaN for no token.

    Raises:
        ValueError: as `kendall_tau`; k < 1, tie_penalty outside [0, 1].

    Source: Fagin et al. 2003, in the form of Neely et al. 2022 (A Song of (Dis)agreement).
    """
    _check_k(k)
    if not 0 <= tie_penalty <= 1:
        raise ValueError(f"tie_penalty must be in [0, 1]: got {tie_penalty}")
    return per_instance(_top_k_tau, a, b, mask, (k, tie_penalty), chunk_size, memory_budget)


def top_k_overlap(
    a: Scores,
    b: Scores,
    mask: Mask = None,
    *,
    k: Int[Array, " instances"] | int,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " instances"]:
    """``|top_k(a) n top_k(b)| / k``: the share of the k highest tokens that two explanations have in common.

    Scores tied for the last places share them: m tokens tied for r places belong to the top by r / m each, and the
    intersection takes the smaller of two memberships. So a constant vector overlaps with any other by k / n, as a
    random choice would on average, and an explanation overlaps with itself by 1.

    Args:
        k: how many, for all instances or each; of a text with fewer tokens, all.
        a, b, mask, chunk_size, memory_budget: as in `kendall_tau`.

    Returns:
        [instances] in [0, 1]; NaN for no token.

    Raises:
        ValueError: as `kendall_tau`; k < 1.
    """
    _check_k(k)
    return per_instance(_overlap, a, b, mask, (k,), chunk_size, memory_budget)


def top_k_jaccard(
    a: Scores,
    b: Scores,
    mask: Mask = None,
    *,
    k: Int[Array, " instances"] | int,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " instances"]:
    """``|top_k(a) n top_k(b)| / |top_k(a) u top_k(b)|``. Ties, args and errors as in `top_k_overlap`."""
    overlap = top_k_overlap(a, b, mask, k=k, chunk_size=chunk_size, memory_budget=memory_budget)
    return overlap / (2 - overlap)


def rank_biased_overlap(
    a: Scores,
    b: Scores,
    mask: Mask = None,
    *,
    persistence: float = 0.9,
    depth: Int[Array, " instances"] | int | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " instances"]:
    """Extrapolated rank-biased overlap: agreement at every depth, weighted as a reader who goes on with probability p.

        RBO = A_k p^k + (1 - p)/p sum_{d=1}^k A_d p^d,   A_d = 2 |S_d n T_d| / (|S_d| + |T_d|)

    S_d: the tokens of a ranked d or higher. Tied tokens all stand at the highest of their ranks, so S_d may hold more
    than d of them; A_d allows for it.

    Args:
        persistence: p in (0, 1); the first d ranks carry ``1 - p^d`` of the weight and more (0.9: 0.86 for ten).
        depth: k, how deep both rankings are read; all tokens by default.
        a, b, mask, chunk_size, memory_budget: as in `kendall_tau`.

    Returns:
        [instances] in [0, 1]; NaN for no token.

    Raises:
        ValueError: as `kendall_tau`; persistence outside (0, 1), depth < 1.

    Source: Webber et al. 2010, extrapolated for two rankings of equal length, with their treatment of ties.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"persistence must be in (0, 1): got {persistence}")
    depth = jnp.shape(a)[-1] if depth is None else depth
    _check_k(depth, name="depth")
    return per_instance(_rank_biased, a, b, mask, (persistence, depth), chunk_size, memory_budget)


def top_fraction(mask: Bool[Array, "instances time"], fraction: float) -> Int[Array, " instances"]:
    """``k = max(1, floor(fraction n))`` of each instance's n tokens, for the top-k measures."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]: got {fraction}")
    counts = jnp.sum(jnp.asarray(mask).astype(bool), axis=-1)
    return jnp.maximum(1, jnp.floor(counts * fraction + 1e-4).astype(jnp.int32))  # 1e-4: 0.7 * 10 is 7 in any dtype


def nonzero_count(a: Scores, b: Scores, mask: Mask = None) -> Int[Array, " instances"]:
    """``k = max(1, min(nonzeros of a, nonzeros of b))`` of each instance, for the top-k measures."""
    a, b, tokens = checked_scores(a, b, mask)
    counts = [jnp.sum((scores != 0) & tokens, axis=-1) for scores in (a, b)]
    return jnp.maximum(1, jnp.minimum(*counts))


def _top_k_tau(a: Array, b: Array, tokens: Array, k: Array, tie_penalty: Array) -> Array:
    pairs, earlier = tokens[:, None] & tokens, jnp.tri(len(a), k=-1, dtype=bool)

    def in_top(scores: Array) -> Array:
        equal_before = jnp.any((scores[:, None] == scores) & earlier & pairs, axis=1)
        better = (scores > scores[:, None]) & pairs & ~equal_before  # one of each bucket above
        return tokens & (jnp.sum(better, axis=1) < k)

    top_a, top_b = in_top(a), in_top(b)
    counted = ((top_a[:, None] & top_b) | (top_b[:, None] & top_a)) & earlier
    agreement = jnp.sign(a[:, None] - a) * jnp.sign(b[:, None] - b)
    tied_once = (a[:, None] == a) ^ (b[:, None] == b)
    penalties = jnp.where(tied_once, tie_penalty, agreement < 0)
    value = 1 - 2 * jnp.sum(penalties, where=counted) / jnp.maximum(1, jnp.sum(counted))
    return jnp.where(jnp.any(tokens), value, jnp.nan)


def _overlap(a: Array, b: Array, tokens: Array, k: Array) -> Array:
    both = jnp.minimum(top_membership(a, tokens, k), top_membership(b, tokens, k))
    size = jnp.minimum(k, jnp.sum(tokens))
    return jnp.where(size > 0, jnp.sum(both) / jnp.maximum(size, 1), jnp.nan)


def top_membership(
    scores: Float[Array, " time"], tokens: Bool[Array, " time"], k: Array | int
) -> Float[Array, " time"]:
    """How far each token of one text belongs to its k highest: 1, 0, or r / m for m tokens tied for r places."""
    higher = jnp.sum((scores > scores[:, None]) & tokens, axis=1)
    equal = jnp.sum((scores == scores[:, None]) & tokens, axis=1)
    return jnp.where(tokens, jnp.clip((k - higher) / jnp.maximum(equal, 1), 0, 1), 0)


def _rank_biased(a: Array, b: Array, tokens: Array, persistence: Array, depth: Array) -> Array:
    count, depths = jnp.sum(tokens), 1 + jnp.arange(len(a))
    depth = jnp.minimum(depth, count)
    ranks = [1 + jnp.sum((scores > scores[:, None]) & tokens, axis=1) for scores in (a, b)]

    def reached(ranks: Array) -> Array:
        """How many tokens are ranked d or higher, at each depth d."""
        return jnp.sum((ranks <= depths[:, None]) & tokens, axis=1)

    agreement = 2 * reached(jnp.maximum(*ranks)) / jnp.maximum(reached(ranks[0]) + reached(ranks[1]), 1)
    weights = jnp.where(depths <= depth, (1 - persistence) * persistence ** (depths - 1), 0)
    weights += jnp.where(depths == depth, persistence**depth, 0)
    return jnp.where(count > 0, jnp.sum(weights * agreement), jnp.nan)


def _check_k(k: Any, *, name: str = "k") -> None:
    if not isinstance(k, jax.core.Tracer) and (not np.issubdtype(np.asarray(k).dtype, np.integer) or np.min(k) < 1):
        raise ValueError(f"{name} must be a whole number, at least 1 (for a share of tokens: top_fraction): got {k}")
