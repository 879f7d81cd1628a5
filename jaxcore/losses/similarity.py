"""Unit vectors: the one normalisation every cosine-based objective uses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_vectors(vectors: Float[Array, "*batch dim"], *, epsilon: float = 1e-12) -> Float[Array, "*batch dim"]:
    """``x / max(|x|, epsilon)`` in float32, with finite value and gradient at the zero vector (both zero).

    Args:
        vectors: any float dtype; the norm is accumulated in float32.
        epsilon: smallest norm divided by; a zero vector stays the zero vector, so its cosine with anything is 0.
    """
    vectors = vectors.astype(jnp.float32)
    squared_norm = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared_norm, epsilon**2))
