"""Dropout whose random bits are cheap on every backend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], *, rate: float, key: Array) -> Float[Array, "..."]:
    """Inverted dropout: `x_i / (1 - rate)` with probability `1 - rate`, else 0 (Srivastava et al. 2014).

    Args:
        x: any shape.
        rate: probability of dropping an entry, 0 <= rate < 1; 0 returns `x` itself.
        key: a `jax.random.key`.

    Raises:
        ValueError: rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
    if rate == 0:
        return x
    keep = _random_bits(key, x.shape) >= round(rate * 2**16)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def _random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform 16-bit integers; two come from each 32-bit draw where the last axis is even.

    Drawing dominates the cost of dropout, and 16 bits resolve the rate to 1e-5. Only the last axis is split,
    so that a sharding of the others carries over to the draw.
    """
    if not shape or shape[-1] % 2:
        return (jax.random.bits(key, shape, jnp.uint32) >> 16).astype(jnp.uint16)
    words = jax.random.bits(key, (*shape[:-1], shape[-1] // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(shape)
