"""Unit vectors: the one normalisation every cosine-based objective uses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_vectors(vectors: Float[Array, "*batch dim"], *, epsilon: float = 1e-12) -> Float[Array, "*batch dim"]:
    """``x / max(|x|, epsilon)`` in float32, with finite value and gradient at the zero vector (both zero).

    Args:
        vectors: any float dtype; the norm is accumulated in float32 (float64 for float64 vectors).
        epsilon: smallest norm divided by; a zero vector stays the zero vector, so its cosine with anything is 0.
    """
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    squared_norm = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared_norm, epsilon**2))


def similarity_vectors(vectors: Float[Array, "n dim"], *, normalize: bool) -> Float[Array, "n dim"]:
    """What the pair engine multiplies: unit vectors for cosines, or the vectors as they are; in their own dtype.

    bfloat16 vectors stay bfloat16, so that the matrix unit runs at its full rate; float16 becomes float32, because
    gradients of a large batch are below what it can hold.
    """
    dtype = vectors.dtype if vectors.dtype != jnp.float16 else jnp.float32
    return unit_vectors(vectors).astype(dtype) if normalize else vectors.astype(dtype)


def paired_similarity(first: Float[Array, "n dim"], second: Float[Array, "n dim"]) -> Float[Array, " n"]:
    """``<a_i, b_i>`` accumulated in float32 (float64 for float64 vectors)."""
    dtype = jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)
    return jnp.sum(first.astype(dtype) * second.astype(dtype), axis=1)
