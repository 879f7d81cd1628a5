"""Layer-wise relevance propagation: a score distributed over the inputs, layer by layer, with conservation."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.input_checks import Inputs, Score, accumulation_dtype, check_score, checked_finite
from jaxcore.transforms.jaxprs import bind, result_type
from jaxcore.transforms.propagation import Propagation, Rule
from jaxcore.transforms.propagation_nodes import (
    Node,
    as_function,
    bind_nodes,
    routed,
    scaled,
    widened,
    without_derivative,
)
from jaxcore.transforms.softmax_recognition import Stage

Bias = Literal["split", "whole", "none"]
"""What a modified rule does with a bias: treat it like a weight, leave it whole (as Captum does), leave it out."""


def _check_range(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0: got {value}")


def _check_bias(bias: str) -> None:
    if bias not in ("split", "whole", "none"):
        raise ValueError(f"unknown bias {bias!r}: expected split, whole or none")


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """``R_j = sum_i x_j w_ij R_i / (z_i + epsilon sign(z_i))``, z = W x + b (Bach et al. 2015)."""

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check_range("epsilon", self.epsilon)

    @property
    def shares(self) -> tuple[float, ...]:
        return (1.0,)

    def terms(self, layer: Callable[[Any, Any], Any], x: Any, weight: Any) -> tuple[Any, ...]:
        return (layer(x, weight),)

    def biases(self, bias: Any) -> tuple[Any, ...]:
        return (bias,)


@dataclasses.dataclass(frozen=True)
class Gamma:
    """Epsilon's rule with ``W + gamma max(W, 0)`` for W: favours positive evidence (Montavon et al. 2019)."""

    gamma: float = 0.25
    epsilon: float = 1e-9
    bias: Bias = "split"

    def __post_init__(self) -> None:
        _check_range("gamma", self.gamma)
        _check_range("epsilon", self.epsilon)
        _check_bias(self.bias)

    @property
    def shares(self) -> tuple[float, ...]:
        return (1.0,)

    def _raised(self, weight: Any) -> Any:
        return weight + self.gamma * jnp.maximum(weight, 0)

    def terms(self, layer: Callable[[Any, Any], Any], x: Any, weight: Any) -> tuple[Any, ...]:
        return (layer(x, self._raised(weight)),)

    def biases(self, bias: Any) -> tuple[Any, ...]:
        return ({"split": self._raised(bias), "whole": bias, "none": jnp.zeros_like(bias)}[self.bias],)


@dataclasses.dataclass(frozen=True)
class AlphaBeta:
    """``R_j = sum_i (alpha (x_j w_ij)+ / z_i+ - beta (x_j w_ij)- / z_i-) R_i``, alpha - beta = 1.

    alpha = 1, beta = 0 is the z+ rule. Where all contributions have one sign, they share the whole of R_i. The bias
    belongs to z+ or z- by its sign ("split"), to z+ ("whole"), or to neither. Source: Bach et al. 2015.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-9
    bias: Bias = "split"

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise ValueError(f"alpha - beta must be 1 and beta at least 0: got alpha={self.alpha}, beta={self.beta}")
        _check_range("epsilon", self.epsilon)
        _check_bias(self.bias)

    @property
    def shares(self) -> tuple[float, ...]:
        return (self.alpha, -self.beta) if self.beta else (self.alpha,)

    def terms(self, layer: Callable[[Any, Any], Any], x: Any, weight: Any) -> tuple[Any, ...]:
        up, down = jnp.where(x > 0, x, 0), jnp.where(x < 0, x, 0)
        raising, lowering = jnp.maximum(weight, 0), jnp.minimum(weight, 0)
        positive = layer(up, raising) + layer(down, lowering)
        return (positive, layer(up, lowering) + layer(down, raising)) if self.beta else (positive,)

    def biases(self, bias: Any) -> tuple[Any, ...]:
        none = jnp.zeros_like(bias)
        split = jnp.maximum(bias, 0), jnp.minimum(bias, 0)
        return {"split": split, "whole": (bias, none), "none": (none, none)}[self.bias][: len(self.shares)]


LinearRule: TypeAlias = Epsilon | Gamma | AlphaBeta


def lrp(
    score: Score,
    inputs: Inputs,
    *,
    linear: LinearRule | Mapping[str, LinearRule] = Epsilon(),
    softmax: Literal["gradient", "constant"] = "gradient",
    rules: Mapping[str, Rule] | None = None,
) -> Inputs:
    """The relevance of each input coordinate: the score, redistributed backwards from layer to layer.

        linear z = W x + b          by `linear`: Epsilon, Gamma or AlphaBeta
        activation y = f(x)         R_x = R_y
        product, attention a b      R_y / 2 to each of a and b
        normalisation x / sqrt(v)   sqrt(v) counts as a constant, as a divisor and as the factor 1 / sqrt(v)
        softmax                     R_x = x (R_y - y sum(R_y)), its Taylor expansion at x
        maximum                     all to the largest

    With these defaults this is AttnLRP. A layer is a matrix product or convolution with an array that does not depend
    on the inputs, and the bias added to it; sums, means and skip connections pass relevance in proportion.

    Conservation: relevance sums to the score, less what biases, epsilon and softmax (its expansion has a constant term)
    absorb. With softmax="constant", attention weights count as weights (CP-LRP, Ali et al. 2022), and a network
    without biases conserves the score up to epsilon.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only. Best a logit.
        inputs: a pytree of floating-point arrays [batch, ...].
        linear: the rule of all layers, or of each kind: {"dot_general": ..., "conv_general_dilated": ...} (Epsilon for
            one that is missing).
        softmax: "gradient" or "constant".
        rules: what primitives are that have no rule, or are to have another; see `register_rule`.

    Returns:
        Relevance of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, a score that is not [batch], an unknown option; a nonlinear primitive without a rule
            (the message names it and says how to register one); a cond or while that depends on the inputs; values that
            are not finite.

    Source: Bach et al. 2015; Achtibat et al. 2024, section 3 (AttnLRP).
    """
    check_score(score, inputs)
    if softmax not in ("gradient", "constant"):
        raise ValueError(f"unknown softmax {softmax!r}: expected gradient or constant")
    method = _Relevance(_linear_rules(linear), softmax, rules)

    def relevance(inputs: Inputs) -> Inputs:
        def product(multiplier: Any, x: Any) -> Any:
            return multiplier.astype(accumulation_dtype(x)) * x.astype(accumulation_dtype(x))

        return jax.tree.map(product, method.multipliers(score, inputs), inputs)

    return checked_finite(run_compiled(relevance, inputs), "lrp")


def _linear_rules(linear: Any) -> dict[str, LinearRule]:
    layers = ("dot_general", "conv_general_dilated")
    given = dict(linear) if isinstance(linear, Mapping) else dict.fromkeys(layers, linear)
    unknown = [name for name in given if name not in layers]
    if unknown:
        raise ValueError(f"linear has no layers named {unknown}: expected {' or '.join(layers)}")
    for rule in given.values():
        if not isinstance(rule, Epsilon | Gamma | AlphaBeta):
            raise ValueError(f"linear must hold Epsilon, Gamma or AlphaBeta rules: got a {type(rule).__name__}")
    return {name: given.get(name, Epsilon()) for name in layers}


@jax.tree_util.register_static
class _Normaliser(enum.Enum):
    """What a node of one's own normalisation is: a root, or the inverse of one, by which values are multiplied."""

    ROOT = enum.auto()
    INVERSE_ROOT = enum.auto()


@dataclasses.dataclass
class _Layer:
    """The linear layer that a node is the output of so far: its rule's terms, differentiable, and its settled node."""

    rule: LinearRule
    terms: tuple[Any, ...]
    settled: Node | None = None


class _Relevance(Propagation):
    """Multipliers are relevance per unit of value, R / x."""

    name = "lrp"

    def __init__(self, layers: dict[str, LinearRule], softmax: str, rules: Mapping[str, Rule] | None) -> None:
        super().__init__(rules)
        self.layers = layers
        self.softmax = softmax

    def settled(self, node: Node) -> Node:
        """A linear layer's output, whose relevance goes to the terms of its rule by their shares."""
        layer = node.parts
        if not isinstance(layer, _Layer):
            return node
        if layer.settled is None:
            value, epsilon = widened(node.value), layer.rule.epsilon
            shares: tuple[Any, ...] = layer.rule.shares
            if len(shares) == 2:  # where all contributions have one sign, they share the whole relevance
                shares = tuple(
                    jnp.where(other == 0, 1.0, share) for share, other in zip(shares, layer.terms[::-1], strict=True)
                )

            def multiplier(share: Any, term: Any) -> Any:
                term = widened(term)
                stabilised = term + jnp.where(term >= 0, epsilon, -epsilon)
                return jnp.where(stabilised == 0, 0, share * value / jnp.where(stabilised == 0, 1, stabilised))

            multipliers = tuple(map(multiplier, shares, layer.terms))
            layer.settled = Node(scaled(layer.terms, multipliers, node.value), softmax=node.softmax)
        return layer.settled

    def weighted(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        (result,) = bind_nodes(eqn, operands)
        function, rule = as_function(eqn, operands), self.layers[eqn.primitive.name]
        (node,) = (x for x in operands if isinstance(x, Node))
        (weight,) = (x for x in operands if not isinstance(x, Node))
        terms = rule.terms(lambda x, w: function([x], [w]), node.value, weight)
        result.parts = _Layer(rule, terms)
        return [result]

    def passes(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> bool:
        return self._adds_bias(eqn, operands) or (
            eqn.primitive.name in _PASSED_ON and isinstance(operands[0].parts, _Layer)
        )

    def _adds_bias(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> bool:
        nodes = [x for x in operands if isinstance(x, Node)]
        is_sum = eqn.primitive.name in ("add", "add_any") or (eqn.primitive.name == "sub" and operands[0] is nodes[0])
        is_layer = len(nodes) == 1 and isinstance(nodes[0].parts, _Layer)
        is_bias = self._adds_array(operands)
        return is_sum and is_layer and is_bias and nodes[0].shape == result_type(eqn).shape

    @staticmethod
    def _adds_array(operands: Sequence[Any]) -> bool:
        # x + b ends a linear layer, and f(x + b) is a function of the sum; but the numbers in relu6(x + 3) belong to f.
        return any(not isinstance(x, Node) and jnp.ndim(x) > 0 for x in operands)

    def starts_root(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> bool:
        return eqn.primitive.name in ("add", "add_any", "sub") and self._adds_array(operands)

    def linear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        results = bind_nodes(eqn, operands)
        if self._adds_bias(eqn, operands):
            (node,) = (x for x in operands if isinstance(x, Node))
            (bias,) = (x for x in operands if not isinstance(x, Node))
            bias = jnp.asarray(-bias if eqn.primitive.name == "sub" else bias, node.value.dtype)
            terms = tuple(map(jnp.add, node.parts.terms, node.parts.rule.biases(bias)))
            results[0].parts = _Layer(node.parts.rule, terms)
        elif self.passes(eqn, operands):
            layer = operands[0].parts
            results[0].parts = _Layer(layer.rule, tuple(bind(eqn, [term])[0] for term in layer.terms))
        else:
            results[0].parts = _normaliser(eqn, operands)
        return results

    def _composed(self, eqn: core.JaxprEqn, operands: Sequence[Any], root: Node) -> Node:
        node = super()._composed(eqn, operands, root)
        node.parts = _normaliser(eqn, operands)
        return node

    def link(self, node: Node) -> Any:
        x = widened(node.root.value)
        slope = node.composite.slope() if node.composite is not None else 1.0
        multiplier = jnp.where(x == 0, slope, widened(node.value) / jnp.where(x == 0, 1, x))
        return scaled([node.root.value], [multiplier], node.value)

    def bilinear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        constants = [x.parts is _Normaliser.INVERSE_ROOT for x in operands]
        if eqn.primitive.name == "mul" and sum(constants) == 1:
            kept = zip(operands, constants, strict=True)
            return bind_nodes(eqn, [without_derivative(x.value) if constant else x for x, constant in kept])
        (result,) = bind_nodes(eqn, operands)
        if eqn.primitive.name == "mul" and all(constants):
            result.parts = _Normaliser.INVERSE_ROOT
        function = as_function(eqn, operands)

        def pull(values: Any, cotangent: Any) -> Any:
            return jax.vjp(lambda *nodes: function(nodes, ()), *values)[1](cotangent / 2)

        values = tuple(x.value for x in operands)
        result.value = routed(pull, values, values, result.value)
        return [result]

    def quotient(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        return bind_nodes(eqn, [operands[0], without_derivative(operands[1].value)])

    def extremum(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        return bind_nodes(eqn, operands)

    def selection(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        return bind_nodes(eqn, operands)

    def _softmax(self, eqn: core.JaxprEqn, operands: Sequence[Any], stage: Stage) -> Any:
        if self.softmax == "constant" and eqn.primitive.name == "div":
            return without_derivative(bind_nodes(eqn, operands)[0].value)
        return super()._softmax(eqn, operands, stage)

    def softmax_weights(self, stage: Stage) -> Any:
        return widened(stage.exponentials.value) / widened(stage.total.value).reshape(stage.keepdims_shape)


def _normaliser(eqn: core.JaxprEqn, operands: Sequence[Any]) -> _Normaliser | None:
    """What the result of an equation is, if it is a root, an inverse root, or a multiple or another form of one."""
    name, nodes = eqn.primitive.name, [x for x in operands if isinstance(x, Node)]
    if name in ("sqrt", "rsqrt"):
        return _Normaliser.ROOT if name == "sqrt" else _Normaliser.INVERSE_ROOT
    if name == "pow" and np.ndim(operands[1]) == 0 and isinstance(operands[1], np.ndarray | np.generic | float):
        return {0.5: _Normaliser.ROOT, -0.5: _Normaliser.INVERSE_ROOT}.get(float(operands[1]))
    if len(nodes) != 1 or not isinstance(nodes[0].parts, _Normaliser):
        return None
    kind = nodes[0].parts
    if (name == "div" and operands[1] is nodes[0]) or (name == "integer_pow" and eqn.params["y"] == -1):
        return _Normaliser.INVERSE_ROOT if kind is _Normaliser.ROOT else _Normaliser.ROOT
    keeps = name in _REFORMED or (name in ("add", "max", "clamp") and kind is _Normaliser.ROOT)  # sqrt(v) + epsilon
    return kind if keeps else None


# What leaves a normaliser one.
_REFORMED = ("mul", "div", "broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose", "convert_element_type")
# What may stand between a linear layer and its bias or activation: the same numbers in another form.
_PASSED_ON = ("reshape", "transpose", "squeeze", "convert_element_type", "name", "copy", "optimization_barrier")
