"""The pair engine: one exact, streaming reduction of a similarity matrix, under every pairwise contrastive loss.

A loss says what happens in a block of ``s_ij = <r_i, c_j>``: a *terms* function turns the block, and vectors of what is
known about its rows and columns (labels, ids, log-weights, biases), into terms; `reduce_pairs` reduces them per row or
per column. There is never an N x N array, neither of similarities nor of masks: memory is O(N d), and gradients, also
those of floating annotations and shared scalars such as a temperature, are exact (custom VJP, blocks recomputed).

On a mesh the rows stay where they are, and columns come to them in one of two ways that give the same result:

- *gather*: every device holds all columns. Least latency; memory grows with the global batch.
- *ring*: column shards travel from device to device while the block that has arrived is being worked on. Per device:
  memory O(n d) for its n rows, and the least traffic there is, (P - 1) shards forward, and as much again backward for
  the columns and for their gradient.

Gradients of columns are summed in float32 whatever the inputs.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxcore.distributed import BATCH_AXES
from jaxcore.losses import pair_reductions as reductions_of
from jaxcore.losses.pair_blocks import (
    Blocks,
    Gradient,
    Side,
    Terms,
    Walk,
    accumulation_dtype,
    empty_states,
    fit_blocks,
    pull_back_blocks,
    reduce_blocks,
    zero_gradient,
)
from jaxcore.losses.pair_reductions import Extreme, Reduction

Exchange = Literal["gather", "ring"]

GATHER_LIMIT_BYTES = 256 * 2**20
"""Columns and their gradient are gathered while both together take no more than this on a device; else, the ring."""

_LARGEST_BLOCKS = {"cpu": Blocks(1024, 1024), "tpu": Blocks(2048, 2048), "gpu": Blocks(8192, 8192)}


def reduce_pairs(
    terms: Terms,
    reductions: Mapping[str, Reduction],
    rows: Side,
    columns: Side,
    *,
    shared: Any = (),
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
    blocks: Blocks | None = None,
) -> dict[str, Any]:
    """Reduce ``terms(s, of_rows, of_columns, shared)`` over the columns of each row, or over the rows of each column.

        log_sum_exp: log sum_j exp(t_ij)     sum: sum_j t_ij     max: max_j t_ij and its place

    Args:
        terms: elementwise; gets a block of similarities [b, c] in float32, what is known of its rows as [b, 1] and of
            its columns as [1, c] ([b, k] and [c, k] where it is [n, k]), and `shared`; returns [b, c] arrays by name,
            -inf (0 under a sum) where a pair is excluded. It must be finite, with finite gradient, where it is not
            excluded. Give a function that lives at module level (or a `functools.partial` of one): a new closure is a
            new function to `jit`.
        reductions: how to reduce each of the terms.
        rows, columns: the two sides; on a mesh, global arrays.
        shared: a tree of scalars (temperature, bias); floating ones get gradients.
        mesh: spread the rows over its batch axes; the result is that of one device, to rounding.
        exchange: how columns reach the rows on a mesh; by size (`GATHER_LIMIT_BYTES`) unless given. Never changes the
            result.
        blocks: largest block; by platform unless given.

    Returns:
        By name: [n] for rows, [m] for columns; an `Extreme` for "max".

    Raises:
        ValueError: vectors that do not fit each other, no rows or columns, or a mesh that does not divide them.
    """
    _check_sides(rows, columns)
    axes = () if mesh is None else tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    devices = math.prod(mesh.shape[axis] for axis in axes) if mesh is not None else 1
    for what, side in (("rows", rows), ("columns", columns)):
        if side.vectors.shape[0] % devices:
            raise ValueError(
                f"{side.vectors.shape[0]} {what} cannot be split over the {devices} devices of the mesh's axes "
                f"{', '.join(axes)}: the batch must be a multiple of {devices}"
            )
    plan = _Plan(
        terms=terms,
        reductions=tuple(reductions.items()),
        mesh=mesh if devices > 1 else None,
        axes=axes,
        exchange=exchange or _cheaper_exchange(columns),
        blocks=blocks or _LARGEST_BLOCKS.get(_platform(mesh), _LARGEST_BLOCKS["gpu"]),
    )
    shared = jax.tree.map(jnp.asarray, shared)
    return _reduce_compiled(plan, rows, columns, shared)


class _Plan(NamedTuple):
    """Everything static about one reduction."""

    terms: Terms
    reductions: tuple[tuple[str, Reduction], ...]
    mesh: Mesh | None
    axes: tuple[str, ...]
    exchange: Exchange
    blocks: Blocks

    def walk(self, rows: Side, columns: Side) -> Walk:
        blocks = fit_blocks(self.blocks, rows.vectors.shape[0], columns.vectors.shape[0])
        return Walk(self.terms, self.reductions, blocks)

    @property
    def split(self) -> PartitionSpec:
        return PartitionSpec(self.axes)


def _check_sides(rows: Side, columns: Side) -> None:
    shapes = rows.vectors.shape, columns.vectors.shape
    if (
        rows.vectors.ndim != 2
        or columns.vectors.ndim != 2
        or shapes[0][1] != shapes[1][1]
        or 0 in shapes[0] + shapes[1]
    ):
        raise ValueError(
            f"the two sides must be [n, dim] and [m, dim], n and m positive: got {shapes[0]} and {shapes[1]}"
        )
    for side in (rows, columns):
        for leaf in jax.tree.leaves(side.known):
            if jnp.ndim(leaf) not in (1, 2) or jnp.shape(leaf)[0] != side.vectors.shape[0]:
                raise ValueError(
                    f"what is known of {side.vectors.shape[0]} vectors must have that length: got {jnp.shape(leaf)}"
                )


def _platform(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _cheaper_exchange(columns: Side) -> Exchange:
    size = columns.vectors.size
    needed = size * (columns.vectors.dtype.itemsize + accumulation_dtype(columns.vectors).itemsize)
    return "gather" if needed <= GATHER_LIMIT_BYTES else "ring"


# ---- the differentiable function -------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(plan: _Plan, rows: Side, columns: Side, shared: Any) -> dict[str, Any]:
    if plan.mesh is None:
        walk = plan.walk(rows, columns)
        states = reduce_blocks(walk, rows, columns, shared, empty_states(walk, rows, columns))
        return {name: reductions_of.finish(reduction, states[name]) for name, reduction in plan.reductions}
    on_devices = _gathered_forward if plan.exchange == "gather" else _ring_forward
    return jax.shard_map(
        partial(on_devices, plan),
        mesh=plan.mesh,
        in_specs=(plan.split, plan.split, PartitionSpec()),
        out_specs=plan.split,
        check_vma=False,
    )(rows, columns, shared)


def _reduce_forward(plan: _Plan, rows: Side, columns: Side, shared: Any) -> tuple[dict[str, Any], Any]:
    results = _reduce(plan, rows, columns, shared)
    return results, (rows, columns, shared, results)


def _reduce_backward(plan: _Plan, kept: Any, cotangents: dict[str, Any]) -> tuple[Side, Side, Any]:
    rows, columns, shared, results = kept
    cotangents = {name: ct.value if isinstance(ct, Extreme) else ct for name, ct in cotangents.items()}
    arguments = (rows, columns, shared, results, cotangents)
    if plan.mesh is None:
        gradient = pull_back_blocks(plan.walk(rows, columns), *arguments, zero_gradient(rows, columns, shared))
    else:
        on_devices = _gathered_backward if plan.exchange == "gather" else _ring_backward
        gradient = jax.shard_map(
            partial(on_devices, plan),
            mesh=plan.mesh,
            in_specs=(plan.split, plan.split, PartitionSpec(), plan.split, plan.split),
            out_specs=Gradient(*4 * (plan.split,), PartitionSpec()),  # type: ignore[arg-type]
            check_vma=False,
        )(*arguments)
    return (
        Side(gradient.rows.astype(rows.vectors.dtype), _with_zeros(rows.known, gradient.row_known)),
        Side(gradient.columns.astype(columns.vectors.dtype), _with_zeros(columns.known, gradient.column_known)),
        _with_zeros(shared, gradient.shared),
    )


_reduce.defvjp(_reduce_forward, _reduce_backward)
_reduce_compiled = jax.jit(_reduce, static_argnums=0)  # so that calls outside `jit` compile once, not every time


def _with_zeros(tree: Any, of_floats: list[Array]) -> Any:
    """The cotangent of a tree: `of_floats` for its floating leaves, the empty cotangent for the others."""
    supply = iter(of_floats)

    def cotangent(leaf: Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return next(supply).astype(leaf.dtype)
        return np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(cotangent, tree)


# ---- on each device: all columns gathered ----------------------------------------------------------------


def _gathered_forward(plan: _Plan, rows: Side, columns: Side, shared: Any) -> dict[str, Any]:
    everything = _gather(columns, plan.axes)
    row_offset = jax.lax.axis_index(plan.axes) * rows.vectors.shape[0]
    walk = plan.walk(rows, everything)
    states = empty_states(walk, rows, everything)
    states = reduce_blocks(walk, rows, everything, shared, states, row_offset=row_offset)
    results = {}
    for name, reduction in plan.reductions:
        state = states[name]
        if reduction.per == "column":
            state = reductions_of.merge_over_devices(reduction, state, plan.axes)
        results[name] = reductions_of.finish(reduction, state)
    return results


def _gathered_backward(
    plan: _Plan, rows: Side, columns: Side, shared: Any, results: dict, cotangents: dict
) -> Gradient:
    everything = _gather(columns, plan.axes)
    of_columns = {name for name, reduction in plan.reductions if reduction.per == "column"}
    results, cotangents = (
        {name: _gather(value, plan.axes) if name in of_columns else value for name, value in values.items()}
        for values in (results, cotangents)
    )
    row_offset = jax.lax.axis_index(plan.axes) * rows.vectors.shape[0]
    nothing = zero_gradient(rows, everything, shared)
    gradient = pull_back_blocks(
        plan.walk(rows, everything), rows, everything, shared, results, cotangents, nothing, row_offset=row_offset
    )
    return gradient._replace(
        columns=reductions_of.scatter_sum(gradient.columns, plan.axes),
        column_known=[reductions_of.scatter_sum(g, plan.axes) for g in gradient.column_known],
        shared=[jax.lax.psum(g, plan.axes) for g in gradient.shared],
    )


def _gather(tree: Any, axes: tuple[str, ...]) -> Any:
    def gather(array: Array) -> Array:
        for axis in reversed(axes):  # innermost first, so that shards come out in mesh order
            array = jax.lax.all_gather(array, axis, tiled=True)
        return array

    return jax.tree.map(gather, tree)


# ---- on each device: columns going round -----------------------------------------------------------------
#
# With P devices, the shard of columns that starts at device p visits p - 1, p - 2, ..., p + 1. What is added up for
# it (states forward, gradients backward) sets out empty from its first host and is home after P - 1 hops; the block
# at home is worked on while the first shard is on its way. So both travel P - 1 hops, the least possible.


def _ring_forward(plan: _Plan, rows: Side, columns: Side, shared: Any) -> dict[str, Any]:
    walk = plan.walk(rows, columns)
    own = jax.lax.axis_index(plan.axes)
    size = rows.vectors.shape[0], columns.vectors.shape[0]

    def visit(shard: Side, home: Array, states: dict) -> dict:
        offsets = {"row_offset": own * size[0], "column_offset": home * size[1]}
        return reduce_blocks(walk, rows, shard, shared, states, **offsets)

    per_row = {name for name, reduction in plan.reductions if reduction.per == "row"}

    def go_round(shard: Side, home: Array, states: dict) -> dict:
        states = visit(shard, home, states)
        return {name: s if name in per_row else _hop(s, plan) for name, s in states.items()}

    states = _round(plan, columns, empty_states(walk, rows, columns), go_round)
    states = visit(columns, own, states)
    return {name: reductions_of.finish(reduction, states[name]) for name, reduction in plan.reductions}


def _ring_backward(plan: _Plan, rows: Side, columns: Side, shared: Any, results: dict, cotangents: dict) -> Gradient:
    walk = plan.walk(rows, columns)
    own = jax.lax.axis_index(plan.axes)
    size = rows.vectors.shape[0], columns.vectors.shape[0]
    per_row = {name for name, reduction in plan.reductions if reduction.per == "row"}
    of_rows, of_columns = (
        {name: (results[name], cotangents[name]) for name, _ in plan.reductions if (name in per_row) == wanted}
        for wanted in (True, False)
    )

    def visit(travelling: Any, home: Array, total: Gradient) -> Gradient:
        shard, of_shard = travelling
        both = of_rows | of_shard
        return pull_back_blocks(
            walk,
            rows,
            shard,
            shared,
            {name: value[0] for name, value in both.items()},
            {name: value[1] for name, value in both.items()},
            total,
            row_offset=own * size[0],
            column_offset=home * size[1],
        )

    def go_round(travelling: Any, home: Array, total: Gradient) -> Gradient:
        total = visit(travelling, home, total)
        return total._replace(columns=_hop(total.columns, plan), column_known=_hop(total.column_known, plan))

    total = _round(plan, (columns, of_columns), zero_gradient(rows, columns, shared), go_round)
    total = visit((columns, of_columns), own, total)
    return total._replace(shared=[jax.lax.psum(g, plan.axes) for g in total.shared])


def _round(plan: _Plan, travelling: Any, carried: Any, visit: Any) -> Any:
    """``visit(shard, home, carried)`` for every shard but the device's own; the next one travels meanwhile."""
    assert plan.mesh is not None
    devices = math.prod(plan.mesh.shape[axis] for axis in plan.axes)
    own = jax.lax.axis_index(plan.axes)

    def step(hops: Array, state: tuple) -> tuple:
        travelling, carried = state
        following = _hop(travelling, plan)  # nothing below waits for it
        return following, visit(travelling, (own + hops) % devices, carried)

    travelling, carried = jax.lax.fori_loop(1, devices - 1, step, (_hop(travelling, plan), carried))
    return visit(travelling, (own + devices - 1) % devices, carried)


def _hop(tree: Any, plan: _Plan) -> Any:
    """Every device hands `tree` to the device before it."""
    assert plan.mesh is not None
    devices = math.prod(plan.mesh.shape[axis] for axis in plan.axes)
    ring = [(device, (device - 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, plan.axes, ring), tree)
