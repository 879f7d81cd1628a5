"""Infidelity and sensitivity: does an explanation predict what a disturbance does, and does it hold still under one?

Inputs are any pytree of arrays (the two texts of a pair, say): a disturbance is one of all leaves, and products and
norms are sums over all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxcore.attribution.chunking import chunked_map, chunked_sum
from jaxcore.attribution.faithfulness import PerToken, joined_mask, over_tokens, split_tokens
from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_inputs,
    check_like_inputs,
    check_positive,
    check_score,
    checked_finite,
)

Perturb: TypeAlias = Callable[[PRNGKeyArray, Inputs], Inputs]
"""(key, inputs) -> what is subtracted from the inputs, a pytree like them."""


def infidelity(
    score: Score,
    inputs: Inputs,
    attributions: Inputs,
    key: PRNGKeyArray,
    *,
    perturb: Perturb,
    num_samples: int = 100,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """Mean squared error of an explanation's prediction of what a perturbation does to the score; low is faithful.

        INFD = E_I (I . attributions - (score(x) - score(x - I)))^2

    Attributions must be per unit of input (gradients) where I is; those that already contain the factor
    ``x - baseline`` (integrated gradients) must be divided by it, or `perturb` be such that I . attributions makes
    sense.

    Args:
        inputs: a pytree of floating-point arrays [batch, ...].
        attributions: of the inputs' structure and shapes.
        key: sample s uses ``jax.random.split(key, num_samples)[s]``.
        perturb: draws I, see `gaussian_perturbation` and `subset_perturbation`.
        num_samples: how many I.
        chunk_size, memory_budget: samples evaluated together, as in `jaxcore.attribution.faithfulness`.

    Returns:
        [batch], in the unit of the score squared.

    Raises:
        ValueError: inputs or score as for every method; attributions of another structure or other shapes than the
            inputs; a num_samples, chunk_size or memory_budget that is not a whole number of at least 1; values that are
            not finite.

    Source: Yeh et al. 2019, definition 2.1.
    """
    moments = _perturbation_moments(
        score, inputs, attributions, key, perturb, num_samples, chunk_size=chunk_size, memory_budget=memory_budget
    )
    return checked_finite(moments.squared_errors / num_samples, "infidelity")


def scaled_infidelity(
    score: Score,
    inputs: Inputs,
    attributions: Inputs,
    key: PRNGKeyArray,
    *,
    perturb: Perturb,
    num_samples: int = 100,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """Infidelity of the attributions times the factor that makes it smallest, per example: their scale is not judged.

        min_beta E_I (beta I . attributions - (score(x) - score(x - I)))^2

    Args, errors as in `infidelity`. Source: Yeh et al. 2019, optimal scaling.
    """
    moments = _perturbation_moments(
        score, inputs, attributions, key, perturb, num_samples, chunk_size=chunk_size, memory_budget=memory_budget
    )
    aa, ab = moments.predicted_squares, moments.products
    explained = jnp.where(aa > 0, ab * ab / jnp.where(aa > 0, aa, 1), 0)
    return checked_finite(jnp.maximum(moments.change_squares - explained, 0) / num_samples, "scaled_infidelity")


def gaussian_perturbation(standard_deviation: float) -> Perturb:
    """I ~ Normal(0, standard_deviation^2) in every coordinate: fidelity close to the input."""

    def perturb(key: PRNGKeyArray, inputs: Inputs) -> Inputs:
        leaves, structure = jax.tree.flatten(inputs)
        keys = jax.random.split(key, len(leaves))
        noise = [standard_deviation * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noise)

    return perturb


def subset_perturbation(*, baseline: Baseline = 0.0, probability: float = 0.5, mask: PerToken | None = None) -> Perturb:
    """I = (x - baseline) on a random subset of tokens, each chosen with `probability`: the effect of removing them.

    Every leaf of the inputs is [batch, time, ...], of a time of its own; the entries of all leaves are tokens, each
    chosen or not by itself, as in `jaxcore.attribution.faithfulness`.

    Args:
        baseline: broadcast against the inputs.
        probability: in (0, 1].
        mask: True at tokens, [batch, time] for each leaf; padding is never chosen. All by default.

    Raises:
        ValueError: a probability out of range, a mask that is not [batch, time] or leaves an example without tokens;
            when called, a mask or baseline that does not fit the inputs.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"probability must be in (0, 1]: got {probability}")
    if mask is not None:
        token_groups(mask)  # for its errors: the perturbation is drawn inside jit, where values cannot be looked at

    def perturb(key: PRNGKeyArray, inputs: Inputs) -> Inputs:
        if any(leaf.ndim < 2 for leaf in jax.tree.leaves(inputs)):
            raise ValueError(f"inputs must be [batch, time, ...]: got {jax.tree.map(jnp.shape, inputs)}")
        tokens = joined_mask(mask, inputs)
        chosen = split_tokens(jax.random.bernoulli(key, probability, tokens.shape) & tokens, inputs)
        return jax.tree.map(
            lambda x, b, c: jnp.where(over_tokens(c, x), x - b, 0), inputs, broadcast_baseline(baseline, inputs), chosen
        )

    return perturb


def max_sensitivity(
    explain: Callable[[Inputs], Inputs],
    inputs: Inputs,
    key: PRNGKeyArray,
    *,
    radius: float = 0.02,
    num_samples: int = 10,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, " batch"]:
    """The largest relative change of an explanation under small disturbances of its input; low is stable.

        max_s || explain(x + d_s) - explain(x) || / || explain(x) ||,   d_s uniform in [-radius, radius]

    A Monte-Carlo lower bound of the true maximum, which grows with `num_samples`. Where the explanation is zero, the
    change itself.

    Args:
        explain: inputs -> attributions, a pytree of arrays [batch, ...].
        inputs: a pytree of floating-point arrays [batch, ...].
        key: sample s uses ``jax.random.split(key, num_samples)[s]``.
        radius: of the box of disturbances, in the unit of the inputs.
        num_samples, chunk_size, memory_budget: as in `infidelity`.

    Returns:
        [batch], a ratio.

    Raises:
        ValueError: inputs that are not floating-point arrays of one batch; a radius that is not positive; counts as in
            `infidelity`; values that are not finite.

    Source: Yeh et al. 2019 (SENS_max), relative to the explanation's norm as captum has it.
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size, memory_budget=memory_budget)
    if radius <= 0:
        raise ValueError(f"radius must be positive, in the unit of the inputs: got {radius}")
    check_inputs(inputs)
    original = explain(inputs)
    size = _norms(original)

    def change(sample_key: PRNGKeyArray) -> Array:
        leaves, structure = jax.tree.flatten(inputs)
        keys = jax.random.split(sample_key, len(leaves))
        moved = [
            x + jax.random.uniform(k, x.shape, x.dtype, -radius, radius) for k, x in zip(keys, leaves, strict=True)
        ]
        disturbed = explain(jax.tree.unflatten(structure, moved))
        return _norms(jax.tree.map(jnp.subtract, disturbed, original)) / jnp.where(size > 0, size, 1)

    keys = jax.random.split(key, num_samples)
    changes = chunked_map(change, keys, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(jnp.max(changes, axis=0), "max_sensitivity")


class _Moments(NamedTuple):
    """Sums over perturbations, [batch] each: a = I . attributions, b = the change of the score."""

    squared_errors: Array
    predicted_squares: Array
    products: Array
    change_squares: Array


def _perturbation_moments(
    score: Score, inputs: Inputs, attributions: Inputs, key: Array, perturb: Perturb, num_samples: int, **chunks: Any
) -> _Moments:
    check_score(score, inputs)
    check_positive(num_samples=num_samples, **chunks)
    check_like_inputs(attributions, inputs)
    original = score(inputs)

    def moments(sample_key: Array) -> _Moments:
        perturbation = perturb(sample_key, inputs)
        changed = jax.tree.map(lambda x, i: (x - i).astype(x.dtype), inputs, perturbation)
        predicted = _inner(perturbation, attributions)
        change = (original - score(changed)).astype(predicted.dtype)
        return _Moments((predicted - change) ** 2, predicted**2, predicted * change, change**2)

    return chunked_sum(moments, jax.random.split(key, num_samples), **chunks)


def _inner(first: Inputs, second: Inputs) -> Array:
    """Sum of products of all coordinates of an example, over all leaves: [batch]."""
    products = jax.tree.map(
        lambda a, b: jnp.sum((a * b).reshape(a.shape[0], -1), axis=1, dtype=accumulation_dtype(a)), first, second
    )
    return jax.tree.reduce(jnp.add, products)


def _norms(attributions: Inputs) -> Array:
    return jnp.sqrt(_inner(attributions, attributions))
