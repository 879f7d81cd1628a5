"""DeepLIFT: contributions to the difference of a score from its value at a reference, in one backward pass."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcore.attribution.chunking import chunked_sum
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
from jaxcore.transforms.jaxprs import bind
from jaxcore.transforms.propagation import Propagation, Rule
from jaxcore.transforms.propagation_nodes import Node, as_function, bind_nodes, routed, scaled, widened
from jaxcore.transforms.softmax_recognition import Stage

ActivationRule = Literal["rescale", "reveal_cancel"]
ProductRule = Literal["rescale", "gradient"]


def deep_lift(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    activation_rule: ActivationRule = "rescale",
    product_rule: ProductRule = "rescale",
    rules: Mapping[str, Rule] | None = None,
) -> Inputs:
    """Contributions ``m * (x - x')``, with multipliers m chained backwards from the score, per coordinate.

        linear y = W x + b          m_x = W' m_y
        activation y = f(x)         m_x = m_y (f(x) - f(x')) / (x - x')        (rescale; f'(x) where x = x')
        product y = a b             m_a = m_y (b + b') / 2,  m_b = m_y (a + a') / 2
        softmax y                   m_x = L (m_y - <L, m_y> / sum L),  L = (y - y') / (log y - log y')
        maximum y                   max(y, y') - y' goes to the argmax of x, y - max(y, y') to that of x'

    Completeness: an example's contributions sum to ``score(x) - score(x')`` exactly, up to rounding. Two exceptions:
    `jnp.where` whose predicate depends on the inputs, differs between x and x', and is not part of an activation
    function; and `jax.lax.stop_gradient` outside a softmax, which says that nothing is to be attributed there.

    reveal_cancel treats the positive and the negative part of an activation's input difference (the sums of the
    positive and of the negative contributions to the linear layer before it, D+ and D-) apart, with multipliers

        m+ = (f(x' + D+) - f(x') + f(x' + D+ + D-) - f(x' + D-)) / (2 D+),   m- alike,

    which shows contributions that cancel. Without a linear layer directly before it, an activation is rescaled.

    Works on any function of JAX primitives, scan, remat and cond included; activation functions may be written with
    several primitives (gelu as x * Phi(x), leaky_relu by where). Captum's softmax rule (it subtracts the mean over
    the whole batch of the rescaled gradient) is not this one, and products in Captum pass the plain gradient.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs`.
        activation_rule: "rescale" or "reveal_cancel".
        product_rule: "rescale" as above, or "gradient", b and a, which is not complete.
        rules: what primitives are that have no rule, or are to have another; see `register_rule`.

    Returns:
        Attributions of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, a baseline that does not broadcast, a score that is not [batch], an unknown rule; a
            nonlinear primitive without a rule (the message names it and says how to register one); a cond, while or
            index that depends on the inputs; values that are not finite.

    Source: Shrikumar et al. 2017, sections 3.2 to 3.5; products and softmax: secants that keep its summation-to-delta.
    """
    check_score(score, inputs)
    _check_choice("activation_rule", activation_rule, ("rescale", "reveal_cancel"))
    _check_choice("product_rule", product_rule, ("rescale", "gradient"))
    baseline = broadcast_baseline(baseline, inputs)
    method = (_RevealCancel if activation_rule == "reveal_cancel" else _DeepLift)(product_rule, rules)
    contributions = run_compiled(lambda x, b: _contributions(method, score, x, b), inputs, baseline)
    return checked_finite(contributions, "deep_lift")


def deep_shap(
    score: Score,
    inputs: Inputs,
    *,
    baselines: Inputs,
    rules: Mapping[str, Rule] | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """The mean of `deep_lift`'s contributions over baselines, an approximation of Shapley values.

    Args:
        score, inputs, rules: see `deep_lift`.
        baselines: a pytree of the inputs' structure, leaves [num_baselines, ...] each of one example's shape: every
            baseline serves every example.
        chunk_size, memory_budget: baselines evaluated together, see `jaxcore.attribution.chunking`.

    Returns:
        Attributions of the inputs' structure and shapes; they sum to ``score(x) - mean_k score(x'_k)``.

    Raises:
        ValueError: as `deep_lift`; baselines of another structure, shape or of different numbers.

    Source: Lundberg & Lee 2017, section 4.2 (Deep SHAP).
    """
    check_score(score, inputs)
    check_positive(chunk_size=chunk_size)
    count = _check_baselines(baselines, inputs)
    method = _DeepLift("rescale", rules)

    def of_one(baseline: Inputs) -> Inputs:
        return _contributions(method, score, inputs, broadcast_baseline(baseline, inputs))

    total = chunked_sum(of_one, baselines, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(jax.tree.map(lambda leaf: leaf / count, total), "deep_shap")


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"unknown {name} {given!r}: expected {' or '.join(allowed)}")


def _check_baselines(baselines: Inputs, inputs: Inputs) -> int:
    structure: Any = jax.tree.structure(inputs)
    if structure != jax.tree.structure(baselines):
        raise ValueError(
            f"baselines must have the structure of the inputs, {structure}: got {jax.tree.structure(baselines)}"
        )
    counts = set()
    for leaf, example in zip(jax.tree.leaves(baselines), jax.tree.leaves(inputs), strict=True):
        if jnp.shape(leaf)[1:] != example.shape[1:] or jnp.shape(leaf)[:1] in ((), (0,)):
            raise ValueError(
                f"baselines must be [num_baselines, *{list(example.shape[1:])}], at least one: got {jnp.shape(leaf)}"
            )
        counts.add(jnp.shape(leaf)[0])
    if len(counts) > 1:
        raise ValueError(f"all leaves of baselines must hold one number of baselines: got {sorted(counts)}")
    return counts.pop()


def _contributions(method: "_DeepLift", score: Score, inputs: Inputs, baseline: Inputs) -> Inputs:
    def contribution(multiplier: Any, x: Any, b: Any) -> Any:
        dtype = accumulation_dtype(x)
        return multiplier.astype(dtype) * (x.astype(dtype) - b.astype(dtype))

    return jax.tree.map(contribution, method.multipliers(score, inputs, baseline), inputs, baseline)


class _DeepLift(Propagation):
    name = "deep_lift"
    _has_reference = True

    def __init__(self, product_rule: ProductRule, rules: Mapping[str, Rule] | None) -> None:
        super().__init__(rules)
        self.product_rule = product_rule

    def link(self, node: Node) -> Any:
        return scaled([node.root.value], [self._secant(node)], node.value)

    def _secant(self, node: Node) -> Any:
        root = node.root
        change, is_still = _change(root.value, root.reference)
        secant = widened(node.value) - widened(node.reference)
        slope = widened(node.composite.slope()) if node.composite is not None else 1.0
        return jnp.where(is_still, slope, secant / jnp.where(is_still, 1, change))

    def linear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        converts = eqn.primitive.name == "convert_element_type"
        if not converts and any(isinstance(x, Node) and not x.is_floating for x in operands):
            raise ValueError(
                f"an index of {eqn.primitive.name!r} depends on the inputs: it may differ between the inputs and the "
                f"baseline; pass rules={{{eqn.primitive.name!r}: 'gradient'}} to take its ordinary derivative"
            )
        return bind_nodes(eqn, operands)

    def bilinear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        (result,) = bind_nodes(eqn, operands)
        if self.product_rule == "rescale":
            middle = tuple(((widened(x.value) + widened(x.reference)) / 2).astype(x.value.dtype) for x in operands)
            function = as_function(eqn, operands)

            def pull(middle: Any, cotangent: Any) -> Any:
                return jax.vjp(lambda *nodes: function(nodes, ()), *middle)[1](cotangent)

            result.value = routed(pull, tuple(x.value for x in operands), middle, result.value)
        return [result]

    def quotient(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        (result,) = bind_nodes(eqn, operands)
        if self.product_rule == "rescale":
            above, below = operands
            inverses = 1 / widened(below.value), 1 / widened(below.reference)
            numerator = (widened(above.value) + widened(above.reference)) / 2
            multipliers = sum(inverses) / 2, -numerator * inverses[0] * inverses[1]
            result.value = scaled([above.value, below.value], multipliers, result.value)
        return [result]

    def extremum(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        (result,) = bind_nodes(eqn, operands)
        function = as_function(eqn, operands)
        nodes = [x for x in operands if isinstance(x, Node)]
        larger = jnp.minimum if eqn.primitive.name.endswith("min") else jnp.maximum

        def pull(residuals: Any, cotangent: Any) -> Any:
            values, references, output, at_reference = residuals
            to_value = jax.vjp(lambda *v: function(v, ()), *values)[1]
            to_reference = jax.vjp(lambda *v: function(v, ()), *references)[1]
            outer = larger(output, at_reference)
            gained, lost = to_value(cotangent * (outer - at_reference)), to_reference(cotangent * (output - outer))

            def multiplier(value: Any, reference: Any, gradient: Any, gained: Any, lost: Any) -> Any:
                change, is_still = _change(value, reference)
                share = widened(gained) + widened(lost)
                untouched = (share == 0) | is_still  # masked entries may be infinite
                return jnp.where(is_still, gradient, jnp.where(untouched, 0, share / jnp.where(untouched, 1, change)))

            return tuple(map(multiplier, values, references, to_value(cotangent), gained, lost))

        values, references = tuple(x.value for x in nodes), tuple(x.reference for x in nodes)
        result.value = routed(pull, values, (values, references, result.value, result.reference), result.value)
        return [result]

    def selection(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        predicate, *cases = operands
        (result,) = bind_nodes(eqn, operands)
        chosen = [(i, case) for i, case in enumerate(cases) if isinstance(case, Node)]

        def weight(i: int) -> Any:
            hits = [jnp.asarray(p, jnp.int32) == i for p in (predicate.value, predicate.reference)]
            return jnp.broadcast_to((0.5 * hits[0] + 0.5 * hits[1]).astype(result.value.dtype), result.shape)

        result.value = scaled([case.value for _, case in chosen], [weight(i) for i, _ in chosen], result.value)
        return [result]

    def softmax_weights(self, stage: Stage) -> Any:
        shape = stage.keepdims_shape

        def shares(exponentials: Any, total: Any) -> tuple[Any, Any]:
            total = widened(total).reshape(shape)
            return widened(exponentials) / total, jnp.log(total)

        shifted = stage.shifted
        share, log_total = shares(stage.exponentials.value, stage.total.value)
        reference, log_reference = shares(stage.exponentials.reference, stage.total.reference)
        larger = jnp.maximum(share, reference)
        log_ratio = (widened(shifted.value) - widened(shifted.reference)) - (log_total - log_reference)
        # The logarithmic mean of both shares, from the larger one and the distance of the logarithms.
        distance = jnp.abs(log_ratio)
        is_far = distance > 1e-12
        mean = larger * jnp.where(is_far, -jnp.expm1(-distance) / jnp.where(is_far, distance, 1), 1)
        return jnp.where(larger > 0, mean, 0)


class _RevealCancel(_DeepLift):
    """Nodes of linear layers carry, as `parts`, the positive and the negative part of their difference."""

    def probes(self, root: Node) -> tuple[Any, ...]:
        positive, negative = _parts(root)
        reference = root.reference
        return reference + positive, reference + negative

    def link(self, node: Node) -> Any:
        root = node.root
        if root.parts is None or node.composite is None:
            return super().link(node)
        start, end = widened(node.reference), widened(node.value)
        at_positive, at_negative = (widened(probe) for probe in node.composite.probes)
        gains = (
            ((at_positive - start) + (end - at_negative)) / 2,
            ((at_negative - start) + (end - at_positive)) / 2,
        )
        secant = self._secant(node)
        is_defined = jnp.isfinite(gains[0]) & jnp.isfinite(gains[1])  # a logarithm may be undefined at a probe

        def multiplier(gain: Any, part: Any) -> Any:
            is_secant = (jnp.abs(part) < _SMALLEST_CHANGE) | ~is_defined
            return jnp.where(is_secant, secant, gain / jnp.where(is_secant, 1, widened(part)))

        return scaled(root.parts, tuple(map(multiplier, gains, root.parts)), node.value)

    def normaliser(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        # Not an activation: the parts of a variance cancel, and a probe would lie near the singularity at 0.
        return super().normaliser(eqn, [Node(x.value, x.reference) for x in operands])

    def linear(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        results = super().linear(eqn, operands)
        nodes = [x for x in operands if isinstance(x, Node)]
        name, first = eqn.primitive.name, operands[0]
        if len(nodes) == 1 and nodes[0].parts is not None:
            if name in ("add", "add_any") or (name == "sub" and isinstance(first, Node)):
                results[0].parts = tuple(jnp.broadcast_to(p, results[0].shape) for p in nodes[0].parts)
            elif name in _MOVED:
                results[0].parts = tuple(bind(eqn, [part, *operands[1:]])[0] for part in nodes[0].parts)
        elif name in ("add", "add_any", "reduce_sum", "reduce_window_sum"):
            results[0].parts = _signed_sums(eqn, nodes, [1] * len(nodes)) if len(nodes) == len(operands) else None
        elif name == "sub" and len(nodes) == 2:
            results[0].parts = _signed_sums(eqn, nodes, [1, -1])
        return results

    def weighted(self, eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        results = super().linear(eqn, operands)
        (node,) = (x for x in operands if isinstance(x, Node))
        (weight,) = (x for x in operands if not isinstance(x, Node))
        function = as_function(eqn, operands)
        up, down = _signed(node.value - node.reference)
        raising, lowering = jnp.maximum(weight, 0), jnp.minimum(weight, 0)
        results[0].parts = (
            function([up], [raising]) + function([down], [lowering]),
            function([up], [lowering]) + function([down], [raising]),
        )
        return results


def _signed_sums(eqn: core.JaxprEqn, nodes: Sequence[Node], signs: Sequence[int]) -> tuple[Any, Any]:
    """The sums of the positive and of the negative terms of a sum (of nodes, or within one)."""
    pairs = [_signed(sign * (node.value - node.reference)) for node, sign in zip(nodes, signs, strict=True)]
    # With the signs in the terms, a difference is bound as one too: the second term's sign is taken twice.
    positive, negative = (
        bind(eqn, [sign * part for part, sign in zip(parts, signs, strict=True)])[0]
        for parts in zip(*pairs, strict=True)
    )
    return positive, negative


def _signed(difference: Any) -> tuple[Any, Any]:
    """The positive and the negative part; at 0 each has derivative 1/2, as the paper's linear rule asks."""
    positive = (difference + jnp.abs(difference)) / 2
    return positive, difference - positive


def _parts(node: Node) -> tuple[Any, Any]:
    return node.parts if node.parts is not None else _signed(node.value - node.reference)


# What the two parts of a difference go through one by one.
_MOVED = ("reshape", "transpose", "squeeze", "broadcast_in_dim", "name", "slice", "copy", "optimization_barrier")
_SMALLEST_CHANGE = 1e-10  # below it the derivative stands for the secant, as in Captum


def _change(value: Any, reference: Any) -> tuple[Any, Any]:
    """The difference from the reference, and where it is nothing but rounding."""
    value, reference = widened(value), widened(reference)
    change = value - reference
    rounding = 4 * jnp.finfo(value.dtype).eps * jnp.maximum(jnp.abs(value), jnp.abs(reference))
    return change, ~(jnp.abs(change) >= jnp.maximum(_SMALLEST_CHANGE, rounding))
