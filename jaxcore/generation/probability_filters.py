"""Filters of next-token distributions: scores in, the same scores out with -inf at tokens that may not be drawn.

All of them keep at least the most probable token. Tokens that tie with the last one kept are kept.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scores = Float[Array, "*rows vocab"]


def keep_top_k(scores: Scores, k: int) -> Scores:
    """The k tokens of highest score (Fan et al. 2018); k beyond the vocabulary keeps all."""
    least = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][..., -1:]
    return jnp.where(scores >= least, scores, -jnp.inf)


def keep_top_p(scores: Scores, p: float | Array) -> Scores:
    """Nucleus: the fewest most probable tokens whose probabilities sum to p or more (Holtzman et al. 2020)."""
    log_probs = jax.nn.log_softmax(scores)
    return jnp.where(_within_mass(-log_probs, jnp.exp(log_probs), p), scores, -jnp.inf)


def keep_min_p(scores: Scores, p: float | Array) -> Scores:
    """Tokens at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    return jnp.where(scores >= scores.max(-1, keepdims=True) + jnp.log(p), scores, -jnp.inf)


def keep_typical(scores: Scores, p: float | Array) -> Scores:
    """Locally typical: the fewest tokens, least |-log p(v) - H| first, whose probabilities sum to p or more.

    H is the entropy of the distribution, in nats (Meister et al. 2023, equation 8).
    """
    log_probs = jax.nn.log_softmax(scores)
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0), axis=-1, keepdims=True)
    return jnp.where(_within_mass(-log_probs - entropy, probs, p), scores, -jnp.inf)


def _within_mass(ranks: Array, probs: Array, mass: float | Array) -> Bool[Array, "*rows vocab"]:
    """Entries of least |rank| whose probabilities sum to `mass` or more: all up to a threshold.

    The threshold is found by bisection over the bits of |rank| (floats above 0 are ordered as their bits are), in 31
    sums over the vocabulary. That gives what sorting would, and no backend sorts as fast.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(ranks).astype(jnp.float32), jnp.int32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits <= middle, probs, 0), axis=-1, keepdims=True) >= mass
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # The first `high` are the bits of infinity, and hold all: rounding may leave the whole sum below `mass`.
    low = jnp.full_like(bits[..., :1], -1)
    _, threshold = jax.lax.fori_loop(0, 32, halve, (low, jnp.full_like(low, 0x7F800000)))
    return bits <= threshold
