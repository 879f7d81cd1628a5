"""Keys of random numbers by the name of their use."""

import zlib

import jax
from jaxtyping import Array


def random_stream(key: Array, name: str) -> Array:
    """``fold_in(key, crc32(name))``: uses of different names share no random numbers.

    Args:
        key: of a run, or of a batch.
        name: of the use, such as the method that draws.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
