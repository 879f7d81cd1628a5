"""From attention scores to weights: softmax, and two maps whose weights can be exactly 0, sparsemax and 1.5-entmax.

All three are ``argmax_p <p, z> + H(p)`` over the probability simplex, with different entropies H. They take a mask and
any axis, and are written in closed form: derivatives of any order are those of the formulas, exact wherever the support
(the entries above 0) does not change.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AttentionNormaliser = Literal["softmax", "sparsemax", "entmax15"]


def softmax(
    scores: Float[Array, "..."], *, mask: Bool[Array, "..."] | None = None, axis: int = -1
) -> Float[Array, "..."]:
    """``p_i = exp(z_i) / sum_j exp(z_j)`` over the real entries; arguments, result and errors as of `sparsemax`."""
    scores, wide, mask = _checked(scores, mask, axis)
    lowest = jnp.where(mask, wide, jnp.finfo(wide.dtype).min)
    return jnp.where(mask, jax.nn.softmax(lowest, axis=axis), 0).astype(scores.dtype)


def sparsemax(
    scores: Float[Array, "..."], *, mask: Bool[Array, "..."] | None = None, axis: int = -1
) -> Float[Array, "..."]:
    """The point of the probability simplex nearest to the scores: small ones get exactly 0.

        p_i = max(z_i - tau, 0),   tau = (sum_{j in S} z_j - 1) / |S|,   S = {j: p_j > 0}

    Args:
        scores: z, floating point.
        mask: True at real entries, broadcast against the scores; others get 0, whatever their score. None = all real.
        axis: the axis that is normalised.

    Returns:
        Weights >= 0 of the scores' shape and dtype (computed in float32 or wider) that sum to 1 along `axis`, or to 0
        where nothing is real. NaN where a real score is NaN or the largest is infinite.

    Raises:
        ValueError: scores that are not floating point, an axis they do not have, a mask that does not broadcast.

    Source: Martins & Astudillo 2016.
    """
    scores, wide, mask = _checked(scores, mask, axis)
    top, z = _shifted(wide, mask, axis)
    descending, sums, _, ranks = _sorted_sums(z, axis)
    support, size = _support(z, mask, descending, 1 + ranks * descending > sums, axis)
    threshold = (jnp.sum(jnp.where(support, z, 0), axis=axis, keepdims=True) - 1) / size
    weights = jnp.where(support, jnp.maximum(z - threshold, 0), 0)
    return _where_defined(weights, top, mask, axis).astype(scores.dtype)


def entmax15(
    scores: Float[Array, "..."], *, mask: Bool[Array, "..."] | None = None, axis: int = -1
) -> Float[Array, "..."]:
    """1.5-entmax, between softmax and sparsemax: sparse, with weights that leave 0 smoothly.

        p_i = max(z_i / 2 - tau, 0)^2,   tau such that they sum to 1:
        tau = m - sqrt((1 - sum_{j in S} (z_j / 2 - m)^2) / |S|),   m = mean_{j in S} z_j / 2,   S = {j: p_j > 0}

    Arguments, result and errors as of `sparsemax`.

    Source: Peters, Niculae & Martins 2019.
    """
    scores, wide, mask = _checked(scores, mask, axis)
    top, z = _shifted(wide / 2, mask, axis)
    descending, sums, squares, ranks = _sorted_sums(z, axis)
    variance = jnp.maximum((1 - (squares - sums**2 / ranks)) / ranks, 0)
    support, size = _support(z, mask, descending, sums / ranks - jnp.sqrt(variance) < descending, axis)
    mean = jnp.sum(jnp.where(support, z, 0), axis=axis, keepdims=True) / size
    spread = jnp.sum(jnp.where(support, (z - mean) ** 2, 0), axis=axis, keepdims=True)
    # The root's argument is at least 1 / |S|^2: by Cauchy-Schwarz |S| (m - tau) >= sqrt(sum (z / 2 - tau)^2) = 1.
    threshold = mean - jnp.sqrt(jnp.maximum((1 - spread) / size, 1 / (2 * size**2)))
    weights = jnp.where(support, jnp.maximum(z - threshold, 0) ** 2, 0)
    return _where_defined(weights, top, mask, axis).astype(scores.dtype)


ATTENTION_NORMALISERS: dict[str, Callable[..., Float[Array, "..."]]] = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
}


def _checked(scores: Array, mask: Array | None, axis: int) -> tuple[Array, Array, Array]:
    """The scores, the scores in the dtype to compute in, and the mask in their shape."""
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"scores must be floating point: got {scores.dtype}")
    if not -scores.ndim <= axis < scores.ndim:
        raise ValueError(f"axis {axis} is out of range: scores have shape {scores.shape}")
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is None:
        return scores, wide, jnp.ones(scores.shape, bool)
    try:
        return scores, wide, jnp.broadcast_to(jnp.asarray(mask).astype(bool), scores.shape)
    except ValueError as error:
        raise ValueError(f"mask of shape {jnp.shape(mask)} does not broadcast to scores {scores.shape}") from error


def _shifted(scores: Array, mask: Array, axis: int) -> tuple[Array, Array]:
    """The largest real score, and the scores less it. None below -1 has weight: such scores, and padding, become -1."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True, where=mask, initial=-jnp.inf))
    return top, jnp.where(mask, jnp.maximum(scores - top, -1), -1)


def _sorted_sums(z: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """In decreasing order, without derivative: scores, sums of the first j of them and of their squares; and j."""
    descending = -jnp.sort(-jax.lax.stop_gradient(z), axis=axis)
    shape = [1] * z.ndim
    shape[axis] = z.shape[axis]
    ranks = jnp.arange(1, z.shape[axis] + 1, dtype=z.dtype).reshape(shape)
    return descending, jnp.cumsum(descending, axis=axis), jnp.cumsum(descending**2, axis=axis), ranks


def _support(z: Array, mask: Array, descending: Array, inside: Array, axis: int) -> tuple[Array, Array]:
    """The entries that have weight, given which of the sorted ones have, and their number (1 if there are none)."""
    lowest = jnp.min(jnp.where(inside, descending, jnp.inf), axis=axis, keepdims=True)
    support = mask & (jax.lax.stop_gradient(z) >= lowest)
    return support, jnp.maximum(jnp.sum(support, axis=axis, keepdims=True), 1).astype(z.dtype)


def _where_defined(weights: Array, top: Array, mask: Array, axis: int) -> Array:
    """NaN in rows whose largest score is not a number to compare with; rows without real entries stay 0."""
    undefined = ~jnp.isfinite(top) & jnp.any(mask, axis=axis, keepdims=True)
    return jnp.where(undefined & mask, jnp.nan, weights)
