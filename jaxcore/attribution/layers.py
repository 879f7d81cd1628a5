"""Attribution to a named activation while the input moves from a baseline: conductance and internal influence.

`jaxcore.attribution.combinators.at_layer` turns an activation into the input of any method and holds the rest of the
input fixed. Here the activation follows the input along its path instead. Both rest on `activation_gradient`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    check_positive,
    check_score,
    checked_finite,
)
from jaxcore.attribution.integrated_gradients import Quadrature, quadrature_rule
from jaxcore.attribution.paths import straight_line
from jaxcore.transforms import capture, intervene


class Site(NamedTuple):
    """Where a name occurs: its captured value as shape and dtype, and how many loops stack it (leading axes)."""

    value: jax.ShapeDtypeStruct
    num_loops: int


def activation_site(score: Score, inputs: Inputs, name: str) -> Site:
    """The site of a named activation of ``score(inputs)``; nothing is computed.

    Raises:
        ValueError: a name that does not occur or occurs at several places, one in a loop or a shard_map of which
            `capture` does not give every iteration in its place, a value that is not floating point.
    """
    captured: Any = jax.eval_shape(lambda x: capture(score, name)(x)[1][name], inputs)
    if isinstance(captured, tuple):
        raise ValueError(
            f"{name!r} occurs at {len(captured)} places: attribution needs one (give each place a name of its own)"
        )
    if not jnp.issubdtype(captured.dtype, jnp.floating):
        raise ValueError(f"the activation {name!r} must be floating point to have a gradient: got {captured.dtype}")
    seen: list[tuple[int, tuple[int, ...]]] = []

    def look(value: Array, *, step: tuple[Array, ...] | Array | None = None) -> Array:
        seen.append((0 if step is None else len(step) if isinstance(step, tuple) else 1, value.shape))
        return value

    jax.eval_shape(intervene(score, {name: look}), inputs)
    num_loops, inner = seen[0]
    if captured.shape[num_loops:] != inner or len(captured.shape) != num_loops + len(inner):
        raise ValueError(
            f"{name!r} lies in a while_loop or shard_map, of which capture gives {list(captured.shape)} for a value "
            f"{list(inner)}: name a value outside it, or use a scan"
        )
    return Site(captured, num_loops)


def named_activation(score: Score, name: str) -> Callable[[Inputs], Float[Array, "..."]]:
    """``inputs -> activation`` of a name at one place (see `activation_site`)."""
    return lambda inputs: jnp.asarray(capture(score, name)(inputs)[1][name])


def activation_gradient(score: Score, inputs: Inputs, name: str) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """A named activation h and the gradient of the score with respect to it, in one pass.

        h = h(x),   g = d sum_b score_b(x) / dh

    Args:
        score: maps inputs to [batch].
        inputs: a pytree of floating-point arrays [batch, ...].
        name: a value named with `jax.ad_checkpoint.checkpoint_name`.

    Returns:
        Both as `capture` gives the activation: [batch, ...], or [layers, batch, ...] for a name inside a scan, where
        entry l is the total derivative with respect to layer l's value (through all later layers).

    Raises:
        ValueError: see `activation_site`.
    """
    site = activation_site(score, inputs, name)

    def total(offset: Array) -> tuple[Array, Array]:
        shift = lambda value, *, step=None: value + (offset if step is None else offset[step])  # noqa: E731
        values, captured = capture(intervene(score, {name: shift}), name)(inputs)
        return jnp.sum(values), jnp.asarray(captured[name])

    gradient, activation = jax.grad(total, has_aux=True)(jnp.zeros(site.value.shape, site.value.dtype))
    return activation, gradient


def internal_influence(
    score: Score,
    inputs: Inputs,
    name: str,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "..."]:
    """The score's gradient with respect to a named activation, averaged over the line from baseline to input.

        influence = int_0^1 dscore/dh (x' + a (x - x')) da

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        name: a value named with `jax.ad_checkpoint.checkpoint_name`.
        baseline: x', broadcast against `inputs`.
        num_steps: the number of gradient evaluations.
        quadrature: see `integrated_gradients`.
        chunk_size: steps evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        Score per unit of activation, of the activation's shape (see `activation_gradient`), in float32 (float64).

    Raises:
        ValueError: as `integrated_gradients` and `activation_site`.

    Source: Leino et al. 2018, definition 1, with the uniform distribution over the line as distribution of interest.
    """
    dtype, point = _line(score, inputs, name, baseline)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)

    def weighted_gradient(node_and_weight: tuple[Array, Array]) -> Array:
        node, weight = node_and_weight
        return weight.astype(dtype) * activation_gradient(score, point(node), name)[1].astype(dtype)

    nodes, weights = map(jnp.asarray, quadrature_rule(quadrature, num_steps))
    total = chunked_sum(weighted_gradient, (nodes, weights), chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "internal_influence")


def layer_conductance(
    score: Score,
    inputs: Inputs,
    name: str,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "..."]:
    """How much of integrated gradients flows through each unit of a named activation.

        Cond(h) = int_0^1 dscore/dh (x(a)) * dh/da (x(a)) da,    x(a) = x' + a (x - x')

    The derivative dh/da is exact (forward mode), so the error is the quadrature's alone. A layer through which
    everything flows is complete: its conductances sum to ``score(x) - score(x')``.

    Args, errors: see `internal_influence`. A score with a `jax.custom_vjp` before the layer has no forward mode: use
    `layer_conductance_by_differences`.

    Returns:
        In units of the score, of the activation's shape (see `activation_gradient`), in float32 (float64).

    Source: Dhamdhere et al. 2019, "Conductance".
    """
    dtype, point = _line(score, inputs, name, baseline)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    activation = named_activation(score, name)

    def weighted_flow(node_and_weight: tuple[Array, Array]) -> Array:
        node, weight = node_and_weight
        velocity = jax.jvp(lambda a: activation(point(a)), (node,), (jnp.ones_like(node),))[1]
        gradient = activation_gradient(score, point(node), name)[1]
        return weight.astype(dtype) * gradient.astype(dtype) * velocity.astype(dtype)

    nodes, weights = map(jnp.asarray, quadrature_rule(quadrature, num_steps))
    total = chunked_sum(weighted_flow, (nodes, weights), chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "layer_conductance")


def layer_conductance_by_differences(
    score: Score,
    inputs: Inputs,
    name: str,
    *,
    baseline: Baseline = 0.0,
    num_steps: int = 50,
    quadrature: Quadrature = "trapezoid",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "..."]:
    """`layer_conductance` from differences of the activation between neighbouring points of the line.

        Cond(h) ~ sum_{k=0}^{K-1} dscore/dh (x(a_k)) * (h(x(a_{k+1})) - h(x(a_k)))

    Needs no forward-mode derivative; its error falls as 1/K, that of `layer_conductance` far faster.

    Args:
        num_steps: K, the number of differences.
        quadrature: the rule whose K + 1 nodes are the a_k; the trapezoid rule's reach from 0 to 1.
        Others: see `internal_influence`.

    Source: Shrikumar et al. 2018, section 3 (neuron integrated gradients).
    """
    dtype, point = _line(score, inputs, name, baseline)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    activation = named_activation(score, name)

    def flow(node_and_next: tuple[Array, Array]) -> Array:
        before, gradient = activation_gradient(score, point(node_and_next[0]), name)
        after = activation(point(node_and_next[1]))
        return gradient.astype(dtype) * (after.astype(dtype) - before.astype(dtype))

    nodes = jnp.asarray(quadrature_rule(quadrature, num_steps + 1)[0])
    total = chunked_sum(flow, (nodes[:-1], nodes[1:]), chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(total, "layer_conductance_by_differences")


def _line(score: Score, inputs: Inputs, name: str, baseline: Baseline) -> tuple[Any, Callable[[Array], Inputs]]:
    """The dtype to accumulate the activation in, and the line from the baseline; both checked."""
    check_score(score, inputs)
    line = straight_line(inputs, baseline)
    return jnp.promote_types(activation_site(score, inputs, name).value.dtype, jnp.float32), line
