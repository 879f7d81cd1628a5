"""Guided integrated gradients: a path that moves first the features to which the score is least sensitive."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_positive,
    check_score,
    checked_finite,
)


def guided_integrated_gradients(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 50,
    fraction: float = 0.1,
    num_segments: int = 1,
) -> Inputs:
    """Path integrated gradients where each step moves the features with the smallest gradients.

        GIG = sum_k (x_{k+1} - x_k) * (grad score(x_k) + grad score(x_{k+1})) / 2

    From x_k, features move to their final value group by group, smallest ``|grad score(x_k)|`` first, until the step
    has covered its share of the L1 distance between baseline and input; the last group moves part of the way. The
    path avoids regions of high curvature that a straight line would cross. Each step's gradient serves as the end of
    one line and the start of the next, so the trapezoid rule costs one evaluation more than the source's left rule
    and its completeness error falls faster.

    Steps depend on each other: memory is that of one gradient evaluation, whatever num_steps, and there is no chunk.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...]; the features of all leaves are ranked together.
        baseline: x', broadcast against `inputs`.
        num_steps: steps in all, each one gradient evaluation; a multiple of num_segments.
        fraction: the size of a group, as a share of all features of an example.
        num_segments: the path meets the straight line at num_segments - 1 points in between, which bounds its
            deviation from it (the source's anchors).

    Returns:
        In units of the score, of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `integrated_gradients`; a fraction outside (0, 1], num_steps not a multiple of num_segments.

    Source: Kapishnikov et al. 2021, sections 3.2 and 3.3.
    """
    check_score(score, inputs)
    check_positive(num_steps=num_steps, num_segments=num_segments)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], a share of the features: got {fraction}")
    if num_steps % num_segments:
        raise ValueError(f"num_steps must be a multiple of num_segments: got {num_steps} and {num_segments}")
    start, end = _flat(broadcast_baseline(baseline, inputs)), _flat(inputs)
    group_size = int(fraction * (end.shape[1] - 1)) + 1
    steps = num_steps // num_segments

    def gradient_at(point: Array) -> Array:
        return _flat(jax.grad(lambda x: jnp.sum(score(x)))(_unflat(point, inputs)))

    def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple[Array, Array, Array], None]:
        point, gradient, total = carry
        segment, done = index // steps, index % steps
        is_last = segment == num_segments - 1
        target = jnp.where(is_last, end, start + (segment + 1) / num_segments * (end - start)).astype(end.dtype)
        share = jnp.sum(jnp.abs(target - point), axis=1) / (steps - done)
        moved = jnp.where(done == steps - 1, target, _moved(point, target, gradient, share, group_size))
        next_gradient = gradient_at(moved)
        return (moved, next_gradient, total + (gradient + next_gradient) / 2 * (moved - point)), None

    def run(start: Array) -> Array:
        carry = (start, gradient_at(start), jnp.zeros_like(start))
        return jax.lax.scan(step, carry, jnp.arange(num_steps))[0][2]

    values = _unflat(run_compiled(run, start), inputs, cast=False)
    return checked_finite(values, "guided_integrated_gradients")


def _moved(
    point: Float[Array, "batch features"],
    target: Float[Array, "batch features"],
    gradient: Float[Array, "batch features"],
    share: Float[Array, " batch"],
    group_size: int,
) -> Float[Array, "batch features"]:
    """The point after moving an L1 distance of `share` towards the target, smallest gradients first."""
    room = jnp.abs(target - point)
    has_arrived: Bool[Array, "batch features"] = room == 0
    order = jnp.argsort(jnp.where(has_arrived, jnp.inf, jnp.abs(gradient)), axis=1)
    ordered = jnp.take_along_axis(room, order, axis=1)
    padded = jnp.pad(ordered, ((0, 0), (0, -ordered.shape[1] % group_size)))
    capacity = padded.reshape(len(padded), -1, group_size).sum(axis=2)
    before = jnp.cumsum(capacity, axis=1) - capacity
    part = jnp.clip((share[:, None] - before) / jnp.where(capacity > 0, capacity, 1), 0, 1)
    ordered_part = jnp.repeat(part, group_size, axis=1)[:, : room.shape[1]]
    feature_part = jnp.take_along_axis(ordered_part, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(feature_part == 1, target, point + feature_part * (target - point))


def _flat(inputs: Inputs) -> Float[Array, "batch features"]:
    """All leaves of an example in one row, in the accumulation dtype."""
    leaves = jax.tree.leaves(inputs)
    return jnp.concatenate([x.reshape(len(x), -1).astype(accumulation_dtype(x)) for x in leaves], axis=1)


def _unflat(rows: Float[Array, "batch features"], inputs: Inputs, *, cast: bool = True) -> Inputs:
    """The inverse of `_flat`; with `cast`, in the inputs' dtypes."""
    leaves, structure = jax.tree.flatten(inputs)
    parts, offset = [], 0
    for x in leaves:
        width = x.size // max(len(x), 1)
        dtype = x.dtype if cast else accumulation_dtype(x)
        parts.append(rows[:, offset : offset + width].reshape(x.shape).astype(dtype))
        offset += width
    return jax.tree.unflatten(structure, parts)
