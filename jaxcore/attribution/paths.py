"""Integrated gradients along other paths than the straight line: a path is a function, or a sequence of points.

| path | function |
|---|---|
| any differentiable ``alpha -> inputs`` | `path_integrated_gradients` |
| any sequence of points, joined by lines | `polyline_integrated_gradients` |
| the straight line, as a path | `straight_line` |
| each token alone, from its baseline | `sequential_integrated_gradients` |
| from a blurred image to the image | `blur_path`, `blur_integrated_gradients` |

Paths chosen by the model or the vocabulary on the way: `guided_path`, `discretised_path`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

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
    check_inputs,
    check_positive,
    check_score,
    checked_finite,
)
from jaxcore.attribution.integrated_gradients import Quadrature, quadrature_rule

Path: TypeAlias = Callable[[Float[Array, ""]], Inputs]
"""Maps alpha in [0, 1] to inputs, differentiably: alpha = 0 is the baseline, alpha = 1 the input explained."""


def path_integrated_gradients(
    score: Score,
    path: Path,
    *,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """The path integral of the score's gradient, per coordinate i.

        PathIG_i = int_0^1 dscore/dx_i (path(a)) * dpath_i/da (a) da

    The path's derivative is exact (forward mode). Completeness: attributions sum to ``score(path(1)) -
    score(path(0))``, up to quadrature error. A path with kinks converges slowly: `polyline_integrated_gradients`.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        path: maps alpha, a scalar in [0, 1], to a pytree of floating-point arrays [batch, ...].
        num_steps: the number of gradient evaluations.
        quadrature: see `integrated_gradients`.
        chunk_size: steps evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        In units of the score, of the structure and shapes of ``path(a)``, in float32 (float64).

    Raises:
        ValueError: a path that does not give float arrays of one batch, a score that is not [batch], num_steps < 1,
            gradients that are not finite.

    Source: Sundararajan et al. 2017, section 3.
    """
    check_score(score, path(jnp.ones(())))
    check_positive(num_steps=num_steps, chunk_size=chunk_size)

    def term(node_and_weight: tuple[Array, Array]) -> Inputs:
        node, weight = node_and_weight
        point, velocity = jax.jvp(path, (node,), (jnp.ones_like(node),))
        return _along(score, point, velocity, weight)

    nodes, weights = map(jnp.asarray, quadrature_rule(quadrature, num_steps))
    total = chunked_sum(term, (nodes, weights), chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "path_integrated_gradients")


def polyline_integrated_gradients(
    score: Score,
    points: Inputs,
    *,
    num_steps: int = 1,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """The path integral of the score's gradient along straight lines between successive points.

        sum_k (p_{k+1} - p_k) * int_0^1 grad score(p_k + a (p_{k+1} - p_k)) da

    Args:
        points: a pytree of floating-point arrays [num_points, batch, ...], from the baseline to the input explained.
        num_steps: gradient evaluations on each of the num_points - 1 lines.
        quadrature: the rule on each line; "left" with one step takes the gradient at p_k alone.
        Others, returns, errors: see `path_integrated_gradients`.
    """
    num_points = check_inputs(points)
    if num_points < 2:
        raise ValueError(f"points must be at least 2, [num_points, batch, ...]: got {num_points}")
    check_score(score, jax.tree.map(lambda p: p[0], points))
    check_positive(num_steps=num_steps, chunk_size=chunk_size)

    def term(item: tuple[Array, Array, Array]) -> Inputs:
        line, node, weight = item
        step = jax.tree.map(lambda p: (p[line + 1] - p[line]).astype(accumulation_dtype(p)), points)
        point = jax.tree.map(lambda p, s: (p[line] + node * s).astype(p.dtype), points, step)
        return _along(score, point, step, weight)

    items = _repeated(num_points - 1, *quadrature_rule(quadrature, num_steps))
    points = jax.tree.map(jnp.asarray, points)
    total = chunked_sum(term, items, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "polyline_integrated_gradients")


def straight_line(inputs: Inputs, baseline: Baseline = 0.0) -> Path:
    """``a -> x' + a (x - x')``: the path of `integrated_gradients`, to build others from."""
    start = broadcast_baseline(baseline, inputs)

    def path(alpha: Array) -> Inputs:
        difference = lambda x, b: (x - b).astype(accumulation_dtype(x))  # noqa: E731
        return jax.tree.map(lambda x, b: (b + alpha * difference(x, b)).astype(b.dtype), inputs, start)

    return path


def sequential_integrated_gradients(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 20,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Integrated gradients of each token alone, from its baseline to itself, while all others stay.

        SIG_i = (x_i - x'_i) * int_0^1 grad_i score(x_1, .., x'_i + a (x_i - x'_i), .., x_T) da

    Every point of the path is a text with at most one word away from the original. Complete for each token: its
    attributions sum to ``score(x) - score(x with token i at its baseline)``; not over tokens together.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: embeddings [batch, tokens, ...]; leaves of a pytree share their tokens, which move together.
        baseline: x', broadcast against `inputs`; the source takes the embedding of the mask token.
        num_steps: gradient evaluations for each token: tokens x num_steps in all.
        quadrature: see `integrated_gradients`.
        chunk_size: steps evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        In units of the score, of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `integrated_gradients`; inputs without a token axis, leaves with different numbers of tokens.

    Source: Enguehard 2023 (sequential integrated gradients).
    """
    check_score(score, inputs)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    start = broadcast_baseline(baseline, inputs)
    num_tokens = _num_tokens(inputs)

    def term(item: tuple[Array, Array, Array]) -> Inputs:
        token, node, weight = item

        def step_of(x: Array, b: Array) -> Array:
            alone = (jnp.arange(num_tokens) == token).reshape(1, num_tokens, *[1] * (x.ndim - 2))
            return jnp.where(alone, (x - b).astype(accumulation_dtype(x)), 0)

        step = jax.tree.map(step_of, inputs, start)
        point = jax.tree.map(lambda x, s: (x - (1 - node) * s).astype(x.dtype), inputs, step)
        return _along(score, point, step, weight)

    items = _repeated(num_tokens, *quadrature_rule(quadrature, num_steps))
    total = chunked_sum(term, items, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "sequential_integrated_gradients")


def blur_integrated_gradients(
    score: Score,
    images: Inputs,
    *,
    max_sigma: float = 50.0,
    axes: Sequence[int] = (1, 2),
    num_steps: int = 100,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Integrated gradients from a blurred image to the image, through all degrees of blur: no baseline colour.

        BlurIG = int_0^1 dscore/dx (L(s)) * dL(s)/da da,    s = (1 - a) max_sigma,    L(s) = Gaussian_s * x

    Complete with respect to the most blurred image: the sum is ``score(x) - score(L(max_sigma))``.

    Args:
        images: [batch, height, width, channels], or a pytree of such arrays.
        max_sigma: standard deviation of the strongest blur, in pixels (50 in the source).
        axes: the axes that are blurred, see `blur_path`.
        Others, returns, errors: see `path_integrated_gradients`.

    Source: Xu et al. 2020, "Attribution in Scale and Space" (blur integrated gradients).
    """
    check_score(score, images)
    path = blur_path(images, max_sigma=max_sigma, axes=axes)
    return path_integrated_gradients(
        score, path, num_steps=num_steps, quadrature=quadrature, chunk_size=chunk_size, memory_budget=memory_budget
    )


def blur_path(images: Inputs, *, max_sigma: float, axes: Sequence[int] = (1, 2)) -> Path:
    """``a -> images`` blurred by a Gaussian of standard deviation ``(1 - a) max_sigma`` pixels.

    Blurring multiplies the coefficient of frequency w along an axis by ``exp(-(sigma w)^2 / 2)``, in the basis of
    cosines. That is the solution of the heat equation with borders that reflect: blurs compose, the mean colour
    stays, no window is cut off, and the derivative with respect to sigma is exact down to sigma = 0.

    Raises:
        ValueError: max_sigma <= 0, axes that the images do not have (axis 0 is the batch).
    """
    check_inputs(images)
    if not max_sigma > 0:
        raise ValueError(f"max_sigma must be a positive number of pixels: got {max_sigma}")
    for x in jax.tree.leaves(images):
        if not axes or any(not 0 < axis < x.ndim for axis in axes):
            raise ValueError(f"axes to blur must lie in 1 to {x.ndim - 1} for images {list(x.shape)}: got {axes}")

    def path(alpha: Array) -> Inputs:
        def blurred(x: Array) -> Array:
            values = jnp.asarray(x, accumulation_dtype(x))
            for axis in axes:
                kernel = _gaussian_kernel(x.shape[axis], (1 - alpha) * max_sigma, values.dtype)
                mixed = jnp.tensordot(kernel, values, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
                values = jnp.moveaxis(mixed, 0, axis)
            return values.astype(x.dtype)

        return jax.tree.map(blurred, images)

    return path


def _gaussian_kernel(length: int, sigma: Array, dtype: Any) -> Float[Array, "length length"]:
    """The blur of one axis as a matrix: to cosine coefficients, damped by frequency, and back."""
    frequencies = np.pi * np.arange(length) / length
    basis = np.cos(frequencies[:, None] * (np.arange(length) + 0.5)) * np.sqrt(2 / length)
    basis[0] /= np.sqrt(2)
    damping = jnp.exp(-0.5 * (sigma * frequencies) ** 2).astype(dtype)
    cosines = jnp.asarray(basis, dtype)
    return jnp.matmul(cosines.T * damping, cosines, precision=jax.lax.Precision.HIGHEST)


def _along(score: Score, point: Inputs, direction: Inputs, weight: Array) -> Inputs:
    """``weight * direction * grad score(point)``, in the accumulation dtype."""
    gradient = jax.grad(lambda x: jnp.sum(score(x)))(point)

    def product(g: Array, d: Array) -> Array:
        dtype = accumulation_dtype(g)
        return weight.astype(dtype) * g.astype(dtype) * d.astype(dtype)

    return jax.tree.map(product, gradient, direction)


def _repeated(count: int, nodes: np.ndarray, weights: np.ndarray) -> tuple[Array, Array, Array]:
    """Every (index, node, weight) for indices 0 to count - 1."""
    index = np.repeat(np.arange(count), len(nodes))
    return jnp.asarray(index), jnp.asarray(np.tile(nodes, count)), jnp.asarray(np.tile(weights, count))


def _num_tokens(inputs: Inputs) -> int:
    leaves = jax.tree.leaves(inputs)
    if any(leaf.ndim < 2 for leaf in leaves):
        raise ValueError(f"inputs must be [batch, tokens, ...]: got shapes {[leaf.shape for leaf in leaves]}")
    counts = sorted({leaf.shape[1] for leaf in leaves})
    if len(counts) > 1:
        raise ValueError(f"all inputs must have one number of tokens (axis 1), which move together: got {counts}")
    return counts[0]
