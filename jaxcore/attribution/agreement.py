"""Do two explanations rank the tokens of a text alike? Agreement measures, on device, for thousands of texts at once.

Every measure takes two arrays of token scores [instances, time] and a mask, and gives one number per instance, NaN
where it is undefined (a constant vector has no ranking to correlate): never zero, and `agreement_matrix` counts them.
The order is that of the scores as given, highest first; for a ranking by magnitude pass absolute values. Ties are those
of the device's dtype (float32, unless x64 is enabled). Comparisons of all pairs of tokens, O(time^2) per instance, take
the place of sorting: they run as one fused loop.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.chunking import chunked_map
from jaxcore.attribution.input_checks import checked_mask

Scores: TypeAlias = Float[Array, "instances time"]
Mask: TypeAlias = Bool[Array, "instances time"] | None
"""True at tokens; None: all are. Scores elsewhere are not looked at."""

DEFAULT_MEMORY_BUDGET = 64 * 2**20
"""Bytes of temporary memory of a chunk of instances: small, since comparisons that stay in the cache are faster."""

Measure: TypeAlias = Callable[..., Float[Array, " instances"]]
"""``measure(a, b, mask) -> [instances]``, symmetric in a and b."""


@struct.dataclass
class AgreementMatrix:
    """How far explanations agree, pair by pair.

    Attributes:
        names: the explainers, in the order of the axes below.
        mean, std: [M, M] over the instances where the pair's measure is defined (population standard deviation); NaN
            where it is defined nowhere.
        per_instance: [instances, M, M], NaN where undefined.
        undefined: [M, M], the number of instances left out.
    """

    names: tuple[str, ...] = struct.field(pytree_node=False)
    mean: Float[Array, "explainers explainers"]
    std: Float[Array, "explainers explainers"]
    per_instance: Float[Array, "instances explainers explainers"]
    undefined: Int[Array, "explainers explainers"]


def kendall_tau(
    a: Scores, b: Scores, mask: Mask = None, *, chunk_size: int | None = None, memory_budget: int | None = None
) -> Float[Array, " instances"]:
    """Kendall's tau-b: pairs of tokens in the same order less those in opposite order, corrected for ties.

        tau_b = sum_ij sgn(a_i - a_j) sgn(b_i - b_j) / sqrt(sum_ij sgn(a_i - a_j)^2 sum_ij sgn(b_i - b_j)^2)

    Args:
        a, b: token scores [instances, time].
        mask: True at tokens; lengths may differ between instances.
        chunk_size: instances evaluated together; by default as many as fit `memory_budget`, see
            `jaxcore.attribution.chunking`.
        memory_budget: bytes of temporary memory a chunk may take; `DEFAULT_MEMORY_BUDGET` by default.

    Returns:
        [instances] in [-1, 1]; NaN for fewer than two tokens or a constant vector.

    Raises:
        ValueError: shapes that differ or are not [instances, time], scores at tokens that are not finite.

    Source: Kendall 1945; equals ``scipy.stats.kendalltau(variant="b")``.
    """
    return per_instance(_TAU_B, a, b, mask, (), chunk_size, memory_budget)


def spearman(
    a: Scores, b: Scores, mask: Mask = None, *, chunk_size: int | None = None, memory_budget: int | None = None
) -> Float[Array, " instances"]:
    """Spearman's rho: Pearson's correlation of ranks, tied scores sharing their mean rank. As `kendall_tau`."""
    return per_instance(_RHO, a, b, mask, (), chunk_size, memory_budget)


def pearson(
    a: Scores, b: Scores, mask: Mask = None, *, chunk_size: int | None = None, memory_budget: int | None = None
) -> Float[Array, " instances"]:
    """Pearson's correlation of the scores themselves. Args, undefined cases and errors as in `kendall_tau`."""
    return per_instance(_R, a, b, mask, (), chunk_size, memory_budget)


def weighted_kendall(
    a: Scores,
    b: Scores,
    mask: Mask = None,
    *,
    exponent: float = 1.0,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " instances"]:
    """Kendall's tau in which exchanges near the top count more: pair (i, j) weighs ``w(r_i) + w(r_j)``.

        w(r) = 1 / (r + 1)^exponent,   r = 0, 1, ... from the highest score down

    The mean of two values: ranks by a (ties by b) and ranks by b (ties by a).

    Args:
        exponent: of the hyperbolic weights; 0 gives tau-b.
        a, b, mask, chunk_size, memory_budget: as in `kendall_tau`, with its undefined cases.

    Source: Vigna 2015; equals ``scipy.stats.weightedtau(rank=True, weigher=lambda r: 1 / (r + 1)**exponent)``.
    """
    return per_instance(_weighted_tau, a, b, mask, (exponent,), chunk_size, memory_budget)


def agreement_matrix(
    scores: Mapping[str, Scores],
    mask: Mask = None,
    *,
    measure: Measure = kendall_tau,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> AgreementMatrix:
    """Agreement of every pair of explanations, per instance, then averaged where it is defined.

    For `kendall_tau`, `spearman` and `pearson` all pairs come from one matrix product per instance (each is a cosine
    of per-explanation features); another measure is evaluated pair by pair.

    Args:
        scores: explainer -> token scores [instances, time].
        mask: True at tokens.
        measure: ``measure(a, b, mask) -> [instances]``; options by ``functools.partial(top_k_overlap, k=5)``.
        chunk_size, memory_budget: as in `kendall_tau`.

    Raises:
        ValueError: no scores, and as the measure.
    """
    if not scores:
        raise ValueError("scores hold no explanations: expected {name: token scores [instances, time]}")
    names, arrays = tuple(scores), list(scores.values())
    all_pairs = _ALL_PAIRS.get(measure)
    if all_pairs is not None:
        checked = [checked_scores(arrays[0], array, mask, what=name) for name, array in scores.items()]
        stacked, tokens = jnp.stack([array for _, array, _ in checked], axis=1), checked[0][2]
        values = _chunked(all_pairs, (stacked, tokens), chunk_size=chunk_size, memory_budget=memory_budget)
    else:
        given = {"chunk_size": chunk_size, "memory_budget": memory_budget}
        given = {name: value for name, value in given.items() if value is not None}
        pairs = itertools.combinations_with_replacement(range(len(names)), 2)
        found = {pair: measure(arrays[pair[0]], arrays[pair[1]], mask, **given) for pair in pairs}
        rows = [[found[min(i, j), max(i, j)] for j in range(len(names))] for i in range(len(names))]
        values = jnp.moveaxis(jnp.array(rows), -1, 0)
    return AgreementMatrix(
        names=names,
        mean=jnp.nanmean(values, axis=0),
        std=jnp.nanstd(values, axis=0),
        per_instance=values,
        undefined=jnp.sum(jnp.isnan(values), axis=0),
    )


def _order_signs(scores: Array, tokens: Array) -> Array:
    """``sgn(s_i - s_j)`` of all pairs of tokens, flat; 0 for pairs with padding."""
    return jnp.where(tokens[:, None] & tokens, jnp.sign(scores[:, None] - scores), 0).ravel()


def _centred_ranks(scores: Array, tokens: Array) -> Array:
    """Mean ranks less their mean: token i's is half of ``sum_j sgn(s_i - s_j)``."""
    return jnp.sum(_order_signs(scores, tokens).reshape(len(scores), -1), axis=1) / 2


def _centred(scores: Array, tokens: Array) -> Array:
    """Scores less their mean, largest magnitude 1; zeros for a constant vector, whose mean rounding may miss."""
    count = jnp.maximum(jnp.sum(tokens), 1)
    high, low = jnp.max(scores, where=tokens, initial=-jnp.inf), jnp.min(scores, where=tokens, initial=jnp.inf)
    centred = jnp.where(tokens, scores - jnp.sum(scores, where=tokens) / count, 0)
    largest = jnp.max(jnp.abs(centred))  # squares of attributions of 1e-25 would vanish in float32
    return jnp.where(high > low, centred / jnp.where(largest > 0, largest, 1), 0)


def _cosines(feature: Callable[[Array, Array], Array], scores: Array, tokens: Array) -> Array:
    """Correlations [M, M] of one instance's M explanations [M, time]; NaN where a feature vector is zero."""
    features = jax.vmap(feature, in_axes=(0, None))(scores, tokens)
    products = jnp.matmul(features, features.T, precision="highest")
    norms = jnp.sqrt(jnp.diagonal(products))
    return _quotient(products, norms[:, None] * norms)


def _correlation(feature: Callable[[Array, Array], Array], a: Array, b: Array, tokens: Array) -> Array:
    first, second = feature(a, tokens), feature(b, tokens)
    return _quotient(jnp.sum(first * second), jnp.sqrt(jnp.sum(first**2)) * jnp.sqrt(jnp.sum(second**2)))


def _quotient(products: Array, norms: Array) -> Array:
    return jnp.where(norms > 0, jnp.clip(products / jnp.where(norms > 0, norms, 1), -1, 1), jnp.nan)


def _weighted_tau(a: Array, b: Array, tokens: Array, exponent: Array) -> Array:
    pairs, earlier = tokens[:, None] & tokens, jnp.tri(len(a), k=-1, dtype=bool)
    signs_a, signs_b = (jnp.where(pairs, jnp.sign(scores[:, None] - scores), 0) for scores in (a, b))

    def by(first: Array, second: Array) -> Array:
        """Tau with ranks by one's order, ties by the other's, then by position (which changes nothing)."""
        above = (first < 0) | ((first == 0) & ((second < 0) | ((second == 0) & earlier & pairs)))
        weights = (jnp.sum(above & pairs, axis=1) + 1.0) ** -exponent
        weights = weights[:, None] + weights
        norms = jnp.sqrt(jnp.sum(signs_a**2 * weights)) * jnp.sqrt(jnp.sum(signs_b**2 * weights))
        return _quotient(jnp.sum(signs_a * signs_b * weights), norms)

    return (by(signs_a, signs_b) + by(signs_b, signs_a)) / 2


def per_instance(
    measure: Callable[..., Array],
    a: Scores,
    b: Scores,
    mask: Mask,
    options: tuple[Any, ...],
    chunk_size: int | None,
    memory_budget: int | None,
) -> Array:
    """``measure(a, b, tokens, *options)`` of each instance; options are numbers, or one number per instance."""
    a, b, tokens = checked_scores(a, b, mask)
    arrays = (a, b, tokens, *(jnp.broadcast_to(jnp.asarray(option), a.shape[:1]) for option in options))
    return _chunked(measure, arrays, chunk_size=chunk_size, memory_budget=memory_budget)


@functools.partial(jax.jit, static_argnames=("measure", "chunk_size", "memory_budget"))
def _chunked(
    measure: Callable[..., Array], arrays: tuple[Array, ...], *, chunk_size: int | None, memory_budget: int | None
) -> Array:
    budget = DEFAULT_MEMORY_BUDGET if memory_budget is None else memory_budget
    return chunked_map(lambda items: measure(*items), arrays, chunk_size=chunk_size, memory_budget=budget)


def checked_scores(a: Any, b: Any, mask: Any, *, what: str = "b") -> tuple[Array, Array, Array]:
    """Both scores in float32 (float64) with 0 at padding, and the tokens; ValueError unless they fit each other."""
    if jnp.ndim(a) != 2 or jnp.shape(a) != jnp.shape(b) or 0 in jnp.shape(a):
        raise ValueError(
            f"token scores must share one shape [instances, time], not empty: got {list(jnp.shape(a))} and "
            f"{list(jnp.shape(b))} ({what})"
        )
    tokens = checked_mask(mask, jnp.shape(a))
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    first, second = (jnp.where(tokens, jnp.asarray(scores, dtype), 0) for scores in (a, b))
    for scores in (first, second):
        if not isinstance(scores, jax.core.Tracer) and not np.all(np.isfinite(scores)):
            rows = np.flatnonzero(~np.isfinite(np.asarray(scores)).all(axis=1))
            raise ValueError(f"token scores must be finite: NaN or infinite in instances {rows[:8].tolist()} ({what})")
    return first, second, tokens


# Held here, so that one measure is one static argument of `jit`: compiled once for each shape.
_TAU_B, _RHO, _R = (functools.partial(_correlation, feature) for feature in (_order_signs, _centred_ranks, _centred))
_ALL_PAIRS: dict[Any, Callable[..., Array]] = {
    kendall_tau: functools.partial(_cosines, _order_signs),
    spearman: functools.partial(_cosines, _centred_ranks),
    pearson: functools.partial(_cosines, _centred),
}
