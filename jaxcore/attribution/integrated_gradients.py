"""Integrated gradients: how much each input coordinate contributes to a score, relative to a baseline."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_like_inputs,
    check_positive,
    check_score,
    checked_finite,
)

Quadrature = Literal["gauss_legendre", "midpoint", "trapezoid", "left", "right"]


def integrated_gradients(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Path integral of the score's gradient along the straight line from baseline to input, per coordinate.

        IG(x) = (x - x') * int_0^1 grad score(x' + a (x - x')) da  ~  (x - x') * sum_k w_k grad score(x' + a_k (x - x'))

    Completeness: the attributions of an example sum to ``score(x) - score(x')``, up to quadrature error; see
    `completeness_error`. To attribute an inner layer (token embeddings, say) instead of the input: `at_layer`.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs` (a scalar, one example's shape, or a whole batch).
        num_steps: K, the number of gradient evaluations.
        quadrature: nodes a_k and weights w_k; Gauss-Legendre is exact for gradients that are polynomials of
            degree 2K - 1 along the path.
        chunk_size: steps evaluated together; by default as many as fit `memory_budget`, see
            `jaxcore.attribution.chunking`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Attributions of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, a baseline that does not broadcast, a score that is not [batch], a num_steps,
            chunk_size or memory_budget that is not a whole number of at least 1, gradients that are not finite.

    Source: Sundararajan et al. 2017, "Our Method: Integrated Gradients" and "Computing Integrated Gradients".
    """
    check_score(score, inputs)
    check_positive(num_steps=num_steps, chunk_size=chunk_size, memory_budget=memory_budget)
    baseline = broadcast_baseline(baseline, inputs)
    difference = jax.tree.map(lambda x, b: (x - b).astype(accumulation_dtype(x)), inputs, baseline)

    def weighted_gradient(node_and_weight: tuple[Array, Array]) -> Inputs:
        node, weight = node_and_weight
        point = jax.tree.map(lambda b, d: (b + node * d).astype(b.dtype), baseline, difference)
        gradient = jax.grad(lambda x: jnp.sum(score(x)))(point)
        return jax.tree.map(lambda g, d: weight.astype(d.dtype) * g.astype(d.dtype), gradient, difference)

    nodes, weights = quadrature_rule(quadrature, num_steps)
    total = chunked_sum(
        weighted_gradient,
        (jnp.asarray(nodes), jnp.asarray(weights)),
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    )
    return checked_finite(jax.tree.map(jnp.multiply, difference, total), "integrated_gradients")


def completeness_error(
    score: Score, inputs: Inputs, attributions: Inputs, *, baseline: Baseline = 0.0
) -> Float[Array, " batch"]:
    """``sum(attributions) - (score(inputs) - score(baseline))`` per example, in the unit of the score.

    Zero for an exact method that satisfies completeness; otherwise the quadrature error. Peers call it the
    convergence delta.

    Args:
        score: maps inputs to [batch].
        inputs: a pytree of floating-point arrays [batch, ...]. For an inner layer, the score and the activation of
            `at_layer`.
        attributions: of the inputs' structure and shapes, before any sum over their dimensions.
        baseline: the one that the attributions were made with.

    Returns:
        [batch].

    Raises:
        ValueError: inputs, score or baseline as for every method; attributions of another structure or other shapes.
    """
    check_score(score, inputs)
    check_like_inputs(attributions, inputs)
    baseline = broadcast_baseline(baseline, inputs)
    totals = [jnp.sum(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(attributions)]
    return sum(totals) - (score(inputs) - score(baseline))


def quadrature_rule(name: Quadrature, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (float64, [num_steps] each) of a rule on [0, 1]; weights sum to 1.

    Raises:
        ValueError: an unknown rule; a num_steps that is not a whole number of at least 1 (2 for the trapezoid rule).
    """
    check_positive(num_steps=num_steps)
    if name == "gauss_legendre":
        nodes, weights = _gauss_legendre(num_steps)
        return (nodes + 1) / 2, weights / 2
    equal = np.full(num_steps, 1 / num_steps)
    if name == "midpoint":
        return (np.arange(num_steps) + 0.5) / num_steps, equal
    if name == "left":
        return np.arange(num_steps) / num_steps, equal
    if name == "right":
        return np.arange(1, num_steps + 1) / num_steps, equal
    if name == "trapezoid":
        if num_steps < 2:
            raise ValueError(f"the trapezoid rule needs num_steps >= 2: got {num_steps}")
        weights = np.full(num_steps, 1 / (num_steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, num_steps), weights
    raise ValueError(f"unknown quadrature {name!r}: expected gauss_legendre, midpoint, trapezoid, left or right")


@functools.lru_cache(maxsize=16)
def _gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1] by Newton's method on the Legendre polynomial, in time count^2.

    numpy's `leggauss` takes the eigenvalues of a full matrix: minutes, and a gigabyte, for the 10,000 nodes of a long
    path.
    """
    nodes = np.cos(np.pi * (np.arange(count, 0, -1) - 0.25) / (count + 0.5))  # Tricomi's approximation
    for _ in range(4):
        value, slope = _legendre(nodes, count)
        nodes = nodes - value / slope
    _, slope = _legendre(nodes, count)
    return nodes, 2 / ((1 - nodes**2) * slope**2)


def _legendre(x: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """``P_n(x)`` and its derivative, by the recurrence ``k P_k = (2 k - 1) x P_(k-1) - (k - 1) P_(k-2)``."""
    before, value = np.ones_like(x), x
    for k in range(2, degree + 1):
        before, value = value, ((2 * k - 1) * x * value - (k - 1) * before) / k
    return value, degree * (before - x * value) / (1 - x**2)
