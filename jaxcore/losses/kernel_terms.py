"""Gaussian-kernel estimates over a batch: (joint) entropy, mutual information, maximum mean discrepancy.

Kernels are ``k(x, y) = exp(-|x - y|^2 / (2 tau))``. All pairs are streamed by the pair engine: memory O(N d), exact
gradients, on one device or on a mesh. Squared distances come from products of centred vectors and are clipped at 0;
no root is taken, so values and gradients are finite where points coincide. The uniformity term of the same family,
``log mean_{i<j} k(x_i, x_j)``, is ``uniformity(x, scale=1 / (2 tau), normalize=False)``.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jaxcore.losses.input_checks import check_positive, check_vectors
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs

Estimator = Literal["biased", "unbiased"]


def kernel_joint_entropy(
    codes: Sequence[Float[Array, "n _"]],
    *,
    variances: float | Sequence[float] = 0.5,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Kernel density estimate of the entropy of codes taken together (of one code: its entropy).

        H(z_1, ..., z_K) = -(1/n) sum_i log [ (1/n) sum_j prod_k exp(-|z_ki - z_kj|^2 / (2 tau_k)) ]

    Here j runs over all items, i too, so the value lies in [0, log n] and is finite however far apart the points are.
    The kernels' normalisation, a constant, is left out. Maximise it to keep codes from telling the same thing (k-JEM:
    its negative is added to the loss).

    Args:
        codes: K arrays [n, d_k], row i of each belongs to item i. Euclidean: normalise before where that is meant.
        variances: tau > 0, one for all codes or one per code.
        mesh, exchange: as for `jaxcore.losses.info_nce`.

    Raises:
        ValueError: no codes, codes of different length, a variance that is not positive, NaN outside `jit`, a batch
            that the mesh does not divide.

    Source: Louiset et al. 2024 (SepCLR), k-JEM; behaviour of its released code.
    """
    points = _joint_points(codes, variances)
    side = _side(points)
    log_kernel_sums = reduce_pairs(
        _log_kernel, {"row": Reduction("row", "log_sum_exp")}, side, side, mesh=mesh, exchange=exchange
    )["row"]
    return math.log(points.shape[0]) - jnp.mean(log_kernel_sums)


def kernel_mutual_information(
    codes: Sequence[Float[Array, "n _"]],
    *,
    variances: float | Sequence[float] = 0.5,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Kernel estimate of what codes share (two codes: mutual information; more: total correlation).

        I(z_1, ..., z_K) = sum_k H(z_k) - H(z_1, ..., z_K)

    with `kernel_joint_entropy` for H, whose arguments and errors these are. Two codes or more.

    Source: Louiset et al. 2024 (SepCLR), the k-MI arm of its comparison.
    """
    if len(codes) < 2:
        raise ValueError(f"mutual information is between two codes or more: got {len(codes)}")
    of_each = _one_per_code(variances, len(codes))
    options: dict[str, Any] = {"mesh": mesh, "exchange": exchange}
    joint = kernel_joint_entropy(codes, variances=of_each, **options)
    apart = [kernel_joint_entropy([code], variances=tau, **options) for code, tau in zip(codes, of_each, strict=True)]
    return sum(apart[1:], start=apart[0]) - joint


def maximum_mean_discrepancy(
    first: Float[Array, "n dim"],
    second: Float[Array, "m dim"],
    *,
    variances: float | Sequence[float],
    estimator: Estimator = "biased",
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy between two samples, under the mean of one or several Gaussian kernels.

        D = mean_{i,i'} k(x_i, x_i') + mean_{j,j'} k(y_j, y_j') - 2 mean_{i,j} k(x_i, y_j)
        k(x, y) = (1/K) sum_k exp(-|x - y|^2 / (2 tau_k))

    Args:
        first, second: [n, dim] and [m, dim].
        variances: tau > 0 of each kernel.
        estimator: "biased" keeps the pairs i = i' (never negative); "unbiased" leaves them out (its mean over samples
            is the discrepancy, a single value may be negative; n and m at least 2).
        mesh, exchange: as for `jaxcore.losses.info_nce`.

    Raises:
        ValueError: different widths, too few vectors, a variance that is not positive, an unknown estimator, NaN
            outside `jit`, a batch that the mesh does not divide.

    Source: Gretton et al. 2012, eq. 3 (unbiased) and 5 (biased).
    """
    scales = tuple(1 / (2 * tau) for tau in _positive_numbers(variances))
    if estimator not in ("biased", "unbiased"):
        raise ValueError(f"estimator must be 'biased' or 'unbiased': got {estimator!r}")
    check_vectors("first", first)
    check_vectors("second", second)
    left_out = 1 if estimator == "unbiased" else 0  # pairs of each point within a sample: itself
    if first.shape[1] != second.shape[1] or min(first.shape[0], second.shape[0]) <= left_out:
        raise ValueError(
            f"the {estimator} estimator takes [n, dim] and [m, dim] with n and m at least {left_out + 1}: "
            f"got {first.shape} and {second.shape}"
        )
    dtype = jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)
    x, y = first.astype(dtype), second.astype(dtype)
    centre = jax.lax.stop_gradient(jnp.mean(x, axis=0))
    of_x, of_y = _side(x - centre), _side(y - centre)
    apart = Side(of_y.vectors, {**of_y.known, "position": of_y.known["position"] + x.shape[0]})

    def mean_kernel(rows: Side, columns: Side) -> Array:
        sums = reduce_pairs(
            _mean_kernel,
            {"row": Reduction("row", "sum")},
            rows,
            columns,
            shared=scales,
            mesh=mesh,
            exchange=exchange,
        )["row"]
        return jnp.mean(sums)

    within = [(mean_kernel(side, side) - left_out) / (side.vectors.shape[0] - left_out) for side in (of_x, of_y)]
    return within[0] + within[1] - 2 * mean_kernel(of_x, apart) / y.shape[0]


def shuffled_joint_mmd(
    key: Key[Array, ""],
    first: Float[Array, "n c"],
    second: Float[Array, "n s"],
    *,
    variances: float | Sequence[float],
    estimator: Estimator = "biased",
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Dependence of two codes: the discrepancy between their joint sample and one where the second code is shuffled.

        D = MMD^2( {[c_i; s_i]}, {[c_i; s_pi(i)]} ),   pi a random permutation of the batch

    Args:
        key: draws the permutation; take a new one each step, the same on all processes.
        first, second: [n, c] and [n, s], row i of both belongs to item i.
        Others and errors as for `maximum_mean_discrepancy`.

    Source: Louiset et al. 2024 (SepCLR), the MMD arm of its comparison.
    """
    check_vectors("first", first)
    check_vectors("second", second)
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"codes must have one row per item: got {first.shape} and {second.shape}")
    shuffled = second[jax.random.permutation(key, second.shape[0])]
    return maximum_mean_discrepancy(
        jnp.concatenate([first, second], axis=1),
        jnp.concatenate([first, shuffled], axis=1),
        variances=variances,
        estimator=estimator,
        mesh=mesh,
        exchange=exchange,
    )


# ---- what the pair engine is given -----------------------------------------------------------------------


def _joint_points(codes: Sequence[Array], variances: float | Sequence[float]) -> Array:
    """All codes side by side, each in units of sqrt(2 tau): then the product of their kernels is ``exp(-|.|^2)``."""
    if not codes or any(jnp.shape(code)[:1] != jnp.shape(codes[0])[:1] for code in codes):
        raise ValueError(f"codes must be one or more [n, d_k] with one n: got {[jnp.shape(code) for code in codes]}")
    scaled = []
    for place, (code, tau) in enumerate(zip(codes, _one_per_code(variances, len(codes)), strict=True)):
        check_vectors(f"code {place}", code)
        code = code.astype(jnp.promote_types(code.dtype, jnp.float32))
        # Distances do not depend on the origin; near it their squares lose least to cancellation.
        scaled.append((code - jax.lax.stop_gradient(jnp.mean(code, axis=0))) / math.sqrt(2 * tau))
    return jnp.concatenate(scaled, axis=1)


def _one_per_code(variances: float | Sequence[float], count: int) -> tuple[float, ...]:
    values = _positive_numbers(variances)
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ValueError(f"variances must be one number, or one per code ({count}): got {variances}")
    return values


def _positive_numbers(variances: float | Sequence[float]) -> tuple[float, ...]:
    values = tuple(variances) if isinstance(variances, Sequence) else (variances,)
    if not values:
        raise ValueError("variances must be one positive number or more: got none")
    for value in values:
        check_positive("variances", value)
    return tuple(float(value) for value in values)


def _side(vectors: Array) -> Side:
    known = {"position": jnp.arange(vectors.shape[0]), "squared_norm": jnp.sum(vectors * vectors, axis=1)}
    return Side(vectors, known)


def _squared_distance(similarity: Array, of_rows: dict, of_columns: dict) -> Array:
    squared = of_rows["squared_norm"] + of_columns["squared_norm"] - 2 * similarity
    return jnp.where(of_rows["position"] == of_columns["position"], 0, jnp.maximum(squared, 0))


def _log_kernel(similarity: Array, of_rows: dict, of_columns: dict, shared: Any) -> dict[str, Array]:
    return {"row": -_squared_distance(similarity, of_rows, of_columns)}


def _mean_kernel(similarity: Array, of_rows: dict, of_columns: dict, scales: tuple) -> dict[str, Array]:
    squared = _squared_distance(similarity, of_rows, of_columns)
    kernels = [jnp.exp(-scale * squared) for scale in scales]
    return {"row": sum(kernels[1:], start=kernels[0]) / len(kernels)}
