"""Training a model's explanation: the distance between its own attribution and a prior, as a loss.

The attribution is computed inside the loss (integrated gradients with respect to the parameters' current values), so
that its gradient is a second derivative of the model. It stays signed: magnitudes alone let a model learn *where* to
look without learning *what follows*.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Distance = Literal["l2", "l1", "cosine", "kl"]

EPSILON = 1e-6
"""Added to the sum of magnitudes that an attribution is divided by (cap.md, stage 2)."""


def alignment_loss(
    attributions: Float[Array, "batch tokens"],
    priors: Float[Array, "batch words"],
    mask: Bool[Array, "batch words"],
    *,
    distance: Distance = "l2",
    segment_ids: Int[Array, "batch tokens"] | None = None,
    weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Mean over texts of the distance between the normalised attribution of the words and the prior.

        a_w = sum_{t: id_t = w} a_t,   a^ = a / (sum_w |a_w| + 1e-6)
        l2      sum_w (a^_w - r_w)^2
        l1      sum_w |a^_w - r_w|
        cosine  1 - cos(a^, r)
        kl      KL(softmax(r) || softmax(a^)), over the words

    Args:
        attributions: signed attribution per token (embedding dimensions summed).
        priors: r, per word.
        mask: True at words; what lies elsewhere is not looked at.
        distance: see above.
        segment_ids: the word of each token, -1 for none (special tokens, padding); without it, tokens are words.
        weights: per text, 0 to leave a padded row out; the mean is over their sum. None = 1.

    Raises:
        ValueError: shapes that do not fit each other, an unknown distance.

    Source: Zhang et al. 2025 (CAP), whose distance is not known; l2 is that of Liu & Avci 2019, eq. 2.
    """
    _check(attributions, priors, mask, segment_ids, distance)
    words = attributions.astype(jnp.float32)
    if segment_ids is not None:
        words = pool_segments(words, segment_ids, num_segments=priors.shape[1])
    mask = jnp.asarray(mask).astype(bool)
    words, priors = jnp.where(mask, words, 0), jnp.where(mask, priors, 0).astype(jnp.float32)
    unit = words / (jnp.sum(jnp.abs(words), axis=1, keepdims=True) + EPSILON)
    losses = _DISTANCES[distance](unit, priors, mask)
    if weights is None:
        return jnp.mean(losses)
    return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), 1e-9)


def pool_segments(
    values: Float[Array, "batch tokens"], segment_ids: Int[Array, "batch tokens"], *, num_segments: int
) -> Float[Array, "batch segments"]:
    """``sum_{t: id_t = s} v_t``; tokens with an id outside 0..num_segments - 1 belong to no segment."""
    outside = (segment_ids < 0) | (segment_ids >= num_segments)
    ids = jnp.where(outside, num_segments, segment_ids)
    pooled = jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, num_segments=num_segments + 1))(values, ids)
    return pooled[:, :num_segments]


def _l2(unit: Array, priors: Array, mask: Array) -> Array:
    return jnp.sum(jnp.square(unit - priors), axis=1)


def _l1(unit: Array, priors: Array, mask: Array) -> Array:
    return jnp.sum(jnp.abs(unit - priors), axis=1)


def _cosine(unit: Array, priors: Array, mask: Array) -> Array:
    squares = jnp.sum(jnp.square(unit), axis=1) * jnp.sum(jnp.square(priors), axis=1)
    return 1 - jnp.sum(unit * priors, axis=1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def _kl(unit: Array, priors: Array, mask: Array) -> Array:
    log_unit, log_priors = (jax.nn.log_softmax(jnp.where(mask, values, -1e9), axis=1) for values in (unit, priors))
    return jnp.sum(jnp.where(mask, jnp.exp(log_priors) * (log_priors - log_unit), 0), axis=1)


_DISTANCES = {"l2": _l2, "l1": _l1, "cosine": _cosine, "kl": _kl}


def _check(attributions: Array, priors: Array, mask: Array, segment_ids: Array | None, distance: str) -> None:
    if distance not in _DISTANCES:
        raise ValueError(f"unknown distance {distance!r}: expected one of {', '.join(_DISTANCES)}")
    if jnp.ndim(priors) != 2 or jnp.shape(mask) != jnp.shape(priors):
        raise ValueError(f"priors and mask must be [batch, words]: got {jnp.shape(priors)} and {jnp.shape(mask)}")
    expected = jnp.shape(priors) if segment_ids is None else jnp.shape(segment_ids)
    if jnp.shape(attributions) != expected or expected[:1] != jnp.shape(priors)[:1]:
        raise ValueError(
            f"attributions must be {expected}, one per {'word' if segment_ids is None else 'token of segment_ids'}: "
            f"got {jnp.shape(attributions)} (sum embedding dimensions first; give segment_ids for sub-words)"
        )
