"""The pair engine: one exact, streaming reduction of a similarity matrix, under every pairwise contrastive loss.

A loss says what happens in a block of ``s_ij = <r_i, c_j>``: a *terms* function turns the block, and vectors of what is
known about its rows and columns (labels, ids, log-weights, biases), into terms; `reduce_pairs` reduces them per row or
per column. There is never an N x N array, neither of similarities nor of masks: memory is O(N d), and gradients, also
those of floating annotations and shared scalars such as a temperature, are exact (custom VJP, blocks recomputed).

On a mesh the rows stay where they are, and columns come to them in one of two ways that give the same result:

- *gather*: every device holds all columns. Least latency; memory grows with the global batch.
- *ring*: columns travel from device to device, a piece of every device's at a time, while the piece that has arrived
  is being worked on. Per device: the memory of its own rows, columns and gradients and of a few pieces, and the least
  traffic there is, (P - 1) times its columns forward, and as much again backward for them and for their gradient.

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
    count_kept,
    empty_states,
    fit_blocks,
    pull_back_blocks,
    reduce_blocks,
    reduce_blocks_keeping,
    zero_gradient,
)
from jaxcore.losses.pair_reductions import Extreme, Reduction

Exchange = Literal["gather", "ring"]

GATHER_LIMIT_BYTES = 256 * 2**20
"""Columns and their gradient are gathered while both together take no more than this on a device; else, the ring."""

_LARGEST_BLOCKS = {"cpu": Blocks(1024, 1024), "tpu": Blocks(2048, 2048), "gpu": Blocks(8192, 8192)}

KEPT_BYTES = {"cpu": 128 * 2**20}
"""Similarities that the forward walk leaves to the backward walk: computing one again takes 2 d FLOPs, which on a
matrix unit is no more time than writing and reading it, and on a CPU many times as much. None where a quarter of the
matrix does not fit."""


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
    keep_bytes: int | None = None,
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
        keep_bytes: similarities that the forward walk may leave to the backward walk instead of having them computed
            again, on one device; by platform unless given (`KEPT_BYTES`).

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
        keep_bytes=KEPT_BYTES.get(_platform(mesh), 0) if keep_bytes is None else keep_bytes,
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
    keep_bytes: int

    def walk(self, rows: Side, columns: Side) -> Walk:
        blocks = fit_blocks(self.blocks, rows.vectors.shape[0], columns.vectors.shape[0])
        return Walk(self.terms, self.reductions, blocks, columns_last=_platform(self.mesh) == "cpu")

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
        return _reduce_keeping(plan, rows, columns, shared, 0)[0]
    on_devices = _gathered_forward if plan.exchange == "gather" else _ring_forward
    return jax.shard_map(
        partial(on_devices, plan),
        mesh=plan.mesh,
        in_specs=(plan.split, plan.split, PartitionSpec()),
        out_specs=plan.split,
        check_vma=False,
    )(rows, columns, shared)


def _reduce_keeping(
    plan: _Plan, rows: Side, columns: Side, shared: Any, limit_bytes: int
) -> tuple[dict[str, Any], Array]:
    """On one device: the results, and the first similarities as far as `limit_bytes` go."""
    walk = plan.walk(rows, columns)
    states = empty_states(walk, rows, columns)
    num_kept = count_kept(walk, rows, columns, limit_bytes)
    states, kept = reduce_blocks_keeping(walk, rows, columns, shared, states, num_kept)
    return {name: reductions_of.finish(reduction, states[name]) for name, reduction in plan.reductions}, kept


def _reduce_forward(plan: _Plan, rows: Side, columns: Side, shared: Any) -> tuple[dict[str, Any], Any]:
    if plan.mesh is None:
        results, kept = _reduce_keeping(plan, rows, columns, shared, plan.keep_bytes)
    else:
        results, kept = _reduce(plan, rows, columns, shared), None
    return results, (rows, columns, shared, results, kept)


def _reduce_backward(plan: _Plan, residuals: Any, cotangents: dict[str, Any]) -> tuple[Side, Side, Any]:
    rows, columns, shared, results, kept = residuals
    cotangents = {name: ct.value if isinstance(ct, Extreme) else ct for name, ct in cotangents.items()}
    arguments = (rows, columns, shared, results, cotangents)
    if plan.mesh is None:
        nothing = zero_gradient(rows, columns, shared)
        gradient = pull_back_blocks(plan.walk(rows, columns), *arguments, nothing, kept=kept)
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
# With P devices, a piece of the columns of device p visits p - 1, p - 2, ..., p + 1. What is added up for it (states
# forward, gradients backward: its parcel) sets out empty from its first host and is home after P - 1 hops. So both
# travel P - 1 hops, the least possible; meanwhile the next piece of work is done, beginning with the block at home.
# Only one piece of every device travels at a time: what is under way is small beside what a device holds.


def _ring_forward(plan: _Plan, rows: Side, columns: Side, shared: Any) -> dict[str, Any]:
    row_offset = jax.lax.axis_index(plan.axes) * rows.vectors.shape[0]
    per_row = {name for name, reduction in plan.reductions if reduction.per == "row"}

    def visit(piece: Side, column_offset: Array, of_rows: dict, of_piece: dict) -> tuple[dict, dict]:
        offsets = {"row_offset": row_offset, "column_offset": column_offset}
        states = reduce_blocks(plan.walk(rows, piece), rows, piece, shared, of_rows | of_piece, **offsets)
        return {name: states[name] for name in of_rows}, {name: states[name] for name in of_piece}

    def merge(a: dict, b: dict) -> dict:
        return {name: reductions_of.merge(dict(plan.reductions)[name], a[name], b[name]) for name in a}

    states = empty_states(plan.walk(rows, columns), rows, columns)
    of_rows = {name: state for name, state in states.items() if name in per_row}
    of_columns = {name: state for name, state in states.items() if name not in per_row}
    of_rows, of_columns = _go_round(plan, columns, of_rows, of_columns, visit, merge)
    states = of_rows | of_columns
    return {name: reductions_of.finish(reduction, states[name]) for name, reduction in plan.reductions}


def _ring_backward(plan: _Plan, rows: Side, columns: Side, shared: Any, results: dict, cotangents: dict) -> Gradient:
    row_offset = jax.lax.axis_index(plan.axes) * rows.vectors.shape[0]
    per_row = {name for name, reduction in plan.reductions if reduction.per == "row"}
    of_rows, of_columns = (
        {name: (results[name], cotangents[name]) for name, _ in plan.reductions if (name in per_row) == wanted}
        for wanted in (True, False)
    )

    def visit(travelling: Any, column_offset: Array, resident: Any, parcel: Any) -> tuple[Any, Any]:
        piece, of_piece = travelling
        both = of_rows | of_piece
        total = pull_back_blocks(
            plan.walk(rows, piece),
            rows,
            piece,
            shared,
            {name: value[0] for name, value in both.items()},
            {name: value[1] for name, value in both.items()},
            Gradient(resident[0], parcel[0], resident[1], parcel[1], resident[2]),
            row_offset=row_offset,
            column_offset=column_offset,
        )
        return (total.rows, total.row_known, total.shared), (total.columns, total.column_known)

    def merge(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    nothing = zero_gradient(rows, columns, shared)
    resident, of_all_columns = _go_round(
        plan,
        (columns, of_columns),
        (nothing.rows, nothing.row_known, nothing.shared),
        (nothing.columns, nothing.column_known),
        visit,
        merge,
    )
    of_rows_vectors, of_rows_known, of_shared = resident
    return Gradient(
        of_rows_vectors,
        of_all_columns[0],
        of_rows_known,
        of_all_columns[1],
        [jax.lax.psum(g, plan.axes) for g in of_shared],
    )


def _go_round(plan: _Plan, columns: Any, resident: Any, parcels: Any, visit: Any, merge: Any) -> tuple[Any, Any]:
    """Every device works on all columns, piece by piece.

    Args:
        columns: a tree of arrays along this device's columns.
        resident: what is added up where the rows are.
        parcels: what is added up for this device's columns, empty.
        visit: ``(piece, index of its first column, resident, parcel) -> (resident, parcel)``.
        merge: of two parcels.

    Returns:
        `resident` and `parcels` after all columns and after all rows.
    """
    assert plan.mesh is not None
    devices = math.prod(plan.mesh.shape[axis] for axis in plan.axes)
    own = jax.lax.axis_index(plan.axes)
    num_columns = jax.tree.leaves(columns)[0].shape[0]
    size = piece_size(num_columns, plan.blocks.columns)

    def one_piece(index: Array, state: tuple) -> tuple:
        resident, parcels = state
        piece, empty = (_part(tree, index * size, size) for tree in (columns, parcels))

        def work(travelling: Any, hops: Array | int, resident: Any, parcel: Any) -> tuple[Any, Any]:
            first = (own + hops) % devices * num_columns + index * size
            return visit(travelling, first, resident, parcel)

        def step(hops: Array, state: tuple) -> tuple:
            travelling, resident, parcel = state
            following = _hop(travelling, plan)  # nothing below waits for it
            resident, parcel = work(travelling, hops, resident, parcel)
            return following, resident, _hop(parcel, plan)

        arriving = _hop(piece, plan)
        resident, of_home = work(piece, 0, resident, empty)
        travelling, resident, parcel = jax.lax.fori_loop(1, devices - 1, step, (arriving, resident, empty))
        resident, parcel = work(travelling, devices - 1, resident, parcel)
        whole = merge(of_home, _hop(parcel, plan))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * size, axis=0)
        return resident, jax.tree.map(put, parcels, whole)

    return jax.lax.fori_loop(0, num_columns // size, one_piece, (resident, parcels))


def piece_size(num_columns: int, largest: int) -> int:
    """Columns that travel together: the largest divisor of `num_columns` up to `largest`, or else all of them.

    A divisor below a quarter of `largest` would make many small products out of a few large ones.
    """
    size = max(d for d in range(1, min(num_columns, largest) + 1) if num_columns % d == 0)
    return size if 4 * size >= largest else num_columns


def _part(tree: Any, start: Array, size: int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), tree)


def _hop(tree: Any, plan: _Plan) -> Any:
    """Every device hands `tree` to the device before it."""
    assert plan.mesh is not None
    devices = math.prod(plan.mesh.shape[axis] for axis in plan.axes)
    ring = [(device, (device - 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, plan.axes, ring), tree)
