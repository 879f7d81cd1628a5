"""Propagation of contributions through any JAX function: the rules engine under DeepLIFT and LRP.

Such a method is a backward pass with rules of its own: each operation hands its output's multiplier (contribution per
unit of value) to its inputs, along the gradient where it is linear, along something else where it is not. The engine
interprets the function's jaxpr on `Node`s, values that depend on the attributed inputs (beside their counterparts at a
reference, if the method has one); whatever does not depend on them stays a plain array and counts as a weight. The
rules are attached as derivatives, so that the multipliers of the inputs are one `jax.vjp` away, with the memory of a
gradient, inside scan, remat and cond, under jit and vmap.

What an equation is, `KINDS` says; what a method does with a kind, a subclass of `Propagation`. Two things are
recognised across equations, since the rules of their parts would misjudge the whole:

- An elementwise function written with several primitives (gelu, x * sigmoid(x), leaky_relu by where, softplus): every
  value that is a function of one `Node` alone, its root, element by element, is linked to that root directly.
- softmax, log_softmax and logsumexp, with or without the shift by a maximum that carries no gradient, masked or
  weighted: `softmax_recognition`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxcore.transforms.jaxprs import Loops, Outcome, Rules, bind, enters, evaluate, result_type, trace
from jaxcore.transforms.propagation_nodes import Composite, Node, bind_nodes, routed, slope, without_derivative
from jaxcore.transforms.softmax_recognition import Stage, completed_softmax, next_stage

Rule: TypeAlias = "str | Callable[[core.JaxprEqn, Sequence[Any]], Sequence[Any]]"
"""What a primitive is: a kind ("linear", "elementwise", "gradient", "constant"), or a function
(equation, operands) -> results on `Node`s and plain arrays."""


def _of_kind(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


KINDS: dict[str, Rule] = {
    **_of_kind(
        "linear",
        "add sub neg add_any reduce_sum cumsum reduce_window_sum reshape broadcast_in_dim transpose squeeze "
        "expand_dims slice dynamic_slice dynamic_update_slice gather scatter scatter_add scatter-add concatenate stack "
        "pad rev split copy copy_p convert_element_type reduce_precision name sharding_constraint mesh_cast reshard "
        "device_put optimization_barrier psum psum_invariant pvary pcast all_gather all_gather_invariant "
        "reduce_scatter all_to_all ppermute pbroadcast stop_gradient",
    ),
    **_of_kind(
        "elementwise",
        "exp exp2 expm1 log log1p tanh logistic erf erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh abs "
        "sign floor ceil round integer_pow square pow cbrt clamp atan2 rem lgamma digamma log2 "
        "one_minus_square polynomial",
    ),
    **_of_kind("normaliser", "sqrt rsqrt"),
    **_of_kind("product", "mul"),
    **_of_kind("matrix_product", "dot_general conv_general_dilated"),
    **_of_kind("quotient", "div"),
    **_of_kind("extremum", "max min reduce_max reduce_min reduce_window_max reduce_window_min"),
    **_of_kind("selection", "select_n"),
}
"""What the primitives of JAX are. `register_rule` adds to it."""

_PUBLIC_KINDS = ("linear", "elementwise", "gradient", "constant")
_ELEMENTWISE_LINEAR = frozenset(
    _of_kind("linear", "add sub neg add_any mul div copy convert_element_type reduce_precision name select_n")
)
_PREDICATES = frozenset(_of_kind("constant", "eq ne lt le gt ge eq_to lt_to le_to and or not xor is_finite"))


def register_rule(primitive: str, rule: Rule) -> None:
    """Say once, for every propagation method, what a primitive is.

    Args:
        primitive: its name in a jaxpr (`jax.make_jaxpr(f)(x)` shows it; the error for an unknown one gives it).
        rule: "linear" (jointly in all operands that depend on the inputs), "elementwise" (the method's rule for
            activation functions), "gradient" (its ordinary derivative), "constant" (nothing is propagated), or a
            function (equation, operands) -> results, with a `Node` for each value that depends on the inputs.

    Raises:
        ValueError: another kind.
    """
    KINDS[primitive] = _checked_rule(primitive, rule)


def _checked_rule(primitive: str, rule: Rule) -> Rule:
    if not callable(rule) and rule not in _PUBLIC_KINDS:
        raise ValueError(f"the rule of {primitive!r} must be a function or one of {_PUBLIC_KINDS}: got {rule!r}")
    return rule


class Propagation:
    """What a method does at each kind of equation; subclasses override. `name` appears in its errors."""

    name = "propagation"

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self.rules = {name: _checked_rule(name, rule) for name, rule in (rules or {}).items()}

    # What a subclass decides.

    def settled(self, node: Node) -> Node:
        """The node as everything but the next linear equation sees it."""
        return node

    def probes(self, root: Node) -> tuple[Any, ...]:
        """Further points at which functions of `root` are to be evaluated."""
        return ()

    def passes(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> bool:
        """Whether a linear equation takes its operands unsettled: it belongs to the linear layer before it."""
        return False

    def starts_root(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> bool:
        """Whether the result of an elementwise linear equation is a root instead of a function of an earlier one."""
        return False

    def link(self, node: Node) -> Any:
        """The node's value with a derivative towards its root."""
        raise NotImplementedError

    def linear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """An equation jointly linear in all operands that are nodes."""
        return bind_nodes(eqn, operands)

    def weighted(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """dot_general or conv of a node and a plain array."""
        return self.linear(eqn, operands)

    def bilinear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """A product (mul, dot_general, conv) of two nodes."""
        raise NotImplementedError

    def quotient(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """A node divided by another."""
        raise NotImplementedError

    def normaliser(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """sqrt, rsqrt."""
        return self.elementwise(eqn, operands)

    def extremum(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """The maximum or minimum over an axis, over windows, or of two nodes."""
        raise NotImplementedError

    def selection(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """select_n whose predicate is a node, and not a function of the same root as the cases."""
        raise NotImplementedError

    def softmax_weights(self, stage: Stage) -> Any:
        """L in the derivative of softmax, ``u_i L_i ct_i - w_i L_i sum_j u_j L_j ct_j / sum_j w_j L_j``."""
        raise NotImplementedError

    # The engine.

    def multipliers(self, score: Callable[[Any], Any], inputs: Any, references: Any = None) -> Any:
        """The multiplier of each input coordinate: the derivative of ``sum(score)`` under the method's rules."""
        if references is None:
            references = jax.tree.map(lambda x: None, inputs)

        def run(inputs: Any) -> Any:
            traced = trace(score, (inputs,), {})
            pairs = zip(traced.arrays, jax.tree.leaves(references, is_leaf=lambda x: x is None), strict=True)
            nodes = [Node(jnp.asarray(value), reference) for value, reference in pairs]
            (result,), _ = evaluate(traced.jaxpr, nodes, self._interpretation())
            result = self._settle(result)
            return result.value if isinstance(result, Node) else result

        values, pull = jax.vjp(run, inputs)
        return pull(jnp.ones_like(values))[0]

    def _interpretation(self) -> Rules:
        def label(eqn: core.JaxprEqn) -> str | None:
            name = eqn.primitive.name
            return name if name in self.rules or not enters(eqn) else None

        return Rules(label, self._apply, rewrites=True, lift=self._lift)

    def _lift(self, value: Any) -> Node:
        if isinstance(value, Node):
            node = self.settled(value)
            return Node(node.value, node.reference)
        value = jnp.asarray(value)
        return Node(value, value if self._has_reference else None)

    _has_reference = False

    def _settle(self, operand: Any) -> Any:
        return self.settled(operand) if isinstance(operand, Node) else operand

    def _apply(self, eqn: core.JaxprEqn, operands: Sequence[Any], loops: Loops) -> Outcome:
        name = eqn.primitive.name
        finished = completed_softmax(eqn, operands) if name not in self.rules else None
        if finished is not None:
            return [self._softmax(eqn, operands, finished)], {}
        stage = next_stage(eqn, operands)
        rule = self.rules.get(name, KINDS.get(name))
        if callable(rule):
            return list(rule(eqn, [self._settle(x) for x in operands])), {}
        if not jnp.issubdtype(result_type(eqn).dtype, jnp.floating):
            return self._discrete(eqn, [self._settle(x) for x in operands]), {}
        if rule is None:
            raise ValueError(
                f"{self.name} has no rule for the primitive {name!r}: say what it is with "
                f"register_rule({name!r}, kind), or for this call with rules={{{name!r}: kind}}; a kind is one of "
                f"{', '.join(_PUBLIC_KINDS)}, or a function of the equation and its operands"
            )
        results = getattr(self, f"_{rule}")(eqn, list(operands))
        if stage is not None and isinstance(results[0], Node):
            results[0].softmax = dataclasses.replace(stage, node=results[0])
        return results, {}

    def _linear(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        if self.passes(eqn, operands):
            return self.linear(eqn, operands)
        operands = [self._settle(x) for x in operands]
        root = _shared_root(eqn, operands) if eqn.primitive.name in _ELEMENTWISE_LINEAR else None
        if root is not None and not all(x.is_floating for x in operands if isinstance(x, Node)):
            return [self._composed(eqn, operands, root)]  # a number made of a predicate: a step function
        results = self.linear(eqn, operands)
        if root is not None and not self.starts_root(eqn, operands):
            is_linear = all(x.composite is None or x.composite.linear for x in operands if isinstance(x, Node))
            results[0].composite = self._composite(eqn, operands, root, is_linear)
        return results

    def _elementwise(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        return self.elementwise(eqn, operands)

    def elementwise(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """The method's rule for activation functions, for an equation whose nodes have one root."""
        operands = self._spread(eqn, operands)
        root = _shared_root(eqn, operands)
        if root is None:
            raise ValueError(
                f"{self.name} has no rule for {eqn.primitive.name!r} of several values that depend on the inputs: pass "
                f"rules={{{eqn.primitive.name!r}: 'gradient'}} to take its ordinary derivative"
            )
        return [self._composed(eqn, operands, root)]

    def _normaliser(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        return self.normaliser(eqn, [self._settle(x) for x in operands])

    def _gradient(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        return bind_nodes(eqn, [self._settle(x) for x in operands])

    def _constant(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        nodes = self._gradient(eqn, operands)
        return [Node(without_derivative(n.value), n.reference) for n in nodes]

    def _product(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        if not all(isinstance(x, Node) for x in operands):
            return self._linear(eqn, operands)
        operands = self._spread(eqn, operands)
        root = _shared_root(eqn, operands)
        return self.bilinear(eqn, operands) if root is None else [self._composed(eqn, operands, root)]

    def _matrix_product(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        operands = [self._settle(x) for x in operands]
        is_bilinear = all(isinstance(x, Node) for x in operands)
        return (self.bilinear if is_bilinear else self.weighted)(eqn, operands)

    def _quotient(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        if not isinstance(operands[1], Node):
            return self._linear(eqn, operands)
        operands = self._spread(eqn, operands)
        root = _shared_root(eqn, operands)
        return self.quotient(eqn, operands) if root is None else [self._composed(eqn, operands, root)]

    def _extremum(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        if eqn.primitive.name not in ("max", "min"):
            return self.extremum(eqn, [self._settle(x) for x in operands])
        operands = self._spread(eqn, operands)
        root = _shared_root(eqn, operands)
        return self.extremum(eqn, operands) if root is None else [self._composed(eqn, operands, root)]

    def _selection(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        if not isinstance(operands[0], Node):
            return self._linear(eqn, operands)
        operands = [self._settle(x) for x in operands]
        root = _shared_root(eqn, operands)
        return self.selection(eqn, operands) if root is None else [self._composed(eqn, operands, root)]

    def _discrete(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        nodes = bind_nodes(eqn, operands)
        if eqn.primitive.name in _PREDICATES:
            root = _shared_root(eqn, operands)
            if root is not None:
                nodes[0].composite = self._composite(eqn, operands, root, linear=False)
        return nodes

    def _softmax(self, eqn: core.JaxprEqn, operands: Sequence[Any], stage: Stage) -> Node:
        (node,) = bind_nodes(eqn, operands)
        residuals = self.softmax_weights(stage), stage.weight, stage.numerator_weight
        pull = functools.partial(_pull_softmax, eqn.primitive.name, stage.axes)
        node.value = routed(pull, (self.settled(stage.source).value,), residuals, node.value)
        return node

    def _composed(self, eqn: core.JaxprEqn, operands: Sequence[Any], root: Node) -> Node:
        (node,) = bind_nodes(eqn, operands)
        node.composite = self._composite(eqn, operands, root, linear=False)
        node.value = self.link(node)
        return node

    def _composite(self, eqn: core.JaxprEqn, operands: Sequence[Any], root: Node, linear: bool) -> Composite:
        points = self.probes(root)

        def at_probe(operand: Any, i: int) -> Any:
            if not isinstance(operand, Node):
                return operand
            return points[i] if operand.composite is None else operand.composite.probes[i]

        probes = tuple(bind(eqn, [at_probe(x, i) for x in operands])[0] for i in range(len(points)))
        return Composite(root, linear, functools.cache(lambda: slope(eqn, operands)), probes)

    def _spread(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """Settled operands, the nodes among them broadcast to the result's shape."""
        shape = result_type(eqn).shape

        def spread(operand: Any) -> Any:
            operand = self._settle(operand)
            if not isinstance(operand, Node) or operand.shape == shape:
                return operand
            value, reference, parts = jax.tree.map(
                lambda x: jnp.broadcast_to(x, shape), (operand.value, operand.reference, operand.parts)
            )
            return Node(value, reference, parts=parts)

        return [spread(operand) for operand in operands]


def _pull_softmax(final: str, axes: Any, residuals: Any, cotangent: Any) -> tuple[Any]:
    weights, weight, numerator_weight = residuals
    summed = weights if weight is None else weights * weight
    share = summed / jnp.sum(summed, axis=axes, keepdims=True)
    if final == "add":  # logsumexp
        kept = tuple(1 if i in axes else n for i, n in enumerate(weights.shape))
        return (cotangent.reshape(kept) * share,)
    if final == "sub":  # log_softmax
        return (cotangent - share * jnp.sum(cotangent, axis=axes, keepdims=True),)
    gained = cotangent * (weights if numerator_weight is None else weights * numerator_weight)
    return (gained - share * jnp.sum(gained, axis=axes, keepdims=True),)


def _shared_root(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Node | None:
    """The root of which all operands are elementwise functions, if there is one, of the shape of the result."""
    roots = [x.root for x in operands if isinstance(x, Node)]
    shape = result_type(eqn).shape
    shapes = [np.shape(x.value if isinstance(x, Node) else x) for x in operands]
    aligned = all(s == shape for s, x in zip(shapes, operands, strict=True) if isinstance(x, Node))
    if not aligned or any(root is not roots[0] for root in roots) or roots[0].shape != shape:
        return None
    return roots[0] if roots[0].is_floating else None
