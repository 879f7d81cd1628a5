"""Counting the FLOPs of matmuls and convolutions in a jaxpr, with loops multiplied out.

XLA's cost analysis counts the body of a loop once and so sees one layer of a scanned transformer. This walk
multiplies a scan's body by its length, and tells work that rematerialisation repeats from work the model
needs: model FLOPs (for MFU) leave the repeated part out, hardware FLOPs (for HFU) have it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

__all__ = ["RECOMPUTE_SCOPE", "FlopCount", "convolution_flops", "count_flops", "count_jaxpr_flops"]

RECOMPUTE_SCOPE = "rematted_computation"
"""Name that ``jax.checkpoint`` gives to repeated work. Code that repeats work in another way (gradient
caching) can
say so with ``jax.named_scope(RECOMPUTE_SCOPE)``."""

_OPAQUE = (
    "dot_product_attention_fwd",
    "dot_product_attention_bwd",
    "ffi_call",
    "custom_call",
    "pure_callback",
)


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """FLOPs of the whole program over all devices; a multiply-add is two.

    Attributes:
      hardware: everything that runs.
      recomputed: the part of it that repeats earlier work (rematerialisation, `RECOMPUTE_SCOPE`).
      unknown_loops: loops whose trip count is not in the program.
      opaque: names of calls whose work cannot be seen, counted as nothing.
    """

    hardware: int = 0
    recomputed: int = 0
    unknown_loops: int = 0
    opaque: frozenset[str] = frozenset()

    @property
    def model(self) -> int:
        """What the mathematics needs: hardware without the repeated part."""
        return self.hardware - self.recomputed

    def __add__(self, other: "FlopCount") -> "FlopCount":
        return FlopCount(
            self.hardware + other.hardware,
            self.recomputed + other.recomputed,
            self.unknown_loops + other.unknown_loops,
            self.opaque | other.opaque,
        )

    def __mul__(self, times: int) -> "FlopCount":
        return dataclasses.replace(self, hardware=self.hardware * times, recomputed=self.recomputed * times)


def count_flops(function: Callable[..., Any], *args: Any, assumed_trips: int | None = None, **kwargs: Any) -> FlopCount:
    """FLOPs of ``function(*args, **kwargs)``, without running or compiling it.

    Args:
      function: any JAX function, jitted or not.
      *args: arrays or ShapeDtypeStructs.
      assumed_trips: trips of loops of unknown length.
      **kwargs: likewise.

    Raises:
      ValueError: a loop of unknown length and no `assumed_trips`.
    """
    return count_jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs), assumed_trips=assumed_trips)


def count_jaxpr_flops(jaxpr: core.ClosedJaxpr, *, assumed_trips: int | None = None) -> FlopCount:
    """The same for a jaxpr, such as ``jitted.trace(...).jaxpr``."""
    known = {
        variable: int(value)
        for variable, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        if _is_integer_scalar(value)
    }
    count = _walk(jaxpr.jaxpr, known, False, 1 if assumed_trips is None else assumed_trips)
    if count.unknown_loops and assumed_trips is None:
        raise ValueError(
            f"{count.unknown_loops} while loop(s) have no trip count in the program; use a scan or a "
            "fori_loop with "
            "constant bounds, or pass assumed_trips"
        )
    return count


def _walk(jaxpr: Any, known: dict[Any, int], repeated: bool, assumed: int) -> FlopCount:
    """FLOPs of one jaxpr.

    `known` holds the integer scalars that are constant (loop bounds); `repeated` says that a caller's name
    marks the work as recomputation.
    """
    total = FlopCount()
    for eqn in jaxpr.eqns:
        _propagate(eqn, known)
        again = repeated or RECOMPUTE_SCOPE in str(eqn.source_info.name_stack)
        name = eqn.primitive.name
        if (leaf := _leaf_flops(eqn)) is not None:
            total += FlopCount(leaf, leaf if again else 0)
        elif name in _OPAQUE:
            total += FlopCount(opaque=frozenset({name}))
        else:
            total += _inner_flops(eqn, known, again, assumed)
    return total


def _leaf_flops(eqn: Any) -> int | None:
    """FLOPs of a matmul or convolution; None for everything else."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracting)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * depth
    if name in ("ragged_dot", "ragged_dot_general"):
        # Every row of the left side meets one group of the right side.
        rows, depth = eqn.invars[0].aval.shape[-2:]
        return 2 * rows * depth * eqn.invars[1].aval.shape[-1]
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        lhs, rhs = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
        out = eqn.outvars[0].aval.shape
        return convolution_flops(
            batch=lhs[numbers.lhs_spec[0]] // params["batch_group_count"],
            kernel_inputs=rhs[numbers.rhs_spec[1]],
            outputs=out[numbers.out_spec[1]],
            inputs_shape=[lhs[axis] for axis in numbers.lhs_spec[2:]],
            kernel_shape=[rhs[axis] for axis in numbers.rhs_spec[2:]],
            output_shape=[out[axis] for axis in numbers.out_spec[2:]],
            strides=params["window_strides"],
            padding_low=[low for low, _ in params["padding"]],
            input_dilation=params["lhs_dilation"],
            kernel_dilation=params["rhs_dilation"],
        )
    return None


def convolution_flops(
    *,
    batch: int,
    kernel_inputs: int,
    outputs: int,
    inputs_shape: Sequence[int],
    kernel_shape: Sequence[int],
    output_shape: Sequence[int],
    strides: Sequence[int],
    padding_low: Sequence[int],
    input_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
) -> int:
    """``2 * batch * kernel_inputs * outputs * prod_d(pairs_d)``.

    ``pairs_d`` counts, along one spatial dimension, the pairs of output position and kernel tap that meet a
    real input
    value: neither padding nor a hole of dilation costs anything. Shapes and settings are per spatial
      dimension.
    """
    pairs = 1
    settings = zip(
        inputs_shape,
        kernel_shape,
        output_shape,
        strides,
        padding_low,
        input_dilation,
        kernel_dilation,
        strict=True,
    )
    for size, taps, outs, stride, low, in_dilation, tap_dilation in settings:
        extent = (size - 1) * in_dilation + 1
        positions = (out * stride + tap * tap_dilation - low for out in range(outs) for tap in range(taps))
        pairs *= sum(1 for at in positions if 0 <= at < extent and at % in_dilation == 0)
    return 2 * batch * kernel_inputs * outputs * pairs


def _inner_flops(eqn: Any, known: dict[Any, int], again: bool, assumed: int) -> FlopCount:
    """FLOPs of the jaxprs inside a higher-order primitive."""
    name, params = eqn.primitive.name, eqn.params

    def walk(inner: Any, operands: Sequence[Any] = ()) -> FlopCount:
        return _walk(_open(inner), _enter(inner, operands, known), again, assumed)

    if name == "scan":
        return walk(params["jaxpr"]) * params["length"]
    if name == "while":
        trips = _while_trips(eqn, known)
        count = walk(params["body_jaxpr"]) + walk(params["cond_jaxpr"])
        if trips is not None:
            return count * trips
        return count * assumed + FlopCount(unknown_loops=1)
    if name == "cond":
        return max((walk(branch, eqn.invars[1:]) for branch in params["branches"]), key=lambda count: count.hardware)
    if name == "shard_map":
        axes = params.get("newly_manual_axes") or params.get("manual_axes") or params["mesh"].axis_names
        return walk(params["jaxpr"], eqn.invars) * math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        if estimate is not None:
            return FlopCount(int(estimate.flops), int(estimate.flops) if again else 0)
        grid = params["grid_mapping"].grid
        if not all(isinstance(size, int) for size in grid):
            return FlopCount(opaque=frozenset({name}))
        return walk(params["jaxpr"]) * math.prod(grid)
    if name == "custom_linear_solve":
        return walk(params["jaxprs"].solve)
    return sum((walk(inner, eqn.invars) for inner in _jaxprs(params)), FlopCount())


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _open(jaxpr: Any) -> Any:
    """Both releases of jax in one form: 0.10 keeps closed jaxprs in parameters, 0.12 open ones."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _is_integer_scalar(value: Any) -> bool:
    return (
        getattr(value, "shape", None) == ()
        and getattr(getattr(value, "dtype", None), "kind", "") in "iu"
        and not isinstance(value, jax.core.Tracer)
    ) or (isinstance(value, int) and not isinstance(value, bool))


def _value(atom: Any, known: dict[Any, int]) -> int | None:
    if isinstance(atom, core.Literal):
        return int(atom.val) if _is_integer_scalar(atom.val) else None
    return known.get(atom)


def _enter(inner: Any, operands: Sequence[Any], known: dict[Any, int]) -> dict[Any, int]:
    """Known scalars of an inner jaxpr: its own constants and the known operands it is called with."""
    seen: dict[Any, int] = {}
    jaxpr = _open(inner)
    if isinstance(inner, core.ClosedJaxpr):
        for variable, constant in zip(jaxpr.constvars, inner.consts, strict=True):
            if _is_integer_scalar(constant):
                seen[variable] = int(constant)
    if len(operands) == len(jaxpr.invars):
        for variable, atom in zip(jaxpr.invars, operands, strict=True):
            if (value := _value(atom, known)) is not None:
                seen[variable] = value
    return seen


def _propagate(eqn: Any, known: dict[Any, int]) -> None:
    """Follows constant scalars through conversions."""
    if eqn.primitive.name in ("convert_element_type", "copy", "copy_p") and len(eqn.outvars) == 1:
        value = _value(eqn.invars[0], known)
        if value is not None and getattr(eqn.outvars[0].aval.dtype, "kind", "") in "iu":
            known[eqn.outvars[0]] = value


def _while_trips(eqn: Any, known: dict[Any, int]) -> int | None:
    """Trips of ``while counter < limit: counter += 1`` with constant start and limit; None for any other loop."""
    params = eqn.params
    condition, body = _open(params["cond_jaxpr"]), _open(params["body_jaxpr"])
    skip_condition, skip_body = params["cond_nconsts"], params["body_nconsts"]
    carry = eqn.invars[skip_condition + skip_body :]
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name not in ("lt", "le"):
        return None
    test = condition.eqns[0]

    def position(atom: Any) -> int | None:
        matches = [index for index, variable in enumerate(condition.invars) if variable is atom]
        return matches[0] if matches else None

    def constant(atom: Any) -> int | None:
        index = position(atom)
        if index is None:
            return _value(atom, _enter(params["cond_jaxpr"], (), known))
        if index < skip_condition:
            return _value(eqn.invars[index], known)
        slot = index - skip_condition
        unchanged = body.outvars[slot] is body.invars[skip_body + slot]
        return _value(carry[slot], known) if unchanged else None

    counter, limit = position(test.invars[0]), constant(test.invars[1])
    if counter is None or counter < skip_condition or limit is None:
        return None
    slot = counter - skip_condition
    start = _value(carry[slot], known)
    step = next((inner for inner in body.eqns if inner.outvars[0] is body.outvars[slot]), None)
    adds_one = (
        step is not None
        and step.primitive.name == "add"
        and step.invars[0] is body.invars[skip_body + slot]
        and _value(step.invars[1], {}) == 1
    )
    if start is None or not adds_one:
        return None
    return max(limit - start + (test.primitive.name == "le"), 0)
