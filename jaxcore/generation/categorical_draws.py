"""Draws from a distribution over a vocabulary, with two random numbers per row instead of one per token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BLOCK = 256
"""Entries summed into one; near the square root of a vocabulary, so that both searches are short."""


def draw_categorical(log_weights: Float[Array, "rows vocab"], key: Key[Array, ""]) -> Int[Array, "rows"]:
    """An index v per row with probability `exp(log_weights[v]) / sum_w exp(log_weights[w])`; -inf is never drawn.

    By inversion in two stages: a block of entries by the blocks' sums, then an entry within it, with a uniform number
    for each. That is the same distribution as Gumbel's trick gives (`jax.random.categorical`), for 2 random numbers
    per row in place of as many as the vocabulary has tokens. Rounding moves probabilities by about 1e-6 of themselves.
    A row's draw does not depend on how many rows follow it: a batch filled up for a mesh draws the same.
    """
    rows, size = log_weights.shape
    weights = jnp.exp(log_weights - log_weights.max(-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(rows, -1, BLOCK)
    uniforms = jax.random.uniform(key, (rows, 2))
    block = _invert(blocks.sum(-1), uniforms[:, 0])
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _invert(within, uniforms[:, 1])


def _invert(weights: Float[Array, "rows entries"], uniforms: Float[Array, "rows"]) -> Int[Array, "rows"]:
    """The first entry at which the running sum exceeds u times the total, among entries of weight above 0."""
    # Running sums are rounded, each in its own way: at an entry of weight 0 they may still rise.
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    return jnp.argmax(sums > uniforms[:, None] * sums.max(-1, keepdims=True), axis=-1).astype(jnp.int32)
