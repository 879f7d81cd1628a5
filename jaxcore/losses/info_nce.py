"""InfoNCE: each query against its own key and everybody else's."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.losses.pairs import Side, row_statistics
from jaxcore.losses.similarity import unit_vectors


def info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "m dim"],
    *,
    temperature: float | Float[Array, ""],
    normalize: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """One-sided InfoNCE; key i is the positive of query i, all m keys are its candidates.

        L = -(1/n) sum_i [ s_ii / tau - log sum_{j<m} exp(s_ij / tau) ],   s_ij = cos(q_i, k_j)

    Args:
        queries: [n, dim].
        keys: [m, dim] with m >= n; keys beyond the n-th are negatives only (hard negatives, a queue).
        temperature: tau > 0 divides the similarity (a *scale* of peers is 1 / tau); may be a learnt scalar.
        normalize: cosine similarity (the field's default); False takes the vectors' dot products as they are.
        mesh: spread rows over its batch axes under `jax.shard_map`; the value does not change.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.

    Source: van den Oord et al. 2018, eq. 4; the many-negative batch form of Sohn 2016.
    """
    check_pair_shapes(queries, keys)
    check_temperature(temperature)
    rows, columns = (unit_vectors(queries), unit_vectors(keys)) if normalize else (queries, keys)
    num_rows, num_columns = rows.shape[0], columns.shape[0]
    statistics = row_statistics(
        Side(rows, jnp.arange(num_rows), jnp.full(num_rows, -1)),
        Side(columns, jnp.arange(num_columns), jnp.full(num_columns, -1)),
        temperature=temperature,
        mesh=mesh,
    )
    return jnp.mean(statistics.log_normalizer - statistics.positive_sum)


def symmetric_info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    *,
    temperature: float | Float[Array, ""],
    normalize: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """The mean of `info_nce` read along the rows and along the columns (CLIP's loss).

        L = (info_nce(q, k) + info_nce(k, q)) / 2

    Arguments and errors as for `info_nce`, with as many keys as queries. Source: Radford et al. 2021, figure 3.
    """
    if queries.shape != keys.shape:
        raise ValueError(f"symmetric_info_nce needs as many keys as queries: got {queries.shape} and {keys.shape}")
    forward = info_nce(queries, keys, temperature=temperature, normalize=normalize, mesh=mesh)
    backward = info_nce(keys, queries, temperature=temperature, normalize=normalize, mesh=mesh)
    return (forward + backward) / 2


def check_pair_shapes(queries: Array, keys: Array) -> None:
    """ValueError unless both are matrices of one width, with a key for every query."""
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries and keys must be [n, dim] and [m, dim]: got {queries.shape} and {keys.shape}")
    if keys.shape[0] < queries.shape[0] or queries.shape[0] == 0:
        raise ValueError(f"every query needs its key: got {queries.shape[0]} queries, {keys.shape[0]} keys")


def check_temperature(temperature: float | Array) -> None:
    """ValueError for a concrete temperature that is not positive (a traced one cannot be checked)."""
    if not isinstance(temperature, jax.core.Tracer) and not float(temperature) > 0:
        raise ValueError(f"temperature must be positive: got {temperature}")
