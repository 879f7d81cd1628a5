"""Objectives without negatives: two views agree channel by channel while channels tell different things.

Statistics are plain means over the batch axis: under `jit` with a batch that is split over a mesh they are global. The
matrices have one row and column per channel; memory is O(N d + d^2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.losses.input_checks import check_positive, check_same_shape
from jaxcore.losses.whitening import centre_channels, check_epsilon

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the operands of float32 products to bfloat16


def barlow_twins(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    off_diagonal_weight: float = 0.0051,
    epsilon: float = 1e-5,
) -> Float[Array, ""]:
    """The cross-correlation matrix of two views' channels should be the identity.

        L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2
        C = (1/n) A^T B,   A = (X - mean) / sqrt(var + epsilon) per channel (variance with divisor n), B likewise

    A channel that is constant over the batch correlates with none: it adds 1.

    Args:
        first, second: [n, dim], n >= 2, two views of the same items.
        off_diagonal_weight: lambda > 0; 0.0051 is the source's for 8,192 channels.
        epsilon: >= 0, added to the variance.

    Raises:
        ValueError: different shapes, a batch of one, a weight that is not positive, a negative epsilon, NaN outside
            `jit`.

    Source: Zbontar et al. 2021, eq. 1 and 2; epsilon: the batch normalisation of its released code.
    """
    _check_views(first, second)
    check_positive("off_diagonal_weight", off_diagonal_weight)
    check_epsilon(epsilon)
    a, b = (_standardised(view, epsilon) for view in (first, second))
    correlation = jnp.einsum("ni,nj->ij", a, b, precision=_EXACT) / first.shape[0]
    on_diagonal = jnp.sum((1 - jnp.diagonal(correlation)) ** 2)
    return on_diagonal + off_diagonal_weight * _off_diagonal_energy(correlation)


def _standardised(view: Array, epsilon: float) -> Array:
    centred, _ = centre_channels(view)
    variance = jnp.mean(centred**2, axis=0) + epsilon
    varies = variance > 0
    return centred * jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)


class VicregComponents(NamedTuple):
    """The three terms of VICReg, before their weights."""

    invariance: Float[Array, ""]
    variance: Float[Array, ""]
    covariance: Float[Array, ""]


def vicreg(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    target_deviation: float = 1.0,
    epsilon: float = 1e-4,
) -> Float[Array, ""]:
    """VICReg: ``lambda s + mu v + nu c`` of `vicreg_components`, whose arguments and errors these are.

    Source: Bardes et al. 2022, eq. 6, with the weights of its section 4.2.
    """
    for name, weight in (
        ("invariance_weight", invariance_weight),
        ("variance_weight", variance_weight),
        ("covariance_weight", covariance_weight),
    ):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be 0 or more: got {weight}")
    parts = vicreg_components(first, second, target_deviation=target_deviation, epsilon=epsilon)
    return (
        invariance_weight * parts.invariance + variance_weight * parts.variance + covariance_weight * parts.covariance
    )


def vicreg_components(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    target_deviation: float = 1.0,
    epsilon: float = 1e-4,
) -> VicregComponents:
    """Two views stay together, every channel keeps its spread, channels do not covary.

        s = (1 / n dim) sum_ij (X_ij - Y_ij)^2
        v = [v(X) + v(Y)] / 2,   v(X) = (1 / dim) sum_j max(0, gamma - sqrt(var_j + epsilon))
        c = c(X) + c(Y),         c(X) = (1 / dim) sum_{i != j} C_ij^2,   C = cov(X)

    Variances and covariances have divisor n - 1. As in the released code, s is a mean over channels too and v a mean
    of the two views (the paper's equations have sums there).

    Args:
        first, second: [n, dim], n >= 2, two views of the same items.
        target_deviation: gamma > 0.
        epsilon: >= 0, added to the variance. A channel constant over the batch has deviation sqrt(epsilon).

    Raises:
        ValueError: different shapes, a batch of one, a deviation that is not positive, a negative epsilon, NaN outside
            `jit`.

    Source: Bardes et al. 2022, eq. 1 to 5; github.com/facebookresearch/vicreg (behaviour).
    """
    _check_views(first, second)
    check_positive("target_deviation", target_deviation)
    check_epsilon(epsilon)
    dtype = jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)
    invariance = jnp.mean((first.astype(dtype) - second.astype(dtype)) ** 2)
    variance = covariance = jnp.zeros((), dtype)
    for view in (first, second):
        centred, _ = centre_channels(view)
        matrix = jnp.einsum("ni,nj->ij", centred, centred, precision=_EXACT) / (view.shape[0] - 1)
        hinge = jax.nn.relu(target_deviation - _square_root(jnp.diagonal(matrix) + epsilon))
        variance = variance + jnp.mean(hinge) / 2
        covariance = covariance + _off_diagonal_energy(matrix) / view.shape[1]
    return VicregComponents(invariance, variance, covariance)


def _square_root(values: Array) -> Array:
    """The square root, with gradient 0 at 0."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def _off_diagonal_energy(matrix: Array) -> Array:
    return jnp.sum(jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0, matrix) ** 2)


def _check_views(first: Array, second: Array) -> None:
    check_same_shape(first, second, names="first and second")
    if first.shape[0] < 2:
        raise ValueError(f"statistics over a batch need 2 items or more: got {first.shape[0]}")
