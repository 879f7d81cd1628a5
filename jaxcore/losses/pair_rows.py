"""Whole rows of a similarity matrix, a few at a time: for losses that sort or search a row, which blocks cannot.

Memory is O(N) per row in work; the backward pass recomputes each group of rows. Where a reduction suffices, use
`jaxcore.losses.pairs`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxcore.distributed import BATCH_AXES
from jaxcore.losses.pair_blocks import Side


def map_similarity_rows(
    function: Callable[[Array, Any, Any], Any],
    rows: Side,
    columns: Side,
    *,
    rows_at_once: int = 1,
    mesh: Mesh | None = None,
) -> Any:
    """``function(s_i [m], known of row i, known of all columns)`` for every row i; results stacked to [n, ...].

    Args:
        function: differentiable; sees one row of ``s_ij = <r_i, c_j>`` in float32.
        rows_at_once: rows vectorised together. With 1 nothing is vectorised, so `jax.lax.cond` really skips work.
        mesh: rows are spread over its batch axes, columns gathered on every device.
    """
    axes = () if mesh is None else tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)

    def on_device(rows: Side, columns: Side) -> Any:
        for axis in reversed(axes):
            columns = jax.tree.map(partial(jax.lax.all_gather, axis_name=axis, tiled=True), columns)

        @jax.checkpoint
        def one(row: Side) -> Any:
            similarity = jnp.einsum(
                "d,jd->j",
                row.vectors,
                columns.vectors,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=jnp.promote_types(columns.vectors.dtype, jnp.float32),
            )
            return function(similarity, row.known, columns.known)

        return jax.lax.map(one, rows, batch_size=None if rows_at_once == 1 else rows_at_once)

    if not axes:
        return on_device(rows, columns)
    assert mesh is not None
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if rows.vectors.shape[0] % devices or columns.vectors.shape[0] % devices:
        raise ValueError(
            f"{rows.vectors.shape[0]} rows and {columns.vectors.shape[0]} columns cannot be split over "
            f"{devices} devices: the batch must be a multiple of {devices}"
        )
    split = PartitionSpec(axes)
    return jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(rows, columns)
