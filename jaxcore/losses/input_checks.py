"""Checks of what losses are given, made once at the boundary, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def check_pair_shapes(queries: Array, keys: Array) -> None:
    """ValueError unless both are matrices of one width, with a key for every query."""
    check_vectors("queries", queries)
    check_vectors("keys", keys)
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries and keys must be [n, dim] and [m, dim]: got {queries.shape} and {keys.shape}")
    if keys.shape[0] < queries.shape[0] or queries.shape[0] == 0:
        raise ValueError(f"every query needs its key: got {queries.shape[0]} queries, {keys.shape[0]} keys")


def check_same_shape(first: Array, second: Array, *, names: str) -> None:
    """ValueError unless both are matrices of one shape; `names` as in "queries and keys"."""
    if jnp.ndim(first) != 2 or jnp.shape(first) != jnp.shape(second):
        raise ValueError(f"{names} must both be [n, dim]: got {jnp.shape(first)} and {jnp.shape(second)}")
    for name, vectors in zip(names.split(" and "), (first, second), strict=True):
        check_vectors(name, vectors)


def check_vectors(name: str, vectors: Array) -> None:
    """ValueError unless [n, dim], floating and (where the values are at hand, that is outside `jit`) free of NaN."""
    if jnp.ndim(vectors) != 2:
        raise ValueError(f"{name} must be [n, dim]: got {jnp.shape(vectors)}")
    if not jnp.issubdtype(jnp.result_type(vectors), jnp.floating):
        raise ValueError(f"{name} must be floating: got {jnp.result_type(vectors)}")
    if isinstance(vectors, jax.core.Tracer) or not getattr(vectors, "is_fully_addressable", True):
        return
    bad = np.flatnonzero(np.asarray(jnp.isnan(vectors).any(axis=1)))
    if bad.size:
        raise ValueError(f"{name} must not be NaN: {bad.size} of {vectors.shape[0]} rows are, first row {bad[0]}")


def check_labels(embeddings: Array, labels: Array) -> None:
    """ValueError unless embeddings [n, dim] come with integer labels [n]."""
    if jnp.ndim(embeddings) != 2 or jnp.shape(labels) != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings [n, dim] and labels [n]: got {jnp.shape(embeddings)} and {jnp.shape(labels)}"
        )
    check_vectors("embeddings", embeddings)
    if embeddings.shape[0] < 2:
        raise ValueError(f"a contrastive batch needs at least two items: got {embeddings.shape[0]}")


def check_temperature(temperature: float | Array) -> None:
    """ValueError for a concrete temperature that is not positive (a traced one cannot be checked)."""
    check_positive("temperature", temperature)


def check_positive(name: str, value: float | Array) -> None:
    """ValueError for a concrete value that is not positive and finite."""
    if not isinstance(value, jax.core.Tracer) and not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be positive: got {value}")


def check_length(name: str, values: Array | None, size: int) -> None:
    """ValueError unless `values` is absent or a vector of `size`."""
    if values is not None and jnp.shape(values) != (size,):
        raise ValueError(f"{name} must have shape ({size},): got {jnp.shape(values)}")
