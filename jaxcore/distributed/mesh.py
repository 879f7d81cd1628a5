"""Device meshes: four named axes, outermost (slowest network) first.

``replica`` crosses slices (data-centre network); ``data`` and ``fsdp`` lie inside a slice; ``tensor`` is only
for models that do not fit otherwise. The batch is sharded over the first three, parameters over ``fsdp`` (and
``tensor``). Keep both ``data`` and ``fsdp`` larger than one on a torus even for pure data parallelism: one
reduce-scatter over a whole 2-D slice compiles to a full all-reduce, one per axis does not.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MeshConfig",
    "batch_sharding",
    "check_batch",
    "make_mesh",
    "num_batch_shards",
    "replicated",
]

AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most once) stands for all that remain."""

    replica: int = 1
    """Copies of the model across slices (data-centre network)."""
    data: int = -1
    """Data parallelism inside a slice."""
    fsdp: int = 1
    """Data parallelism that also shards parameters and optimiser state."""
    tensor: int = 1
    """Sharding of attention heads, MLP width and vocabulary."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over `devices` (default: all) with axes (replica, data, fsdp, tensor), type Auto.

    The order of devices follows the physical interconnect. With several slices the ``replica`` axis must be a
    multiple of their number, so that only it crosses the data-centre network.

    Raises:
      ValueError: sizes that are not positive, or whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _resolve(config, len(devices))
    num_slices = len({getattr(device, "slice_index", None) for device in devices})
    return Mesh(_arrange(shape, devices, num_slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolve(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    sizes = [getattr(config, axis) for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"mesh ({text}): every axis must be a positive number, and at most one may be -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if num_devices % fixed:
            raise ValueError(
                f"mesh ({text}): {num_devices} devices are not a multiple of {fixed}; change the fixed axes"
            )
        sizes[sizes.index(-1)] = num_devices // fixed
    elif fixed != num_devices:
        raise ValueError(
            f"mesh ({text}) needs {fixed} devices, found {num_devices}; set one axis to -1 to take all that remain"
        )
    return tuple(sizes)


def _arrange(shape: tuple[int, ...], devices: list[jax.Device], num_slices: int) -> np.ndarray:
    """Devices in an array of `shape`: torus-aware within a slice, slices along the first axis."""
    if num_slices == 1:
        return _arrange_slice(shape, devices)
    if shape[0] % num_slices:
        raise ValueError(
            f"replica={shape[0]} does not span {num_slices} slices; set mesh.replica to a multiple of {num_slices}"
        )
    within = (shape[0] // num_slices, *shape[1:])
    try:
        return mesh_utils.create_hybrid_device_mesh(within, (num_slices, 1, 1, 1), devices=devices)
    except NotImplementedError:
        return mesh_utils.create_hybrid_device_mesh(
            within, (num_slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
        )


def _arrange_slice(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """One logical axis = whole physical axes where the shape allows it; otherwise an axis is split."""
    try:
        return mesh_utils.create_device_mesh(shape, devices=devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension over every batch axis, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh: Mesh) -> int:
    """Parts that the mesh splits a batch into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, global_batch: int, process_count: int) -> None:
    """Refuses a global batch that devices or processes cannot share equally.

    Args:
      mesh: the mesh that the batch will be sharded over.
      global_batch: rows per step over all processes.
      process_count: processes that each read their share of the rows.

    Raises:
      ValueError: with the nearest sizes that work.
    """
    shards = num_batch_shards(mesh)
    unit = math.lcm(shards, process_count)
    if global_batch <= 0 or global_batch % unit:
        below, above = global_batch // unit * unit, max(unit, -(-global_batch // unit) * unit)
        choices = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(
            f"global batch {global_batch} does not divide over {shards} batch shards of the mesh and "
            f"{process_count} "
            f"process(es); use a multiple of {unit}, for example {choices}"
        )
