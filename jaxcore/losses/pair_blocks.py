"""The walk over blocks of a similarity matrix on one device: forward with online states, backward recomputing.

The matrix ``s_ij = <r_i, c_j>`` exists one block at a time. A *terms* function maps a block, with what is known of
its rows and columns, to the terms that are reduced; the backward walk differentiates that same function block by
block. Time is four matrix products (8 N^2 d FLOPs for N x N: one forward, three backward), memory O(N d); where some
blocks are kept for the backward walk, the product that computes them again is saved.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jaxcore.losses import pair_reductions as reductions_of
from jaxcore.losses.pair_reductions import Extreme, Reduction, State

Terms = Callable[[Array, Any, Any, Any], dict[str, Array]]
"""``terms(similarity [b, c], of_rows [b, 1], of_columns [1, c], shared) -> {name: [b, c]}``, elementwise.

What is known as [n, k] comes as [b, k] and [c, k].
"""
Named = tuple[tuple[str, Reduction], ...]
"""Reductions by name, in a fixed order."""


@struct.dataclass
class Side:
    """One side of a similarity matrix.

    Attributes:
        vectors: [n, dim].
        known: a tree of [n] arrays that the terms may use: labels, ids, log-weights, biases; or [n, k] arrays, such as
            the vectors of a second similarity. Floating ones get gradients.
    """

    vectors: Float[Array, "n dim"]
    known: PyTree[Array] = struct.field(default_factory=dict)


class Blocks(NamedTuple):
    """Rows and columns of one block."""

    rows: int
    columns: int


def fit_blocks(largest: Blocks, num_rows: int, num_columns: int) -> Blocks:
    """Blocks no larger than `largest` that leave as little padding as possible."""
    return Blocks(_even(num_rows, largest.rows), _even(num_columns, largest.columns))


def _even(size: int, largest: int) -> int:
    count = -(-size // largest)
    block = -(-size // count)
    return block if count == 1 else min(-(-block // 8) * 8, largest)


class Walk(NamedTuple):
    """What does not change over a walk.

    Attributes:
        terms: see `Terms`.
        reductions: what to reduce the terms to.
        blocks: size of a block.
        columns_last: keep the gradient of the columns as [dim, columns] while it is added up, so that each of the
            three products is a plain [m, k] x [k, n] one. A matrix unit does not care; XLA's product on CPU takes
            1.6 times as long to contract two leading axes.
    """

    terms: Terms
    reductions: Named
    blocks: Blocks
    columns_last: bool = False


def accumulation_dtype(vectors: Array) -> Any:
    """float32, or float64 for float64 vectors."""
    return jnp.promote_types(vectors.dtype, jnp.float32)


def empty_states(walk: Walk, rows: Side, columns: Side) -> dict[str, State]:
    """States before any block of `rows` x `columns`."""
    dtype = accumulation_dtype(rows.vectors)
    size = {"row": rows.vectors.shape[0], "column": columns.vectors.shape[0]}
    return {name: reductions_of.empty(r, size[r.per], dtype) for name, r in walk.reductions}


def reduce_blocks(
    walk: Walk,
    rows: Side,
    columns: Side,
    shared: Any,
    states: dict[str, State],
    *,
    row_offset: Array | int = 0,
    column_offset: Array | int = 0,
) -> dict[str, State]:
    """`states` after ``rows x columns``, walked in blocks.

    Args:
        states: of what was seen before; `empty_states` to begin with.
        row_offset, column_offset: index of the first row and column in the whole matrix, for the index of a maximum.
    """
    states, _ = reduce_blocks_keeping(
        walk, rows, columns, shared, states, 0, row_offset=row_offset, column_offset=column_offset
    )
    return states


def reduce_blocks_keeping(
    walk: Walk,
    rows: Side,
    columns: Side,
    shared: Any,
    states: dict[str, State],
    num_kept: int,
    *,
    row_offset: Array | int = 0,
    column_offset: Array | int = 0,
) -> tuple[dict[str, State], Float[Array, "kept b c"]]:
    """`reduce_blocks`, and the similarities of the first `num_kept` blocks, for `pull_back_blocks`."""
    grid = _Grid(walk.blocks, rows, columns)
    rows, columns = grid.pad_rows(rows), grid.pad_columns(columns)
    offsets = {"row": column_offset, "column": row_offset}
    kept = jnp.zeros((num_kept, *walk.blocks), accumulation_dtype(rows.vectors))

    def visit(keep: bool, step: Array, carried: tuple[dict[str, State], Array]) -> tuple[dict[str, State], Array]:
        states, kept = carried
        place = grid.place(step)
        row, column = place.of_rows(rows), place.of_columns(columns)
        similarity = _similarity(row.vectors, column.vectors)
        if keep:
            kept = jax.lax.dynamic_update_index_in_dim(kept, similarity, step, 0)
        terms = place.terms(walk, similarity, row.known, column.known, shared)
        new = {}
        for name, reduction in walk.reductions:
            per_row = reduction.per == "row"
            start = offsets[reduction.per] + (place.column if per_row else place.row)
            seen = reductions_of.of_block(reduction, terms[name], start)
            old = place.slice(states[name], reduction)
            new[name] = place.put(states[name], reductions_of.merge(reduction, old, seen), reduction)
        return new, kept

    states = {name: grid.pad(states[name], reduction) for name, reduction in walk.reductions}
    carried = _loop(0, num_kept, partial(visit, True), (states, kept))
    states, kept = _loop(num_kept, grid.count, partial(visit, False), carried)
    return {name: grid.cut(states[name], reduction) for name, reduction in walk.reductions}, kept


def count_kept(walk: Walk, rows: Side, columns: Side, limit_bytes: int) -> int:
    """How many blocks of similarities fit into `limit_bytes`: whole rows of blocks, none if not a quarter of all.

    Fewer save less than a sixteenth of the time, which fresh memory may cost.
    """
    grid = _Grid(walk.blocks, rows, columns)
    block_row = grid.across * walk.blocks.rows * walk.blocks.columns * accumulation_dtype(rows.vectors).itemsize
    fitting = min(limit_bytes // block_row * grid.across, grid.count)
    return fitting if 4 * fitting >= grid.count else 0


class Gradient(NamedTuple):
    """Cotangents of one walk; integer leaves of ``known`` are absent."""

    rows: Float[Array, "n dim"]
    columns: Float[Array, "m dim"]
    row_known: list[Array]
    column_known: list[Array]
    shared: list[Array]


def pull_back_blocks(
    walk: Walk,
    rows: Side,
    columns: Side,
    shared: Any,
    results: dict[str, Array | Extreme],
    cotangents: dict[str, Array],
    total: Gradient,
    *,
    kept: Float[Array, "kept b c"] | None = None,
    row_offset: Array | int = 0,
    column_offset: Array | int = 0,
) -> Gradient:
    """`total` plus the gradient of ``sum <result, cotangent>`` with respect to everything floating, in float32.

    Args:
        total: what it is added to; `zero_gradient` to begin with.
        results: what the whole forward walk (over all columns and devices) finished with, for these rows and columns.
        cotangents: of those results; of the value where the result is an `Extreme`.
        kept: similarities of the first blocks, from `reduce_blocks_keeping`; the others are computed again.
    """
    grid = _Grid(walk.blocks, rows, columns)
    rows, columns = grid.pad_rows(rows), grid.pad_columns(columns)
    padded = {name: grid.pad((results[name], cotangents[name]), reduction) for name, reduction in walk.reductions}
    offsets = {"row": column_offset, "column": row_offset}
    dtype = accumulation_dtype(rows.vectors)
    operand = jnp.bfloat16 if rows.vectors.dtype == jnp.bfloat16 else dtype
    if kept is None:
        kept = jnp.zeros((0, *walk.blocks), dtype)

    def visit_rows(from_kept: bool, index: Array, total: Gradient) -> Gradient:
        row = grid.place(index * grid.across).of_rows(rows)
        # Behind a barrier, or the compiler folds the transposition back into the product.
        transposed = jax.lax.optimization_barrier(row.vectors.T) if walk.columns_last else None

        def visit(column_index: Array, total: Gradient) -> Gradient:
            step = index * grid.across + column_index
            place = grid.place(step)
            column = place.of_columns(columns)
            similarity = kept[step] if from_kept else _similarity(row.vectors, column.vectors)
            of_block = _pull_back_terms(walk, place, similarity, row, column, shared, padded, offsets)
            of_similarity = of_block.similarity.astype(operand)
            if transposed is not None:
                step_columns = _product("di,ij->dj", transposed, of_similarity)
                of_columns = _add(total.columns, step_columns[None], column_index, 1)
            else:
                of_columns = place.add_columns(total.columns, _product("ij,id->jd", of_similarity, row.vectors))
            known = (total.row_known, of_block.row_known), (total.column_known, of_block.column_known)
            return Gradient(
                rows=place.add_rows(total.rows, _product("ij,jd->id", of_similarity, column.vectors)),
                columns=of_columns,
                row_known=[place.add_rows(t, g) for t, g in zip(*known[0], strict=True)],
                column_known=[place.add_columns(t, g) for t, g in zip(*known[1], strict=True)],
                shared=[t + g.astype(t.dtype) for t, g in zip(total.shared, of_block.shared, strict=True)],
            )

        return jax.lax.fori_loop(0, grid.across, visit, total)

    kept_rows = kept.shape[0] // grid.across
    total = grid.open(total, columns_last=walk.columns_last)
    total = _loop(0, kept_rows, partial(visit_rows, True), total)
    total = _loop(kept_rows, grid.count // grid.across, partial(visit_rows, False), total)
    return grid.close(total, columns_last=walk.columns_last)


class _BlockGradient(NamedTuple):
    """Cotangents of one block: of its similarities, and of what is known of its rows, of its columns and of all."""

    similarity: Float[Array, "b c"]
    row_known: list[Array]
    column_known: list[Array]
    shared: list[Array]


def _pull_back_terms(
    walk: Walk,
    place: "_Place",
    similarity: Array,
    row: Side,
    column: Side,
    shared: Any,
    results: dict[str, Any],
    offsets: dict[str, Array | int],
) -> _BlockGradient:
    """The gradient of one block; `results` are results with their cotangents, padded."""
    row_floats, rebuild_row = split_floats(row.known)
    column_floats, rebuild_column = split_floats(column.known)
    shared_floats, rebuild_shared = split_floats(shared)

    def terms_of(similarity: Array, of_row: list, of_column: list, of_all: list) -> dict[str, Array]:
        return place.terms(walk, similarity, rebuild_row(of_row), rebuild_column(of_column), rebuild_shared(of_all))

    terms, pull = jax.vjp(terms_of, similarity, row_floats, column_floats, shared_floats)
    of_terms = {}
    for name, reduction in walk.reductions:
        result, cotangent = place.slice(results[name], reduction)
        start = offsets[reduction.per] + (place.column if reduction.per == "row" else place.row)
        pulled = reductions_of.pull_back(reduction, terms[name], result, cotangent, start)
        of_terms[name] = pulled.astype(terms[name].dtype)
    return _BlockGradient(*pull(of_terms))


def zero_gradient(rows: Side, columns: Side, shared: Any) -> Gradient:
    """No gradient yet, in the dtype that gradients are accumulated in."""
    dtype = accumulation_dtype(rows.vectors)

    def zeros(leaves: list[Array]) -> list[Array]:
        return [jnp.zeros(leaf.shape, dtype) for leaf in leaves]

    return Gradient(
        rows=jnp.zeros(rows.vectors.shape, dtype),
        columns=jnp.zeros(columns.vectors.shape, dtype),
        row_known=zeros(split_floats(rows.known)[0]),
        column_known=zeros(split_floats(columns.known)[0]),
        shared=zeros(split_floats(shared)[0]),
    )


def split_floats(tree: PyTree[Array]) -> tuple[list[Array], Callable[[list[Array]], PyTree[Array]]]:
    """The floating leaves of a tree, and the function that puts replacements of them back."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def rebuild(replacements: list[Array]) -> PyTree[Array]:
        supply = iter(replacements)
        both = zip(leaves, floating, strict=True)
        return jax.tree.unflatten(structure, [next(supply) if is_float else leaf for leaf, is_float in both])

    return [leaf for leaf, is_float in zip(leaves, floating, strict=True) if is_float], rebuild


def _loop(start: int, stop: int, body: Callable[[Array, Any], Any], carried: Any) -> Any:
    """`jax.lax.fori_loop`, not even traced where there is nothing to do."""
    return carried if start == stop else jax.lax.fori_loop(start, stop, body, carried)


def _similarity(rows: Float[Array, "b dim"], columns: Float[Array, "c dim"]) -> Float[Array, "b c"]:
    return _product("id,jd->ij", rows, columns)


def _product(equation: str, left: Array, right: Array) -> Array:
    """Full precision for float32 (accelerators would round its operands), bfloat16 operands as they are."""
    if left.dtype != right.dtype or left.dtype == jnp.float16:
        dtype = jnp.promote_types(jnp.promote_types(left.dtype, right.dtype), jnp.float32)
        left, right = left.astype(dtype), right.astype(dtype)
    precision = jax.lax.Precision.DEFAULT if left.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    out = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=out)


class _Grid:
    """How a matrix is cut into blocks, with padding where they do not divide it."""

    def __init__(self, blocks: Blocks, rows: Side, columns: Side) -> None:
        self.blocks = blocks
        self.num_rows, self.num_columns = rows.vectors.shape[0], columns.vectors.shape[0]
        self.across = -(-self.num_columns // blocks.columns)
        self.count = -(-self.num_rows // blocks.rows) * self.across
        self.extra_rows = -self.num_rows % blocks.rows
        self.extra_columns = -self.num_columns % blocks.columns

    def pad_rows(self, side: Side) -> Side:
        return _pad(side, self.extra_rows)

    def pad_columns(self, side: Side) -> Side:
        return _pad(side, self.extra_columns)

    def pad(self, tree: Any, reduction: Reduction) -> Any:
        return _pad(tree, self.extra_rows if reduction.per == "row" else self.extra_columns)

    def cut(self, state: State, reduction: Reduction) -> State:
        size = self.num_rows if reduction.per == "row" else self.num_columns
        return tuple(array[:size] for array in state)

    def open(self, total: Gradient, *, columns_last: bool) -> Gradient:
        """`total` as blocks are added to it: padded; columns as [across, dim, columns] where they are last."""
        columns = _pad(total.columns, self.extra_columns)
        if columns_last:
            columns = jnp.swapaxes(columns.reshape(self.across, -1, columns.shape[-1]), 1, 2)
        return total._replace(
            rows=_pad(total.rows, self.extra_rows),
            columns=columns,
            row_known=_pad(total.row_known, self.extra_rows),
            column_known=_pad(total.column_known, self.extra_columns),
        )

    def close(self, total: Gradient, *, columns_last: bool) -> Gradient:
        """The inverse of `open`."""
        columns = total.columns
        if columns_last:
            columns = jnp.swapaxes(columns, 1, 2).reshape(-1, columns.shape[1])
        return total._replace(
            rows=total.rows[: self.num_rows],
            columns=columns[: self.num_columns],
            row_known=[g[: self.num_rows] for g in total.row_known],
            column_known=[g[: self.num_columns] for g in total.column_known],
        )

    def place(self, step: Array) -> "_Place":
        row, column = step // self.across * self.blocks.rows, step % self.across * self.blocks.columns
        return _Place(self, row, column)


class _Place(NamedTuple):
    """One block of a grid: where it begins, and reading and writing its part of arrays along rows or columns."""

    grid: _Grid
    row: Array
    column: Array

    def of_rows(self, side: Side) -> Side:
        return _slice(side, self.row, self.grid.blocks.rows)

    def of_columns(self, side: Side) -> Side:
        return _slice(side, self.column, self.grid.blocks.columns)

    def slice(self, tree: Any, reduction: Reduction) -> Any:
        rows, columns = self.grid.blocks
        per_row = reduction.per == "row"
        return _slice(tree, self.row if per_row else self.column, rows if per_row else columns)

    def put(self, state: State, new: State, reduction: Reduction) -> State:
        start = self.row if reduction.per == "row" else self.column
        pairs = zip(state, new, strict=True)
        return tuple(jax.lax.dynamic_update_slice_in_dim(old, value, start, 0) for old, value in pairs)

    def add_rows(self, total: Array, part: Array) -> Array:
        return _add(total, part, self.row, self.grid.blocks.rows)

    def add_columns(self, total: Array, part: Array) -> Array:
        return _add(total, part, self.column, self.grid.blocks.columns)

    def terms(self, walk: Walk, similarity: Array, of_rows: Any, of_columns: Any, shared: Any) -> dict[str, Array]:
        """The block's terms, with padding excluded."""
        terms = walk.terms(
            similarity,
            jax.tree.map(lambda x: x[:, None] if x.ndim == 1 else x, of_rows),
            jax.tree.map(lambda x: x[None, :] if x.ndim == 1 else x, of_columns),
            shared,
        )
        valid = self._valid(similarity.shape)
        if valid is None:
            return {name: terms[name] for name, _ in walk.reductions}
        return {name: jnp.where(valid, terms[name], reduction.excluded) for name, reduction in walk.reductions}

    def _valid(self, shape: tuple[int, ...]) -> Array | None:
        valid = None
        if self.grid.extra_rows:
            valid = self.row + jax.lax.broadcasted_iota(jnp.int32, shape, 0) < self.grid.num_rows
        if self.grid.extra_columns:
            inside = self.column + jax.lax.broadcasted_iota(jnp.int32, shape, 1) < self.grid.num_columns
            valid = inside if valid is None else valid & inside
        return valid


def _pad(tree: Any, extra: int) -> Any:
    if not extra:
        return tree
    return jax.tree.map(lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), tree)


def _slice(tree: Any, start: Array, size: int) -> Any:
    return jax.tree.map(lambda x: x if x.shape[0] == size else jax.lax.dynamic_slice_in_dim(x, start, size), tree)


def _add(total: Array, part: Array, start: Array, size: int) -> Array:
    part = part.reshape(size, *total.shape[1:]).astype(total.dtype)
    if total.shape[0] == size:
        return total + part
    return jax.lax.dynamic_update_slice_in_dim(total, jax.lax.dynamic_slice_in_dim(total, start, size) + part, start, 0)
