"""How evenly vectors cover the sphere."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.losses.input_checks import check_positive, check_vectors
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors


def uniformity(
    vectors: Float[Array, "n dim"],
    *,
    scale: float = 2.0,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Logarithm of the mean Gaussian potential over pairs; lower is more uniform, 0 is collapse.

        U = log (2 / (n (n - 1))) sum_{i<j} exp(-t |x_i - x_j|^2)

    Streamed over pairs: memory is linear in n, so a whole evaluation set fits.

    Args:
        vectors: [n, dim], n >= 2.
        scale: t > 0.
        normalize: project on the unit sphere first, as the measure is meant.
        mesh, exchange: as for `info_nce`.

    Raises:
        ValueError: fewer than two vectors, a scale that is not positive, NaN outside `jit`.

    Source: Wang and Isola 2020, section 4.1.2.
    """
    check_vectors("vectors", vectors)
    check_positive("scale", scale)
    count = vectors.shape[0]
    if count < 2:
        raise ValueError(f"uniformity is about pairs: got {count} vectors, expected at least 2")
    x = similarity_vectors(vectors, normalize=normalize)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    known = {"position": jnp.arange(count), "squared_norm": jnp.sum(wide * wide, axis=1)}
    side = Side(x, known)
    log_potentials = reduce_pairs(
        _log_potential,
        {"row": Reduction("row", "log_sum_exp")},
        side,
        side,
        shared=jnp.asarray(scale, wide.dtype),
        mesh=mesh,
        exchange=exchange,
    )["row"]
    return jax.nn.logsumexp(log_potentials) - jnp.log(count) - jnp.log(count - 1)


def _log_potential(similarity: Array, of_rows: dict, of_columns: dict, scale: Array) -> dict[str, Array]:
    squared_distance = of_rows["squared_norm"] + of_columns["squared_norm"] - 2 * similarity
    excluded = of_rows["position"] == of_columns["position"]
    return {"row": jnp.where(excluded, -jnp.inf, -scale * jnp.maximum(squared_distance, 0))}
