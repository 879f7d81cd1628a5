"""Expected gradients (GradientSHAP): integrated gradients averaged over random baselines, by sampling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.combinators import add_noise, check_noise_scale
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    check_positive,
    check_score,
    checked_finite,
)


def expected_gradients(
    score: Score,
    inputs: Inputs,
    key: Key[Array, ""],
    *,
    baselines: Inputs,
    num_samples: int = 50,
    noise_scale: Baseline = 0.0,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """The mean of integrated gradients over a set of baselines, estimated from random points of random lines.

        EG(x) = E_{b ~ B, a ~ U(0,1)} [(x - b) * grad score(b + a (x - b))]
              ~ 1/S sum_s (x_s - b_s) * grad score(b_s + a_s (x_s - b_s)),    x_s = x + N(0, noise_scale^2)

    Each example draws its own b and a in every sample; the leaves of an example share them. Unbiased for the mean of
    `integrated_gradients` over B (``over_baselines(integrated_gradients, baselines)``), hence complete in
    expectation: attributions sum to ``score(x) - E_b score(b)``.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        key: from `jax.random.key`.
        baselines: B, a pytree like `inputs` with leaves [num_baselines, ...]: training examples, for instance.
        num_samples: S.
        noise_scale: standard deviation of noise added to the inputs (GradientSHAP's smoothing), in their units: a
            number, or a pytree that broadcasts against them.
        chunk_size: samples evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        In units of the score, of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, baselines of another structure or example shape than the inputs, a score that is
            not [batch], num_samples < 1, a negative noise_scale, gradients that are not finite.

    Source: Erion et al. 2021 (expected gradients); Lundberg and Lee 2017 (the name GradientSHAP is the shap package's).
    """
    batch = check_score(score, inputs)
    check_positive(num_samples=num_samples, chunk_size=chunk_size)
    baselines, num_baselines = _checked_baselines(baselines, inputs)
    scale = check_noise_scale(noise_scale, inputs)
    is_noisy = not (isinstance(noise_scale, int | float) and noise_scale == 0)

    def one_sample(key: Array) -> Inputs:
        row_key, node_key, noise_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (batch,), 0, num_baselines)
        nodes = jax.random.uniform(node_key, (batch,))
        start = jax.tree.map(lambda b: b[rows], baselines)
        end = add_noise(inputs, noise_key, scale) if is_noisy else inputs
        difference = jax.tree.map(lambda x, b: (x - b).astype(accumulation_dtype(x)), end, start)
        point = jax.tree.map(lambda b, d: (b + _per_example(nodes, d) * d).astype(b.dtype), start, difference)
        gradient = jax.grad(lambda x: jnp.sum(score(x)))(point)
        return jax.tree.map(lambda g, d: g.astype(d.dtype) * d / num_samples, gradient, difference)

    keys = jax.random.split(key, num_samples)
    total = chunked_sum(one_sample, keys, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "expected_gradients")


def _per_example(values: Array, leaf: Array) -> Array:
    """[batch] values that broadcast against a leaf [batch, ...], in its dtype."""
    return values.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))


def _checked_baselines(baselines: Inputs, inputs: Inputs) -> tuple[Inputs, int]:
    """The baselines in the inputs' dtypes, and their number."""
    structure: Any = jax.tree.structure(inputs)
    if structure != jax.tree.structure(baselines):
        raise ValueError(
            f"baselines must have the structure of the inputs, {structure}: got {jax.tree.structure(baselines)}"
        )
    leaves: list[Any] = jax.tree.leaves(baselines)
    for rows, x in zip(leaves, jax.tree.leaves(inputs), strict=True):
        if np.ndim(rows) != x.ndim or np.shape(rows)[1:] != x.shape[1:]:
            raise ValueError(
                f"baselines must be [num_baselines, ...] with examples of the inputs' shape {list(x.shape[1:])}: "
                f"got {list(np.shape(rows))}"
            )
    sizes = sorted({np.shape(rows)[0] for rows in leaves})
    if len(sizes) > 1 or sizes[0] == 0:
        raise ValueError(f"all leaves of baselines must have one number of baselines, at least 1: got {sizes}")
    return jax.tree.map(lambda b, x: jnp.asarray(b, x.dtype), baselines, inputs), sizes[0]
