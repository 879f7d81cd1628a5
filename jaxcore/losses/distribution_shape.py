"""How a set of embeddings lies in its space: alignment, isotropy, effective rank, singular spectrum.

Measures in float32, on device. Their counterpart `jaxcore.losses.uniformity` is over pairs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.losses.input_checks import check_length, check_positive, check_same_shape, check_vectors
from jaxcore.losses.similarity import unit_vectors
from jaxcore.losses.whitening import centre_channels

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the operands of float32 products to bfloat16


def alignment(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    exponent: float = 2.0,
    normalize: bool = True,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean distance between the two members of positive pairs; lower is better, 0 is perfect.

        A = sum_i w_i |x_i - y_i|^alpha / sum_i w_i

    Its gradient at coinciding points is 0, also where alpha < 2.

    Args:
        first, second: [n, dim], row i of both is a positive pair.
        exponent: alpha > 0.
        normalize: project on the unit sphere first, as the measure is meant; a zero vector stays where it is. False
            gives the Euclidean alignment of kernel objectives (divide by 2 tau there).
        weights: [n], >= 0 (a mask, say); all 1 unless given. When all are 0 the alignment is 0.

    Raises:
        ValueError: different shapes, an exponent that is not positive, no pairs, NaN outside `jit`.

    Source: Wang and Isola 2020, section 4.1.1.
    """
    check_same_shape(first, second, names="first and second")
    check_positive("exponent", exponent)
    check_length("weights", weights, first.shape[0])
    if not first.shape[0]:
        raise ValueError("alignment is about pairs: got none")
    dtype = jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)
    x, y = (unit_vectors(v.astype(dtype)) if normalize else v.astype(dtype) for v in (first, second))
    squared = jnp.sum((x - y) ** 2, axis=1)
    if exponent != 2:
        apart = squared > 0
        squared = jnp.where(apart, jnp.where(apart, squared, 1) ** (exponent / 2), 0)
    if weights is None:
        return jnp.mean(squared)
    weights = weights.astype(dtype)
    total = jnp.sum(weights)
    return jnp.sum(weights * squared) / jnp.where(total > 0, total, 1)


# ---- isotropy --------------------------------------------------------------------------------------------


class CosinePairs(NamedTuple):
    """Sum of cosines over ordered pairs of different vectors, and the number of those pairs; add over batches."""

    total: Float[Array, ""]
    num_pairs: Float[Array, ""]

    def isotropy(self) -> Float[Array, ""]:
        """One minus the mean cosine; 1 without any pair."""
        return 1 - self.total / jnp.maximum(self.num_pairs, 1)


def cosine_pairs(vectors: Float[Array, "*groups n dim"], mask: Bool[Array, "*groups n"] | None = None) -> CosinePairs:
    """Cosines between all vectors of a group (the tokens of a text), summed over pairs and groups.

        sum_{i != j} cos(x_i, x_j) = |sum_i u_i|^2 - sum_i |u_i|^2,   u = x / |x|

    so no matrix of cosines is made. Zero vectors have cosine 0 with all others.

    Args:
        vectors: [..., n, dim]; pairs are made within the last group axis n.
        mask: [..., n], False leaves a vector out (padding).

    Raises:
        ValueError: fewer than two axes, a mask of another shape, NaN outside `jit`.
    """
    if vectors.ndim < 2:
        raise ValueError(f"vectors must be [..., n, dim]: got {vectors.shape}")
    check_vectors("vectors", vectors.reshape(-1, vectors.shape[-1]))
    if mask is not None and mask.shape != vectors.shape[:-1]:
        raise ValueError(f"mask must be {vectors.shape[:-1]} for vectors {vectors.shape}: got {mask.shape}")
    units = unit_vectors(vectors)
    if mask is None:
        valid = jnp.full(vectors.shape[:-1], 1, units.dtype)
    else:
        valid = mask.astype(units.dtype)
        units = jnp.where(mask.astype(bool)[..., None], units, 0)
    sums = jnp.sum(units, axis=-2)
    lengths = jnp.sum(valid, axis=-1)
    return CosinePairs(jnp.sum(sums**2) - jnp.sum(units**2), jnp.sum(lengths * (lengths - 1)))


def mean_cosine_isotropy(
    vectors: Float[Array, "*groups n dim"], mask: Bool[Array, "*groups n"] | None = None
) -> Float[Array, ""]:
    """One minus the mean cosine between different vectors of a group; in [0, 2], about 1 is isotropic, 0 is collapse.

        I = 1 - sum_groups sum_{i != j} cos(x_i, x_j) / sum_groups n (n - 1)

    Pooled over pairs, so a long text weighs more than a short one; for a set too large for one call add the
    `cosine_pairs` of its parts (groups must stay whole). Arguments and errors as there.

    Source: Su and Collier 2022 (Contrastive Search Is What You Need); Ethayarajh 2019.
    """
    return cosine_pairs(vectors, mask).isotropy()


def partition_isotropy(vectors: Float[Array, "n dim"]) -> Float[Array, ""]:
    """How alike all directions are to the partition function; in [0, 1], 1 is isotropic.

        I = min_c Z(c) / max_c Z(c),   Z(c) = sum_i exp(<c, x_i>),   c over the eigenvectors of X^T X, with both signs

    Both signs, since an eigenvector has none of its own. Computed from log Z, so long vectors do not
    overflow (their isotropy underflows to 0). It depends on the vectors' length; all-zero vectors have 1.

    Raises:
        ValueError: not [n, dim], no vectors, NaN outside `jit`.

    Source: Mu and Viswanath 2018 (All-but-the-Top).
    """
    _check_set(vectors)
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    second_moment = jnp.einsum("ni,nj->ij", vectors, vectors, precision=_EXACT) / vectors.shape[0]
    _, directions = jnp.linalg.eigh(jax.lax.stop_gradient(second_moment))
    projections = jnp.matmul(vectors, directions, precision=_EXACT)
    log_partitions = jnp.stack([jax.nn.logsumexp(sign * projections, axis=0) for sign in (1, -1)])
    return jnp.exp(jnp.min(log_partitions) - jnp.max(log_partitions))


# ---- spectrum --------------------------------------------------------------------------------------------


def singular_spectrum(vectors: Float[Array, "n dim"], *, centre: bool = True) -> Float[Array, " rank"]:
    """Singular values of the set as a matrix, largest first: min(n, dim) of them.

    From the R factor of a QR decomposition, which keeps the small ones (a covariance would square them away).

    Args:
        vectors: [n, dim].
        centre: subtract the mean first; values that are constant over the set then count as exactly 0.

    Raises:
        ValueError: not [n, dim], no vectors, NaN outside `jit`.
    """
    _check_set(vectors)
    matrix = centre_channels(vectors)[0] if centre else vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    if matrix.shape[0] > matrix.shape[1]:
        matrix = jnp.linalg.qr(matrix, mode="r")
    return jnp.linalg.svd(matrix, compute_uv=False)


def effective_rank(vectors: Float[Array, "n dim"], *, centre: bool = True) -> Float[Array, ""]:
    """Exponential of the entropy of the normalised singular values; between 1 and min(n, dim), 0 without any spread.

        erank = exp(-sum_i p_i log p_i),   p_i = sigma_i / sum_j sigma_j

    Arguments and errors as for `singular_spectrum`.

    Source: Roy and Vetterli 2007; as RankMe: Garrido et al. 2023.
    """
    spectrum = singular_spectrum(vectors, centre=centre)
    total = jnp.sum(spectrum)
    shares = spectrum / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(shares, shares))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def _check_set(vectors: Array) -> None:
    check_vectors("vectors", vectors)
    if 0 in vectors.shape or not math.prod(vectors.shape):
        raise ValueError(f"vectors must be [n, dim] with n and dim positive: got {vectors.shape}")
