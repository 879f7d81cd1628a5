"""Guided backpropagation and the deconvnet: gradients that pass a rectifier only where they speak for the score."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.input_checks import Inputs, Score, accumulation_dtype, check_score, checked_finite
from jaxcore.transforms.jaxprs import Loops, Outcome, Rules, evaluate, sites, trace


def guided_backpropagation(score: Score, inputs: Inputs) -> Inputs:
    """The score's gradient, where each rectifier passes back the positive part of what the gradient would be.

        y = max(x, 0):   g_x = [x > 0] max(g_y, 0)

    A rectifier is a maximum with the constant 0: `jax.nn.relu`, `jnp.maximum(x, 0.0)`, relu6's lower half.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].

    Returns:
        Modified gradients of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, a score that is not [batch] or has no rectifier (the result would be the plain
            gradient), gradients that are not finite.

    Source: Springenberg et al. 2015.
    """
    return _through_rectifiers(score, inputs, masks_forward=True, method="guided_backpropagation")


def deconvnet(score: Score, inputs: Inputs) -> Inputs:
    """The score's gradient, where each rectifier rectifies what comes back instead of what went forward.

        y = max(x, 0):   g_x = max(g_y, 0)

    Arguments, result and errors as `guided_backpropagation`.

    Source: Zeiler & Fergus 2014, section 2.1.
    """
    return _through_rectifiers(score, inputs, masks_forward=False, method="deconvnet")


def _through_rectifiers(score: Score, inputs: Inputs, masks_forward: bool, method: str) -> Inputs:
    check_score(score, inputs)
    rectifier = _guided if masks_forward else _deconvolved

    def apply(eqn: core.JaxprEqn, operands: Sequence[Any], loops: Loops) -> Outcome:
        (x,) = (x for v, x in zip(eqn.invars, operands, strict=True) if not _is_zero(v))
        return [rectifier(x)], {}

    rules = Rules(lambda eqn: "rectifier" if _is_rectifier(eqn) else None, apply, rewrites=True)

    def modified(inputs: Inputs) -> Any:
        traced = trace(score, (inputs,), {})
        if not any(sites(traced.jaxpr, rules)):
            raise ValueError(
                f"{method} changes the gradient of rectifiers, and the score has none: use jax.nn.relu (or "
                "jnp.maximum(x, 0.0)) in the model, or take the plain gradient"
            )
        return jnp.sum(traced.assemble(evaluate(traced.jaxpr, traced.arrays, rules)[0]))

    def gradients(inputs: Inputs) -> Inputs:
        return jax.tree.map(lambda g: g.astype(accumulation_dtype(g)), jax.grad(modified)(inputs))

    return checked_finite(run_compiled(gradients, inputs), method)


def _is_rectifier(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name == "max" and sum(map(_is_zero, eqn.invars)) == 1


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, core.Literal) and jnp.ndim(atom.val) == 0 and atom.val == 0


@jax.custom_vjp
def _guided(x: Any) -> Any:
    return jnp.maximum(x, 0)


_guided.defvjp(
    lambda x: (jnp.maximum(x, 0), x > 0),
    lambda is_active, gradient: (jnp.where(is_active, jnp.maximum(gradient, 0), 0),),
)


@jax.custom_vjp
def _deconvolved(x: Any) -> Any:
    return jnp.maximum(x, 0)


_deconvolved.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, gradient: (jnp.maximum(gradient, 0),))
