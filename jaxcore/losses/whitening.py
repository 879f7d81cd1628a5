"""Whitening of embeddings: ZCA matrices, whitening in groups of channels, and in shuffled groups that make new views.

ZCA (and not PCA) whitening keeps every channel what it was, so channels that were shuffled into groups can be put back
in their order. Statistics are plain means over the batch axis: under `jit` with a batch that is split over a mesh they
are those of the global batch.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxcore.losses.input_checks import check_vectors

Method = Literal["eigh", "newton_schulz"]
Layout = Literal["view_major", "repo_interleaved", "same_permutation", "no_shuffle"]

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the operands of float32 products to bfloat16


def check_epsilon(epsilon: float) -> None:
    """ValueError unless `epsilon` is a finite number that is not negative."""
    if not 0 <= float(epsilon) < math.inf:
        raise ValueError(f"epsilon must be 0 or more, and finite: got {epsilon}")


def centre_channels(vectors: Float[Array, "n dim"]) -> tuple[Float[Array, "n dim"], Float[Array, " dim"]]:
    """The vectors minus their mean, and the mean, in float32 (float64 for float64 vectors).

    A channel that is constant over the batch comes out exactly 0. Its rounding errors, which a whitening would blow up
    to unit variance, are taken off; the gradient is that of the plain subtraction.
    """
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    mean = jnp.mean(vectors, axis=0)
    mean = mean + jnp.mean(vectors - mean, axis=0)  # the sum of many rows has lost digits that this brings back
    centred = vectors - mean
    smallest = 4 * jnp.finfo(vectors.dtype).eps * jnp.abs(mean)
    rounding = jnp.where(jnp.max(jnp.abs(centred), axis=0) <= smallest, centred, 0)
    return centred - jax.lax.stop_gradient(rounding), mean


# ---- the matrix ------------------------------------------------------------------------------------------


def zca_matrix(
    covariance: Float[Array, "groups c c"],
    *,
    epsilon: float,
    method: Method = "eigh",
    differentiable: bool = False,
) -> Float[Array, "groups c c"]:
    """The symmetric inverse square root of each covariance, in float32 (float64 for float64 covariances).

        W = (C + epsilon m I)^(-1/2) = U diag((lambda + epsilon m)^(-1/2)) U^T,   m = trace(C) / c

    With epsilon 0, directions whose eigenvalue is no more than rounding (c trace(C) times the dtype's epsilon) have no
    variance: their inverse root is 0 (pseudo-inverse). The matrix of an all-zero covariance is 0. So W is finite
    whatever C.

    Args:
        covariance: [groups, c, c], symmetric and positive semi-definite.
        epsilon: >= 0, relative to the mean variance of the group.
        method: "eigh", the faster one on a CPU; or "newton_schulz", matrix products only, for accelerators on which
            many small eigendecompositions are slow: as many steps as the smallest eigenvalue that epsilon allows
            needs. It takes epsilon no smaller than c times the dtype's.
        differentiable: let gradients flow to the covariance (exact, also where eigenvalues coincide); by default W is
            a constant, as in the source.

    Raises:
        ValueError: not [groups, c, c], a negative epsilon, an unknown method.

    Source: Bell and Sejnowski 1997 (ZCA); Zhuo et al. 2023 (WhitenedCSE); Newton-Schulz iteration and derivative of a
    matrix function (Daleckii and Krein): Higham 2008, Functions of Matrices.
    """
    check_epsilon(epsilon)
    if covariance.ndim != 3 or covariance.shape[1] != covariance.shape[2]:
        raise ValueError(f"covariance must be [groups, c, c]: got {covariance.shape}; add a leading axis to one matrix")
    if method not in ("eigh", "newton_schulz"):
        raise ValueError(f"method must be 'eigh' or 'newton_schulz': got {method!r}")
    covariance = covariance.astype(jnp.promote_types(covariance.dtype, jnp.float32))
    size, rounding = covariance.shape[-1], float(jnp.finfo(covariance.dtype).eps)
    if not differentiable:
        covariance = jax.lax.stop_gradient(covariance)
    trace = jnp.trace(covariance, axis1=1, axis2=2)[:, None]
    if method == "newton_schulz":
        epsilon = max(epsilon, size * rounding)
    floor = epsilon * trace / size
    shifted = covariance + floor[..., None] * jnp.eye(size, dtype=covariance.dtype)
    if method == "newton_schulz":
        return _newton_schulz(shifted, steps=_num_steps(size, epsilon))
    zero_below = jnp.zeros_like(trace) if epsilon else size * rounding * trace
    return _inverse_square_root(shifted, floor, zero_below)


@jax.custom_jvp
def _inverse_square_root(matrix: Array, floor: Array, zero_below: Array) -> Array:
    """``matrix^(-1/2)`` [..., c, c]; eigenvalues are at least `floor`, and infinite up to `zero_below` ([..., 1])."""
    vectors, roots = _eigenvectors_and_inverse_roots(matrix, floor, zero_below)
    return _compose(vectors, roots)


@_inverse_square_root.defjvp
def _inverse_square_root_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Divided differences of lambda^(-1/2) instead of the eigenvectors' own derivative, 1 / (lambda_i - lambda_j),
    # which is infinite where eigenvalues meet: f[i, j] = -r_i^2 r_j^2 / (r_i + r_j) with r = lambda^(-1/2).
    vectors, roots = _eigenvectors_and_inverse_roots(*primals)
    total = roots[..., :, None] + roots[..., None, :]
    product = roots[..., :, None] * roots[..., None, :]
    differences = -(product**2) / jnp.where(total > 0, total, 1)
    change = (tangents[0] + jnp.swapaxes(tangents[0], -1, -2)) / 2
    in_basis = _conjugate(jnp.swapaxes(vectors, -1, -2), change)
    return _compose(vectors, roots), _conjugate(vectors, differences * in_basis)


def _eigenvectors_and_inverse_roots(matrix: Array, floor: Array, zero_below: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, floor)
    counts = (values > 0) & (values > zero_below)
    return vectors, jnp.where(counts, jax.lax.rsqrt(jnp.where(counts, values, 1)), 0)


def _compose(vectors: Array, values: Array) -> Array:
    return jnp.einsum("...ik,...k,...jk->...ij", vectors, values, vectors, precision=_EXACT)


def _conjugate(basis: Array, matrix: Array) -> Array:
    return jnp.einsum("...ik,...kl,...jl->...ij", basis, matrix, basis, precision=_EXACT)


def _num_steps(size: int, epsilon: float) -> int:
    """Steps until the smallest eigenvalue that epsilon allows, as a share of the trace, is 1 to rounding.

    A small eigenvalue of Y Z grows by (3/2)^2 a step; six more steps square the error from then on.
    """
    return math.ceil(math.log(size * (1 + epsilon) / epsilon) / math.log(2.25)) + 6


def _newton_schulz(matrix: Array, *, steps: int) -> Array:
    """``matrix^(-1/2)`` by the coupled iteration on the trace-normalised matrix; 0 for the zero matrix."""
    trace = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    positive = trace > 0
    trace = jnp.where(positive, trace, 1)
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    product = partial(jnp.matmul, precision=_EXACT)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        root, inverse_root = state
        correction = (3 * identity - product(inverse_root, root)) / 2
        return (product(root, correction), product(correction, inverse_root)), None

    (_, inverse_root), _ = jax.lax.scan(step, (matrix / trace, identity), None, length=steps)
    return jnp.where(positive, inverse_root * jax.lax.rsqrt(trace), 0)


# ---- statistics ------------------------------------------------------------------------------------------


@struct.dataclass
class WhiteningStatistics:
    """Mean and covariance of all channels, in the channels' own order.

    The whole covariance is kept, because whatever permutation comes next, the covariances of its groups are blocks of
    this one; covariances of groups that were shuffled otherwise cannot be averaged.
    """

    mean: Float[Array, " dim"]
    covariance: Float[Array, "dim dim"]


def batch_statistics(vectors: Float[Array, "n dim"]) -> WhiteningStatistics:
    """Mean and (biased, divisor n) covariance of a batch, in float32; no gradient flows.

    Raises:
        ValueError: fewer than two vectors, NaN outside `jit`.
    """
    _check_batch(vectors)
    centred, mean = centre_channels(jax.lax.stop_gradient(vectors))
    return WhiteningStatistics(mean, _covariance(centred[:, None])[0])


def update_statistics(old: WhiteningStatistics, new: WhiteningStatistics, *, momentum: float) -> WhiteningStatistics:
    """Running statistics: ``(1 - momentum) old + momentum new`` for the mean and for the covariance.

    Args:
        momentum: weight of the new batch, in (0, 1]; torch's convention, one minus that of flax.

    Raises:
        ValueError: momentum outside (0, 1], or statistics of different widths.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum is the weight of the new statistics, in (0, 1]: got {momentum}")
    if old.mean.shape != new.mean.shape:
        raise ValueError(f"statistics of {old.mean.shape[0]} and of {new.mean.shape[0]} channels cannot be averaged")
    return jax.tree.map(lambda a, b: (1 - momentum) * a + momentum * b, old, new)


def _covariance(groups: Float[Array, "n groups c"]) -> Float[Array, "groups c c"]:
    return jnp.einsum("ngi,ngj->gij", groups, groups, precision=_EXACT) / groups.shape[0]


def _covariance_blocks(covariance: Array, permutation: Array | None, num_groups: int) -> Array:
    """Blocks [groups, c, c] of a whole covariance whose channels are taken in the order of the permutation."""
    dim = covariance.shape[0]
    order = (jnp.arange(dim) if permutation is None else permutation).reshape(num_groups, dim // num_groups)
    return covariance[order[:, :, None], order[:, None, :]]


def _check_batch(vectors: Array) -> None:
    check_vectors("vectors", vectors)
    _check_batch_size(vectors.shape[0], "vectors")


def _check_batch_size(size: int, name: str) -> None:
    if size < 2:
        raise ValueError(f"a batch of {size} has no variance to whiten: {name} must hold 2 or more")


# ---- groups of channels ----------------------------------------------------------------------------------


def group_whiten(
    vectors: Float[Array, "n dim"],
    permutation: Int[Array, " dim"] | None = None,
    *,
    num_groups: int,
    epsilon: float,
    statistics: WhiteningStatistics | None = None,
    method: Method = "eigh",
    differentiable: bool = False,
) -> Float[Array, "n dim"]:
    """ZCA-whitens groups of channels over the batch; the channels come back in their own order.

        X' = X[:, pi] in G groups of c = dim / G;  Y'_g = (X'_g - mean_g) W_g,  W_g = (C_g + epsilon m_g I)^(-1/2)
        C_g = (1/n) (X'_g - mean_g)^T (X'_g - mean_g);  Y = Y'[:, argsort(pi)]

    so ``Y'_g^T Y'_g / n = I`` up to epsilon. Channels constant over the batch become 0, to rounding, and groups of them
    exactly. With no more rows than channels in a group, epsilon keeps the result finite. Under `jit` on a batch split
    over a mesh the statistics are global.

    Args:
        vectors: [n, dim], n >= 2 (n >= 1 with `statistics`).
        permutation: which channel goes to which place before cutting into groups; as they are unless given.
        num_groups: G, divides dim. dim groups standardise each channel, one group is full ZCA.
        epsilon: >= 0, relative to the mean variance of each group.
        statistics: whiten with these (running ones, say) instead of the batch's own.
        method, differentiable: as for `zca_matrix`; by default gradients flow through ``X - mean`` alone.

    Returns:
        [n, dim] in float32 (float64 for float64 vectors).

    Raises:
        ValueError: G does not divide dim, a batch of one, no permutation of the channels, statistics of another width,
            a negative epsilon, NaN outside `jit`.

    Source: Zhuo et al. 2023 (WhitenedCSE); groups: Huang et al. 2018 (decorrelated batch normalisation).
    """
    _check_groups(vectors.shape[-1] if vectors.ndim else 0, num_groups)
    _check_permutation(permutation, vectors.shape[-1])
    if statistics is None:
        _check_batch(vectors)
        centred, _ = centre_channels(vectors)
    else:
        check_vectors("vectors", vectors)
        if statistics.mean.shape != vectors.shape[1:]:
            raise ValueError(
                f"statistics are of {statistics.mean.shape[0]} channels, the vectors have {vectors.shape[1]}"
            )
        centred = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)) - statistics.mean
    shuffled = centred if permutation is None else centred[:, permutation]
    groups = shuffled.reshape(shuffled.shape[0], num_groups, -1)
    if statistics is None:
        covariance = _covariance(groups)
    else:
        covariance = _covariance_blocks(statistics.covariance, permutation, num_groups)
    matrices = zca_matrix(covariance, epsilon=epsilon, method=method, differentiable=differentiable)
    white = jnp.einsum("ngi,gij->ngj", groups, matrices, precision=_EXACT).reshape(centred.shape)
    return white if permutation is None else white[:, jnp.argsort(permutation)]


def shuffled_group_whitening(
    key: Key[Array, ""],
    views: Float[Array, "views batch dim"],
    *,
    num_groups: int,
    epsilon: float,
    layout: Layout = "view_major",
    method: Method = "eigh",
    differentiable: bool = False,
) -> Float[Array, "views batch dim"]:
    """Several distorted copies of a batch: each view whitened in groups of its own random shuffle of the channels.

        Z_v = group_whiten(X_v, pi_v),   pi_v ~ uniform permutations of the channels

    Args:
        key: draws the permutations; take a new one each step, the same on all processes.
        views: [views, batch, dim], each sentence once per view, in one order.
        num_groups, epsilon, method, differentiable: as for `group_whiten`.
        layout: "view_major": a permutation and statistics per view (the method). "same_permutation": one permutation,
            statistics per view. "no_shuffle": channels grouped as they stand. "repo_interleaved": what the published
            code computes: rows ordered by sentence (s1v1, s1v2, ..., s2v1, ...) and cut into as many consecutive
            parts as there are views, each with a permutation and statistics; a sentence's views then share theirs.

    Returns:
        [views, batch, dim] in float32.

    Raises:
        ValueError: not [views, batch, dim], an unknown layout, and as for `group_whiten`.

    Source: Zhuo et al. 2023 (WhitenedCSE); github.com/SupstarZh/WhitenedCSE (behaviour of the layout).
    """
    if layout not in ("view_major", "repo_interleaved", "same_permutation", "no_shuffle"):
        raise ValueError(
            f"layout must be 'view_major', 'repo_interleaved', 'same_permutation' or 'no_shuffle': got {layout!r}"
        )
    if views.ndim != 3 or 0 in views.shape:
        raise ValueError(f"views must be [views, batch, dim]: got {views.shape}")
    num_views, batch, dim = views.shape
    check_vectors("views", views.reshape(-1, dim))
    _check_batch_size(batch, "each view")
    whiten = partial(group_whiten, num_groups=num_groups, epsilon=epsilon, method=method, differentiable=differentiable)
    if layout == "no_shuffle":
        return jax.vmap(whiten)(views)
    if layout == "same_permutation":
        return jax.vmap(whiten, in_axes=(0, None))(views, jax.random.permutation(key, dim))
    permutations = jax.vmap(lambda k: jax.random.permutation(k, dim))(jax.random.split(key, num_views))
    if layout == "view_major":
        return jax.vmap(whiten)(views, permutations)
    parts = jnp.swapaxes(views, 0, 1).reshape(views.shape)
    return jnp.swapaxes(jax.vmap(whiten)(parts, permutations).reshape(batch, num_views, dim), 0, 1)


def _check_groups(dim: int, num_groups: int) -> None:
    if num_groups < 1 or dim % num_groups:
        raise ValueError(
            f"{num_groups} groups do not divide {dim} channels: num_groups must be one of "
            f"{[size for size in range(1, dim + 1) if dim % size == 0]}"
        )


def _check_permutation(permutation: Array | None, dim: int) -> None:
    if permutation is None:
        return
    if jnp.shape(permutation) != (dim,) or not jnp.issubdtype(jnp.result_type(permutation), jnp.integer):
        raise ValueError(
            f"permutation must be {dim} integers: got {jnp.result_type(permutation)} {jnp.shape(permutation)}"
        )
    if not isinstance(permutation, jax.core.Tracer) and (np.sort(np.asarray(permutation)) != np.arange(dim)).any():
        raise ValueError(f"permutation must hold each of 0..{dim - 1} once: got {np.asarray(permutation)}")


# ---- whitening of finished embeddings --------------------------------------------------------------------


@struct.dataclass
class Whitening:
    """An affine map fitted to a set of embeddings."""

    mean: Float[Array, " dim"]
    matrix: Float[Array, "dim components"]

    def apply(self, vectors: Float[Array, "n dim"]) -> Float[Array, "n components"]:
        """``(x - mean) matrix`` in float32."""
        check_vectors("vectors", vectors)
        if vectors.shape[1] != self.mean.shape[0]:
            raise ValueError(f"fitted to {self.mean.shape[0]} channels: got vectors {vectors.shape}")
        centred = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)) - self.mean
        return jnp.matmul(centred, self.matrix, precision=_EXACT)


def fit_whitening(
    vectors: Float[Array, "n dim"],
    *,
    method: Literal["zca", "pca"] = "zca",
    epsilon: float = 0.0,
    num_components: int | None = None,
) -> Whitening:
    """Whitening of embeddings after the fact (BERT-whitening), from their mean and covariance.

        zca: W = U diag(lambda^(-1/2)) U^T        pca: W = U_k diag(lambda_k^(-1/2)), largest variance first

    with lambda + epsilon mean(lambda) in place of lambda. Directions without variance are mapped to 0. Components of
    "pca" have no sign of their own.

    Args:
        vectors: [n, dim], n >= 2.
        method: see above.
        epsilon: >= 0, relative to the mean variance.
        num_components: k, for "pca": keep that many; all unless given.

    Raises:
        ValueError: fewer than two vectors, an unknown method, a negative epsilon, num_components out of range or with
            "zca", NaN outside `jit`.

    Source: Su et al. 2021 (Whitening Sentence Representations); Huang et al. 2021 (WhiteningBERT).
    """
    check_epsilon(epsilon)
    statistics = batch_statistics(vectors)
    covariance, dim = statistics.covariance, vectors.shape[1]
    if method == "zca":
        if num_components is not None:
            raise ValueError("num_components is for method 'pca': 'zca' keeps all channels")
        return Whitening(statistics.mean, zca_matrix(covariance[None], epsilon=epsilon)[0])
    if method != "pca":
        raise ValueError(f"method must be 'zca' or 'pca': got {method!r}")
    if num_components is not None and not 1 <= num_components <= dim:
        raise ValueError(f"num_components must be in 1..{dim}: got {num_components}")
    trace = jnp.trace(covariance)[None]
    floor = epsilon * trace / dim
    zero_below = jnp.zeros_like(trace) if epsilon else dim * jnp.finfo(covariance.dtype).eps * trace
    shifted = covariance + floor * jnp.eye(dim, dtype=covariance.dtype)
    directions, roots = _eigenvectors_and_inverse_roots(shifted, floor, zero_below)
    return Whitening(statistics.mean, (directions * roots)[:, ::-1][:, :num_components])
