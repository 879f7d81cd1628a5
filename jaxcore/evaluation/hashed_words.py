"""States of tokens without training: a fixed random vector per word beginning, mixed with those of its neighbours.

A deterministic stand-in for the hidden states of a language model where lexical overlap and its order decide.
"""

import zlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.losses.similarity import unit_vectors

NEIGHBOUR_WEIGHTS = (0.5, 0.25)
"""What a state has of the words one and two places away."""


def word_hash(word: str, *, prefix: int = 5) -> int:
    """A 32-bit number of the lower-cased first letters, which forms of a word mostly share; the same everywhere."""
    return zlib.crc32(word.lower()[:prefix].encode("utf-8", "surrogatepass"))


def document_frequency_weights(
    hashes: Iterable[int], documents: Sequence[Iterable[int]], *, least: float = 0.1
) -> Float[np.ndarray, " words"]:
    """``max(log(N / df), least)`` per word, N documents; a word that no document has counts as in one.

    Raises:
        ValueError: no documents.
    """
    if not documents:
        raise ValueError("no documents to count words in: give at least one")
    counts: dict[int, int] = {}
    for document in documents:
        for word in set(document):
            counts[word] = counts.get(word, 0) + 1
    frequencies = np.asarray([max(counts.get(word, 0), 1) for word in hashes], float)
    return np.maximum(np.log(len(documents) / frequencies), least).astype(np.float32)


def hashed_vectors(
    key: Key[Array, ""], hashes: Int[Array, " words"], weights: Float[Array, " words"], *, dim: int = 64
) -> Float[Array, "words dim"]:
    """``w g(hash)`` with g a standard normal vector of the key and the hash alone, whatever other words there are."""
    draw = jax.vmap(lambda word: jax.random.normal(jax.random.fold_in(key, word), (dim,)))
    return weights[:, None] * draw(hashes)


def mixed_states(
    vectors: Float[Array, "words dim"], ids: Int[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch time dim"]:
    """Unit states ``h_t ~ x_t + 0.5 (x_{t-1} + x_{t+1}) + 0.25 (x_{t-2} + x_{t+2})``, x the vectors of a row's words.

    Padding counts as the zero vector.
    """
    words = jnp.where(mask[..., None], vectors[ids], 0)
    time = words.shape[1]
    reach = len(NEIGHBOUR_WEIGHTS)
    padded = jnp.pad(words, ((0, 0), (reach, reach), (0, 0)))
    states = words
    for distance, weight in enumerate(NEIGHBOUR_WEIGHTS, 1):
        before, after = reach - distance, reach + distance
        states += weight * (padded[:, before : before + time] + padded[:, after : after + time])
    return unit_vectors(states)
