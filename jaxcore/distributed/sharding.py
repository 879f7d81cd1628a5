"""Where arrays live: logical axis names to mesh axes, batches from per-process rows, values back on the host.

Models annotate parameters with logical names (``nn.with_logical_partitioning``); this file alone says what
the names mean on a mesh.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcore.distributed.mesh import BATCH_AXES, batch_sharding, replicated

__all__ = [
    "DEFAULT_RULES",
    "Rules",
    "constrain_rows",
    "gather_to_host",
    "jit_on_mesh",
    "partition_spec",
    "replicated_rows",
    "shard_local_batch",
    "split_rows",
    "tree_shardings",
    "under_mesh",
]

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

DEFAULT_RULES: Rules = (
    ("batch", BATCH_AXES),
    ("vocab", "tensor"),
    ("position", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("layers", None),
    ("norm", None),
)
"""Logical axis to mesh axis (or axes, or none). The form that ``flax.linen.logical_axis_rules`` takes too."""


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> PartitionSpec:
    """PartitionSpec of one array from the logical names of its dimensions.

    A mesh axis is used once per array, by the first dimension that asks for it; a dimension that its mesh
    axes do not divide stays whole.

    Raises:
      ValueError: a name without a rule.
    """
    meaning = dict(rules)
    used: set[str] = set()
    entries: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in meaning:
            raise ValueError(f"logical axis {name!r} has no rule; known: {', '.join(meaning)}; add it to the rules")
        target = meaning[name] if name is not None else None
        wanted = (target,) if isinstance(target, str) else tuple(target or ())
        axes = tuple(axis for axis in wanted if axis not in used)
        if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            used.update(axes)
            entries.append(axes[0] if len(axes) == 1 else axes)
        else:
            entries.append(None)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def tree_shardings(abstract_boxed_tree: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """NamedSharding for every array of a tree whose leaves may be boxed with logical names.

    Works for parameters and for what ``jax.eval_shape(optimizer.init, boxed_params)`` gives: moments keep
    their parameter's box; a boxed array whose rank differs from its names (factored moments) and an array
    without a box are replicated.

    Args:
      abstract_boxed_tree: arrays or ShapeDtypeStructs, some inside ``nn.LogicallyPartitioned``.
      mesh: the mesh.
      rules: logical axis to mesh axis.

    Returns:
      The tree without its boxes, with a NamedSharding in place of each array.
    """

    def sharding(leaf: Any) -> Any:
        if not isinstance(leaf, nn.meta.AxisMetadata):
            return replicated(mesh)
        names = getattr(leaf, "names", None)
        value = leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.Partitioned) else leaf.unbox()

        def one(array: Any) -> NamedSharding:
            if names is None or len(names) != len(array.shape):
                return replicated(mesh)
            return NamedSharding(mesh, partition_spec(names, array.shape, mesh, rules))

        return jax.tree.map(one, value)

    return jax.tree.map(sharding, abstract_boxed_tree, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))


def jit_on_mesh(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Any:
    """``jax.jit(function, **options)`` whose code may call `constrain_rows`: the mesh is known while it is traced."""

    @functools.wraps(function)
    def on_mesh(*args: Any, **kwargs: Any) -> Any:
        with under_mesh(mesh):
            return function(*args, **kwargs)

    return jax.jit(on_mesh, **options)


def under_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Inside it, while a function is traced, `constrain_rows` knows the mesh; None = there is none."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain_rows(rows: jax.Array) -> jax.Array:
    """Keep the leading axis split over the batch axes of the mesh being traced for; the identity without a mesh.

    A model says it of its residual stream. Without it the partitioner, seeing ``fsdp`` on a weight's contracted
    dimension, may split the contraction and all-reduce activations instead of gathering the weight, which on a pod
    moves a hundred times more bytes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(
        axis in mesh.axis_names and dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis] == AxisType.Auto
        for axis in BATCH_AXES
    )
    if not automatic or rows.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(BATCH_AXES, *(None,) * (rows.ndim - 1)))


def shard_local_batch(mesh: Mesh, local_batch: Any) -> Any:
    """Global arrays from the rows that this process holds, sharded over the batch axes.

    Args:
      mesh: the mesh; its processes must all call this with the same tree and shapes.
      local_batch: tree of numpy arrays ``[local_rows, ...]``; scalars are replicated.

    Returns:
      The same tree of jax.Arrays ``[global_rows, ...]``.

    Raises:
      ValueError: rows that this process's devices cannot share equally.
    """
    sharding = batch_sharding(mesh)
    process = jax.process_index()
    coordinates = [index for index, device in np.ndenumerate(mesh.devices) if device.process_index == process]
    local_shards = len({index[: len(BATCH_AXES)] for index in coordinates})

    def put(path: Any, rows: Any) -> jax.Array:
        rows = np.asarray(rows)
        if rows.ndim == 0:
            return jax.make_array_from_process_local_data(replicated(mesh), rows)
        if local_shards and rows.shape[0] % local_shards:
            raise ValueError(
                f"batch array {jax.tree_util.keystr(path)} has {rows.shape[0]} rows on process {process}, "
                "which do not "
                f"divide over its {local_shards} batch shards; use a multiple of {local_shards}"
            )
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree_util.tree_map_with_path(put, local_batch)


def split_rows(mesh: Mesh, rows: Any) -> jax.Array:
    """Rows ``[global_rows, ...]`` that every process holds whole, sharded over the batch axes."""
    array = np.asarray(rows)
    return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda index: array[index])


def replicated_rows(mesh: Mesh, rows: Any) -> jax.Array:
    """The same, whole on every device."""
    array = np.asarray(rows)
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])


def gather_to_host(tree: Any) -> Any:
    """Every array whole, as numpy, on every process. All processes must call it with the same tree.

    Arrays that other processes hold parts of are gathered; arrays that this process holds whole are copied as
    they are. Typed PRNG keys come back as their raw data.
    """

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)
