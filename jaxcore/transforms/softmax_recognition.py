"""softmax, log_softmax and logsumexp recognised in a jaxpr, where they are several equations.

    m = max(a');  s = a - stop_gradient(m);  y = u exp(s);  S = sum(w exp(s));  then  y / S,  s - log(S)  or  log(S) + m

The maximum may be absent, or of other values than a (masked ones, say), since it cancels. The weights u and w are
arrays that do not depend on the inputs: masks (`where=`), coefficients (`b=` of logsumexp), or 1.

A propagation rule for the whole is shift-invariant and well conditioned, as the rules of the parts are not: the shift
carries no gradient, yet differs between an input and its reference. `next_stage` follows the steps from value to value,
`completed_softmax` says when the last one is reached.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxcore.transforms.jaxprs import result_type


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A step of a softmax over `axes` of the node `source`.

    name: "max", "shifted", "exp", "sum" or "log_sum".
    node: the value at this step.
    shift: stands for the number m, which one step subtracts and another may add again.
    shifted: s, or `source` where nothing was subtracted.
    exponentials, total: exp(s) and S, once reached.
    weight: what exp(s) has been multiplied by, None for 1; w from the sum on.
    numerator_weight: u, in a completed softmax.
    aligned: for values reduced over the axes, whether they stand in keepdims form.
    """

    name: str
    source: Any
    axes: tuple[int, ...] | None
    shift: Any = None
    shifted: Any = None
    exponentials: Any = None
    total: Any = None
    weight: Any = None
    numerator_weight: Any = None
    aligned: bool = False
    node: Any = None

    @property
    def keepdims_shape(self) -> tuple[int, ...]:
        return tuple(1 if i in (self.axes or ()) else n for i, n in enumerate(self.source.shape))


def _stage(operand: Any, *names: str) -> Stage | None:
    stage = getattr(operand, "softmax", None)
    return stage if stage is not None and stage.name in names else None


def next_stage(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The step that the equation's result is, if any; its `node` is for the caller to fill in."""
    name, first = eqn.primitive.name, operands[0] if operands else None
    if name == "reduce_max":
        axes = tuple(eqn.params["axes"])
        return Stage("max", first, axes, shift=object(), aligned=not _kept(first, axes))
    if name == "exp":
        shifted = _stage(first, "shifted")
        if shifted is not None:
            return dataclasses.replace(shifted, name="exp", shifted=first)
        return Stage("exp", first, None, shifted=first)
    if name == "reduce_sum" and (stage := _stage(first, "exp")) is not None:
        axes = tuple(eqn.params["axes"])
        if stage.axes is not None and sorted(stage.axes) != sorted(axes):
            return None
        return dataclasses.replace(
            stage, name="sum", axes=axes, exponentials=stage.exponentials or first, aligned=not _kept(first, axes)
        )
    if name == "log" and (stage := _stage(first, "sum")) is not None:
        return dataclasses.replace(stage, name="log_sum", total=first)
    if name == "sub" and (stage := _stage(operands[1], "max")) is not None:
        if getattr(first, "shape", None) == stage.source.shape and _stands_beside(stage, operands[1]):
            return dataclasses.replace(stage, name="shifted", source=first, aligned=True)
        return None
    return _weighted(eqn, operands) or _carried(eqn, operands)


def completed_softmax(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The last step before a softmax (eqn is div), log_softmax (sub) or logsumexp (add), if `eqn` completes one."""
    name = eqn.primitive.name
    if name == "div":
        exponentials, total = _stage(operands[0], "exp"), _stage(operands[1], "sum")
        if exponentials and total and total.shifted is exponentials.shifted and _stands_beside(total, operands[1]):
            return dataclasses.replace(total, total=operands[1], numerator_weight=exponentials.weight)
    if name == "sub":
        log_sum = _stage(operands[1], "log_sum")
        if log_sum and log_sum.shifted is operands[0] and _stands_beside(log_sum, operands[1]):
            return log_sum
    if name == "add":
        for one, other in (tuple(operands), tuple(operands)[::-1]):
            log_sum, maximum = _stage(one, "log_sum"), _stage(other, "max")
            if log_sum and maximum and log_sum.shift is maximum.shift and one.shape == other.shape:
                return log_sum if math.prod(one.shape) == math.prod(log_sum.keepdims_shape) else None
    return None


def _kept(node: Any, axes: Sequence[int]) -> bool:
    return any(i not in axes for i in range(len(node.shape)))


def _stands_beside(stage: Stage, node: Any) -> bool:
    """Whether a reduced value broadcasts against the source along the axes over which it was reduced."""
    return stage.aligned and node.shape in ((), stage.keepdims_shape, stage.source.shape)


def _weighted(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The stage of exponentials that the equation multiplies by an array, or masks with zeros."""
    name = eqn.primitive.name
    stages = [(i, stage) for i, x in enumerate(operands) if (stage := _stage(x, "exp")) is not None]
    if len(stages) != 1 or name not in ("mul", "div", "select_n"):
        return None
    ((place, stage),) = stages
    others = [x for i, x in enumerate(operands) if i != place]
    if any(hasattr(x, "softmax") for x in others) or operands[place].shape != stage.source.shape:
        return None  # a weight that depends on the inputs
    if name == "select_n":
        if place == 0 or not all(_is_filled(x, 0) for x in others[1:]):
            return None
        factor = jnp.asarray(others[0], jnp.int32) == place - 1
    elif name == "div":
        if place != 0:
            return None
        factor = 1 / jnp.asarray(others[0])
    else:
        factor = jnp.asarray(others[0])
    weight = factor if stage.weight is None else stage.weight * factor
    return dataclasses.replace(stage, weight=weight, exponentials=stage.exponentials or operands[place])


def _carried(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The stage of a reduced value that the equation only reshapes, or passes on."""
    name = eqn.primitive.name
    if name == "max":
        for one, other in (tuple(operands), tuple(operands)[::-1]):
            if (stage := _stage(one, "max")) is not None and not hasattr(other, "softmax"):
                return stage if _is_filled(other, -np.inf) else dataclasses.replace(stage, shift=object())
        return None
    if name == "select_n":  # logsumexp replaces an infinite maximum
        stages = [stage for x in operands[1:] if (stage := _stage(x, "max")) is not None]
        is_guard = len(stages) == 1 and getattr(operands[0], "root", None) is stages[0].node.root
        return stages[0] if is_guard else None
    stage = _stage(operands[0], "max", "sum", "log_sum") if operands else None
    if stage is None or name not in ("stop_gradient", "abs", "broadcast_in_dim", "reshape"):
        return None
    if name == "abs" and stage.name != "sum":
        return None
    if name == "reshape":
        return dataclasses.replace(stage, aligned=True) if result_type(eqn).shape == stage.keepdims_shape else None
    if name == "broadcast_in_dim":
        return _broadcast(eqn, stage, operands[0])
    return stage


def _broadcast(eqn: core.JaxprEqn, stage: Stage, operand: Any) -> Stage | None:
    dimensions = tuple(eqn.params["broadcast_dimensions"])
    rank = len(stage.source.shape)
    expected = range(rank) if len(operand.shape) == rank else [i for i in range(rank) if i not in (stage.axes or ())]
    fits = len(result_type(eqn).shape) == rank and dimensions == tuple(expected)
    return dataclasses.replace(stage, aligned=True) if fits else None


def _is_filled(operand: Any, number: float) -> bool:
    """Whether all entries are known, while the program is traced, to be `number`."""
    if not isinstance(operand, np.ndarray | np.generic | float | int):
        return False
    array = np.asarray(operand)
    return array.size > 0 and bool(
        np.all(array[tuple(slice(None, 1 if n == 0 else None) for n in array.strides)] == number)
    )
