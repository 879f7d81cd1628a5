"""The values that a propagation method computes with, and derivatives that carry its rules."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcore.transforms.jaxprs import bind, result_type
from jaxcore.transforms.softmax_recognition import Stage


@dataclasses.dataclass(eq=False)
class Node:
    """A value that depends on the attributed inputs; a pytree of `value` and `reference` alone.

    value: differentiable; its derivative carries the method's rules.
    reference: the value at the reference input, None for methods without one. It takes no part in the derivative.
    composite: set if the value is an elementwise function of another node.
    softmax: set if the value is a step of a softmax.
    parts: what a method knows besides (the two signs of a difference, the terms of a linear layer).
    """

    value: Any
    reference: Any = None
    composite: "Composite | None" = None
    softmax: Stage | None = None
    parts: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def is_floating(self) -> bool:
        return jnp.issubdtype(self.value.dtype, jnp.floating)

    @property
    def root(self) -> "Node":
        return self if self.composite is None else self.composite.root


jax.tree_util.register_pytree_node(Node, lambda n: ((n.value, n.reference), None), lambda _, leaves: Node(*leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class Composite:
    """How a node depends on its root, element by element.

    linear: whether only linear equations lie between.
    slope: the derivative at the value (a function without arguments, evaluated if it is needed).
    probes: the function's values at the method's further points, see `Propagation.probes`.
    """

    root: Node
    linear: bool
    slope: Callable[[], Any]
    probes: tuple[Any, ...]


def bind_nodes(eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The equation applied to the values and to the references: its ordinary derivative, as `Node`s."""
    nodes = [x for x in operands if isinstance(x, Node)]
    values = bind(eqn, [x.value if isinstance(x, Node) else x for x in operands])
    if all(x.reference is None for x in nodes):
        return [Node(value) for value in values]
    references = bind(eqn, [x.reference if isinstance(x, Node) else x for x in operands])
    return [Node(value, reference) for value, reference in zip(values, references, strict=True)]


def as_function(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Callable[..., Any]:
    """The equation's one result as a function of the values of its nodes, and of the plain operands that follow."""
    is_node = [isinstance(x, Node) for x in operands]

    def function(nodes: Sequence[Any], arrays: Sequence[Any]) -> Any:
        remaining, others = iter(nodes), iter(arrays)
        return bind(eqn, [next(remaining) if node else next(others) for node in is_node])[0]

    return function


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def routed(pull: Callable[..., tuple[Any, ...]], inputs: tuple[Any, ...], residuals: Any, output: Any) -> Any:
    """`output`, whose derivative goes to `inputs` alone: their cotangents are ``pull(residuals, cotangent)``."""
    return output


def _routed_forward(pull: Any, inputs: Any, residuals: Any, output: Any) -> Any:
    return output, (residuals, tuple(jnp.zeros((0,), x.dtype) for x in inputs))


def _routed_backward(pull: Any, saved: Any, cotangent: Any) -> Any:
    residuals, inputs = saved
    cotangents = pull(residuals, cotangent)
    return tuple(c.astype(x.dtype) for c, x in zip(cotangents, inputs, strict=True)), None, None


routed.defvjp(_routed_forward, _routed_backward)


def scaled(inputs: Sequence[Any], multipliers: Sequence[Any], output: Any) -> Any:
    """`output`, whose derivative towards each of `inputs` (of its shape) is the given multiplier."""
    return routed(_pull_scaled, tuple(inputs), tuple(multipliers), output)


def _pull_scaled(multipliers: Any, cotangent: Any) -> tuple[Any, ...]:
    return tuple(cotangent * multiplier for multiplier in multipliers)


def without_derivative(value: Any) -> Any:
    """The value, which propagates nothing (but remains differentiable with respect to a model's parameters)."""
    return routed(lambda residuals, cotangent: (), (), (), value)


def slope(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Any:
    """The derivative of an elementwise equation's result with respect to the operands' common root."""
    varying = [isinstance(x, Node) and x.is_floating for x in operands]
    values = [x.value if isinstance(x, Node) else x for x in operands]

    def function(*points: Any) -> Any:
        remaining = iter(points)
        return bind(eqn, [next(remaining) if v else x for v, x in zip(varying, values, strict=True)])[0]

    points = [x for v, x in zip(varying, values, strict=True) if v]
    nodes = [x for v, x in zip(varying, operands, strict=True) if v]
    if not points:
        return jnp.zeros(result_type(eqn).shape, result_type(eqn).dtype)
    slopes = [jnp.ones_like(n.value) if n.composite is None else n.composite.slope() for n in nodes]
    return jax.jvp(function, points, slopes)[1]


def widened(array: Any) -> Any:
    """The array in float32, or in float64 where it is: what differences and quotients are taken in."""
    array = jnp.asarray(array)
    dtype = jnp.promote_types(array.dtype, jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else jnp.float32
    return array.astype(dtype)
