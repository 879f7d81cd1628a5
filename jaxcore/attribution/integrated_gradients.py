"""Integrated gradients: how much each input coordinate contributes to a score, relative to a baseline."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcore.attribution.chunking import chunked_sum, fitting_chunk_size

Score = Callable[[Float[Array, "batch *features"]], Float[Array, " batch"]]
Quadrature = Literal["gauss_legendre", "midpoint", "trapezoid"]


def integrated_gradients(
    score: Score,
    inputs: Float[Array, "batch *features"],
    *,
    baseline: Float[Array, "*#features"] | float = 0.0,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch *features"]:
    """Path integral of the score's gradient along the straight line from baseline to input, per coordinate.

        IG(x) = (x - x') * int_0^1 grad score(x' + a (x - x')) da  ~  (x - x') * sum_k w_k grad score(x' + a_k (x - x'))

    Completeness: the attributions of an example sum to ``score(x) - score(x')``, up to quadrature error; see
    `completeness_error`. To attribute an inner layer (token embeddings, say) instead of the input, let `score` run
    the model with that activation replaced: `jaxcore.transforms.intervene`.

    Args:
        score: maps [batch, ...] to [batch]; example b's score may depend on example b only.
        inputs: [batch, ...] floating point.
        baseline: x', broadcast against `inputs` (a scalar, one example's shape, or a whole batch).
        num_steps: K, the number of gradient evaluations.
        quadrature: nodes a_k and weights w_k; Gauss-Legendre is exact for gradients that are polynomials of
            degree 2K - 1 along the path.
        chunk_size: steps evaluated together; by default as many as fit `memory_budget` (see
            `jaxcore.attribution.chunking`), and one at a time inside an enclosing `jit`. To explain many batches
            with one compilation, `jit` the call and give the size.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Attributions of the inputs' shape, in float32.

    Raises:
        ValueError: integer inputs, a baseline that does not broadcast, a score that is not [batch], num_steps < 1.

    Source: Sundararajan et al. 2017, eq. 1 and 3.
    """
    baseline = _check(score, inputs, baseline, num_steps)
    difference = (inputs - baseline).astype(jnp.float32)
    nodes, weights = quadrature_rule(quadrature, num_steps)

    def weighted_gradient(node_and_weight: tuple[Array, Array]) -> Array:
        node, weight = node_and_weight
        point = (baseline + node * difference).astype(inputs.dtype)
        return weight * jax.grad(lambda x: jnp.sum(score(x)))(point).astype(jnp.float32)

    steps = (jnp.asarray(nodes), jnp.asarray(weights))
    if chunk_size is None:
        chunk_size = fitting_chunk_size(weighted_gradient, steps, memory_budget=memory_budget)
    return difference * jax.jit(partial(chunked_sum, weighted_gradient, chunk_size=chunk_size))(steps)


def completeness_error(
    score: Score,
    inputs: Float[Array, "batch *features"],
    attributions: Float[Array, "batch *features"],
    *,
    baseline: Float[Array, "*#features"] | float = 0.0,
) -> Float[Array, " batch"]:
    """``sum(attributions) - (score(inputs) - score(baseline))`` per example, in the unit of the score.

    Zero for an exact method that satisfies completeness; otherwise the quadrature error. Peers call it the
    convergence delta.
    """
    baseline = jnp.broadcast_to(jnp.asarray(baseline, inputs.dtype), inputs.shape)
    total = jnp.sum(attributions, axis=tuple(range(1, attributions.ndim)))
    return total - (score(inputs) - score(baseline))


def quadrature_rule(name: Quadrature, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (float32, [num_steps] each) of a rule on [0, 1]; weights sum to 1."""
    if name == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(num_steps)
        nodes, weights = (nodes + 1) / 2, weights / 2
    elif name == "midpoint":
        nodes, weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    elif name == "trapezoid":
        if num_steps < 2:
            raise ValueError(f"the trapezoid rule needs num_steps >= 2: got {num_steps}")
        nodes, weights = np.linspace(0, 1, num_steps), np.full(num_steps, 1 / (num_steps - 1))
        weights[[0, -1]] /= 2
    else:
        raise ValueError(f"unknown quadrature {name!r}: expected gauss_legendre, midpoint or trapezoid")
    return nodes.astype(np.float32), weights.astype(np.float32)


def _check(score: Score, inputs: Array, baseline: Array | float, num_steps: int) -> Array:
    """The baseline, broadcast; ValueError for anything the method cannot integrate."""
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs must be floating point (attribute embeddings, not token ids): got {inputs.dtype}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1: got {num_steps}")
    shape = jax.eval_shape(score, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)).shape
    if shape != inputs.shape[:1]:
        raise ValueError(f"score must return one number per example, [{inputs.shape[0]}]: got shape {shape}")
    try:
        return jnp.broadcast_to(jnp.asarray(baseline, inputs.dtype), inputs.shape)
    except ValueError as error:
        raise ValueError(
            f"baseline of shape {jnp.shape(baseline)} does not broadcast to inputs of shape {inputs.shape}"
        ) from error
