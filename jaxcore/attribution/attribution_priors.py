"""Attribution priors: what a student's own explanation is asked to look like, from masks, regression and fusion.

    masks = word_masks(key, present, num_masks=64)
    prior = normalised_prior(ridge_attribution(masks, confidence(masked texts), present=present), present)

A prior is a distribution over the words of a text: not negative, 1 in sum, 0 at padding. Whatever comes from another
method (LIME, integrated gradients: other units, both signs) is made one before it is fused with another, since the
largest unit would otherwise decide.
"""

import functools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Present: TypeAlias = Bool[Array, "batch words"]
"""True at words; padding is False."""
Fusion = Literal["mean", "max"]


def word_masks(
    key: Array,
    present: Present,
    *,
    num_masks: int,
    keep_probability: float = 0.7,
    leave_one_out: bool = True,
) -> Bool[Array, "batch masks words"]:
    """Which words each masked copy of a text keeps.

        z_0 = 1,  z_i = 1 - e_i  for each word i (with `leave_one_out`),  then  z_m ~ Bernoulli(keep_probability)^n

    No copy loses every word: one that would keeps a word drawn at random. Padding is never kept. A text with fewer
    words than others has random masks in place of the leave-one-out masks it lacks.

    Args:
        key: a `jax.random.key`.
        present: True at words; every text has at least one.
        num_masks: M, the whole text and its leave-one-out copies included.
        keep_probability: in (0, 1).
        leave_one_out: without it, all M masks are random.

    Raises:
        ValueError: a keep_probability outside (0, 1), too few masks for the leave-one-out copies, a text without words.

    Source: Zhang et al. 2025 (CAP): masks of words; their number and kind are not given there.
    """
    _check_present(present)
    if not 0 < keep_probability < 1:
        raise ValueError(f"keep_probability must be in (0, 1): got {keep_probability}")
    words = present.shape[1]
    if num_masks < 1 or (leave_one_out and num_masks < words + 1):
        raise ValueError(
            f"num_masks must be at least {words + 1 if leave_one_out else 1} (the whole text and one per word): got "
            f"{num_masks}; raise it, or set leave_one_out=False"
        )
    return _draw_masks(key, present, num_masks, keep_probability, leave_one_out)


@functools.partial(jax.jit, static_argnames=("num_masks", "leave_one_out"))
def _draw_masks(key: Array, present: Present, num_masks: int, keep_probability: float, leave_one_out: bool) -> Array:
    present, words = jnp.asarray(present).astype(bool), present.shape[1]
    of_masks, of_survivor = jax.random.split(key)
    shape = (present.shape[0], num_masks, words)
    kept = jax.random.bernoulli(of_masks, keep_probability, shape) & present[:, None]
    chances = jnp.where(present[:, None], jax.random.uniform(of_survivor, shape), -1)
    survivor = jax.nn.one_hot(jnp.argmax(chances, axis=2), words, dtype=bool)
    kept = jnp.where(jnp.any(kept, axis=2, keepdims=True), kept, survivor)
    if not leave_one_out:
        return kept
    without = present[:, None] & ~jnp.eye(words, dtype=bool)
    usable = present & (jnp.sum(present, axis=1, keepdims=True) > 1)
    without = jnp.where(usable[..., None], without, kept[:, 1 : words + 1])
    return jnp.concatenate([present[:, None], without, kept[:, words + 1 :]], axis=1)


def normalised_prior(values: Float[Array, "batch words"], present: Present) -> Float[Array, "batch words"]:
    """The positive part of an attribution as a distribution over words: ``max(a, 0) / sum_i max(a_i, 0)``.

    Where no word speaks for the label, the prior is uniform over the words.

    Raises:
        ValueError: shapes that differ, a text without words.
    """
    _check_present(present)
    if jnp.shape(values) != jnp.shape(present):
        raise ValueError(f"values and present must share one shape: got {jnp.shape(values)} and {jnp.shape(present)}")
    return _positive_part(values, present)


@jax.jit
def _positive_part(values: Array, present: Present) -> Array:
    present = present.astype(bool)
    positive = jnp.where(present, jnp.maximum(values, 0), 0)
    total = jnp.sum(positive, axis=1, keepdims=True)
    uniform = present / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    # The smallest normal number divides safely; below it the quotient may not be finite.
    known = total > jnp.finfo(positive.dtype).tiny
    return jnp.where(known, positive / jnp.where(known, total, 1), uniform)


def fuse_priors(
    priors: Sequence[Float[Array, "batch words"]], *, fusion: Fusion = "mean"
) -> Float[Array, "batch words"]:
    """One prior from several: their mean, or ``max_k r_k`` per word, brought back to sum 1.

    Raises:
        ValueError: no priors, shapes that differ, an unknown fusion, or a prior that is no distribution (see
            `normalised_prior`; checked where its values are known).

    Source: Zhang et al. 2025 (CAP Hybrid), which considers both and does not say which it uses.
    """
    if not priors or any(jnp.shape(prior) != jnp.shape(priors[0]) for prior in priors):
        raise ValueError(
            f"priors must be one or more arrays of one shape: got {[jnp.shape(prior) for prior in priors]}"
        )
    for prior in priors:
        _check_distribution(prior)
    if fusion == "mean":
        return jnp.mean(jnp.stack(list(priors)), axis=0)
    if fusion != "max":
        raise ValueError(f"unknown fusion {fusion!r}: expected mean or max")
    largest = jnp.max(jnp.stack(list(priors)), axis=0)
    return largest / jnp.sum(largest, axis=1, keepdims=True)


def shuffled_prior(key: Array, prior: Float[Array, "batch words"], present: Present) -> Float[Array, "batch words"]:
    """Each text's prior on its own words in another order: the control that keeps everything but the places."""
    _check_present(present)
    return _permuted(key, prior, present)


@jax.jit
def _permuted(key: Array, prior: Array, present: Present) -> Array:
    present = present.astype(bool)
    chances = jnp.where(present, jax.random.uniform(key, present.shape), 2)
    # Real words first, in random order; then back to where the real words are.
    source = jnp.argsort(chances, axis=1)
    place = jnp.argsort(jnp.argsort(~present, axis=1, stable=True), axis=1)
    return jnp.take_along_axis(jnp.take_along_axis(prior, source, axis=1), place, axis=1)


def prior_mass(prior: Float[Array, "batch words"], marked: Bool[Array, "batch words"]) -> Float[Array, " batch"]:
    """The share of a prior (or of an attribution's positive part, normalised) that lies on marked words."""
    return jnp.sum(jnp.where(jnp.asarray(marked).astype(bool), prior, 0), axis=1)


def _check_present(present: Present) -> None:
    if jnp.ndim(present) != 2:
        raise ValueError(f"present must be [batch, words]: got {jnp.shape(present)}")
    if not isinstance(present, jax.core.Tracer):
        empty = np.flatnonzero(~np.any(np.asarray(present) != 0, axis=1))
        if empty.size:
            raise ValueError(f"a text must have at least one word: text {empty[0]} has none")


def _check_distribution(prior: Array) -> None:
    if isinstance(prior, jax.core.Tracer):
        return
    values = np.asarray(prior)
    off = np.flatnonzero((values.min(axis=1, initial=0) < 0) | ~(np.abs(values.sum(axis=1) - 1) < 1e-3))
    if off.size:
        raise ValueError(
            f"a prior must not be negative and must sum to 1 (text {off[0]} sums to {values[off[0]].sum():.3g}): "
            "normalise each with normalised_prior before fusing"
        )
