"""softmax, log_softmax and logsumexp recognised in a jaxpr, where they are several equations.

    m = max(a);  s = a - stop_gradient(m);  y = exp(s);  S = sum(y);  then  y / S,  s - log(S)  or  log(S) + m

A propagation rule for the whole is shift-invariant and well conditioned, as the rules of the parts are not: the shift
carries no gradient, yet differs between an input and its reference. `next_stage` follows the steps from value to value
(the shift may be absent), `completed_softmax` says when the last one is reached.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from jaxcore.transforms.jaxprs import result_type


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A step of a softmax over `axes` of the node `source`.

    name: "max", "shifted", "exp", "sum" or "log_sum".
    node: the value at this step.
    shifted: s, or `source` where nothing was subtracted.
    exponentials, total: y and S, once reached.
    aligned: for values reduced over the axes, whether they stand in keepdims form.
    """

    name: str
    source: Any
    axes: tuple[int, ...] | None
    shifted: Any = None
    exponentials: Any = None
    total: Any = None
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
        return Stage("max", first, tuple(eqn.params["axes"]), aligned=not _kept(first, eqn.params["axes"]))
    if name == "exp":
        shifted = _stage(first, "shifted")
        if shifted is not None:
            return dataclasses.replace(shifted, name="exp", shifted=first)
        return Stage("exp", first, None, shifted=first)
    if name == "reduce_sum" and (stage := _stage(first, "exp")) is not None:
        axes = tuple(eqn.params["axes"])
        matches = stage.axes is None or sorted(stage.axes) == sorted(axes)
        aligned = not _kept(first, axes)
        return (
            dataclasses.replace(stage, name="sum", axes=axes, exponentials=first, aligned=aligned) if matches else None
        )
    if name == "log" and (stage := _stage(first, "sum")) is not None:
        return dataclasses.replace(stage, name="log_sum", total=first)
    if name == "sub" and (stage := _stage(operands[1], "max")) is not None:
        if stage.source is first and _stands_beside(stage, operands[1]):
            return dataclasses.replace(stage, name="shifted", aligned=True)
        return None
    return _carried(eqn, operands)


def completed_softmax(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The last step before a softmax (eqn is div), log_softmax (sub) or logsumexp (add), if `eqn` completes one."""
    name = eqn.primitive.name
    if name == "div":
        exponentials, total = _stage(operands[0], "exp"), _stage(operands[1], "sum")
        if exponentials and total and total.shifted is exponentials.shifted and _stands_beside(total, operands[1]):
            return dataclasses.replace(total, total=operands[1])
    if name == "sub":
        log_sum = _stage(operands[1], "log_sum")
        if log_sum and log_sum.shifted is operands[0] and _stands_beside(log_sum, operands[1]):
            return log_sum
    if name == "add":
        for one, other in (tuple(operands), tuple(operands)[::-1]):
            log_sum, maximum = _stage(one, "log_sum"), _stage(other, "max")
            if log_sum and maximum and log_sum.source is maximum.source and one.shape == other.shape:
                return log_sum if math.prod(one.shape) == math.prod(log_sum.keepdims_shape) else None
    return None


def _kept(node: Any, axes: Sequence[int]) -> bool:
    return any(i not in axes for i in range(len(node.shape)))


def _stands_beside(stage: Stage, node: Any) -> bool:
    """Whether a reduced value broadcasts against the source along the axes over which it was reduced."""
    return stage.aligned and node.shape in ((), stage.keepdims_shape, stage.source.shape)


def _carried(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Stage | None:
    """The stage of a reduced value that the equation only reshapes, or passes on."""
    name = eqn.primitive.name
    if name == "max":
        for one, other in (tuple(operands), tuple(operands)[::-1]):
            if (stage := _stage(one, "max")) is not None and _is_minus_infinity(other):
                return stage
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


def _is_minus_infinity(operand: Any) -> bool:
    return isinstance(operand, np.ndarray | np.generic | float) and np.ndim(operand) == 0 and operand == -np.inf
