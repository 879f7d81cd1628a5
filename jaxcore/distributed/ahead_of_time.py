"""Compiling a step for a TPU topology on a machine that has no TPU: does it fit, and what will it move?

described = describe_topology("v5e:16x16")
mesh = make_mesh(MeshConfig(data=16, fsdp=16), described.devices)
compiled = compile_step(jitted_step, (abstract_state, abstract_batch), mesh=mesh, topology=described.topology)
print(roofline.format_report(compiled, ...))
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxcore.distributed import coordination
from jaxcore.distributed.chips import Topology, parse_topology
from jaxcore.distributed.collectives import Collective, CollectiveTotal, read_collectives, total_by_kind
from jaxcore.distributed.compiled_flops import compiled_flops
from jaxcore.distributed.compiler_options import check_compiler_options
from jaxcore.distributed.flops import FlopCount, count_jaxpr_flops

__all__ = ["CompiledStep", "DescribedTopology", "compile_step", "describe_topology"]

# What libtpu asks a machine that is not a TPU host. The accelerator type does not limit the topologies it
# compiles for.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two compilations at once would die on libtpu's lock file
}


@dataclasses.dataclass(frozen=True)
class DescribedTopology:
    """A topology with devices that programs can be compiled for but not run on."""

    topology: Topology
    devices: tuple[Any, ...]


def describe_topology(name: str) -> DescribedTopology:
    """Devices of a named TPU topology, for `make_mesh` and `compile_step`.

    Sets libtpu's environment variables, which therefore must not have been loaded yet by this process.

    Args:
      name: for example ``v5e:16x16``, ``v5p:4x4x4``, ``v6e:8x8``, or ``v5e:16x16:2`` for two slices.

    Raises:
      ValueError: unknown name, libtpu not installed or already in use, or a shape the chip does not come in.
    """
    topology = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ValueError(f"compiling for {name} needs libtpu, which is not installed; pip install 'jaxcore[tpu]'")
    if coordination.tpu_backend_exists():
        raise ValueError(
            f"compiling for {name}: this process already runs on a TPU; start a process of its own for it, "
            "with "
            "JAX_PLATFORMS=cpu"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    settings: dict[str, Any] = {}
    if topology.num_slices > 1:
        settings["num_slices"] = topology.num_slices
    if topology.chips_per_slice == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(topology.slice_name, platform="tpu", **settings).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {name!r} does not exist ({reason}); try v5e:4x4, v5p:2x2x4 or v6e:8x8") from error
    return DescribedTopology(topology, tuple(devices))


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says about one jitted step.

    Memory is in bytes per device; FLOPs of matmuls and convolutions are per step over all devices unless the
    name says per chip.

    Attributes:
      name: of the step.
      topology: what it was compiled for; None for the machine's own devices.
      num_devices: devices of the mesh.
      fits: whether needed memory is within the chip's.
      refusal: the compiler's sentence when it refused for lack of memory, else "".
      argument_bytes, output_bytes, temporary_bytes, alias_bytes: the executable's own; aliased bytes (donated
        arguments) are part of both arguments and outputs. 0 when the compiler refused.
      needed_bytes: arguments + outputs + temporaries - aliased; the compiler's number when it refused.
      usable_bytes: of the chip; 0 if unknown.
      compile_seconds: tracing, lowering and compiling.
      flops: jaxpr count; `flops.model` and `flops.hardware`.
      compiled_flops_per_chip: read from the executable; above the share of `flops.hardware` where work is
        replicated.
      collectives: read from the executable.
      coordinates: physical position of each partition, slice last, for the link model; () if unknown.
      versions: jax and libtpu.
      executable: the compiled step, or None when the compiler refused.
    """

    name: str
    topology: Topology | None
    num_devices: int
    fits: bool
    refusal: str
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    needed_bytes: int
    usable_bytes: int
    compile_seconds: float
    flops: FlopCount
    compiled_flops_per_chip: int
    collectives: tuple[Collective, ...]
    coordinates: tuple[tuple[int, ...], ...]
    versions: str
    executable: jax.stages.Compiled | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def collective_totals(self) -> dict[str, CollectiveTotal]:
        """Count and bytes per step and chip, by kind."""
        return total_by_kind(self.collectives)

    @property
    def model_flops_per_chip(self) -> float:
        return self.flops.model / self.num_devices

    @property
    def hardware_flops_per_chip(self) -> float:
        return self.flops.hardware / self.num_devices


def compile_step(
    step: Any,
    abstract_args: Sequence[Any],
    *,
    mesh: Mesh,
    topology: Topology | None = None,
    abstract_kwargs: Mapping[str, Any] | None = None,
    name: str = "step",
    compiler_options: Mapping[str, Any] | None = None,
    model_flops: int | None = None,
) -> CompiledStep:
    """Compiles a jitted step for the devices of a mesh, without data, and reads the executable.

    Args:
      step: result of ``jax.jit``, with shardings in it or in the abstract arguments.
      abstract_args: positional arguments as trees of ShapeDtypeStruct.
      mesh: over described (or real) devices.
      topology: from `describe_topology`; gives the memory limit.
      abstract_kwargs: keyword arguments, likewise.
      name: for reports.
      compiler_options: for this program only; an unknown name is an error of the compiler.
      model_flops: replaces the walk's model FLOPs (work that a step repeats without telling, see
        `RECOMPUTE_SCOPE`).

    Returns:
      A `CompiledStep`, also when the compiler refuses for lack of memory (then ``fits`` is False).

    Raises:
      ValueError: an option that this project refuses.
      jax.errors.JaxRuntimeError: any other failure of the compiler.
    """
    check_compiler_options(compiler_options or {})
    began = time.monotonic()
    traced = step.trace(*abstract_args, **dict(abstract_kwargs or {}))
    flops = count_jaxpr_flops(traced.jaxpr, assumed_trips=1)
    if model_flops is not None:
        flops = dataclasses.replace(flops, recomputed=flops.hardware - model_flops)
    executable, refusal, needed = _compile(traced, mesh, compiler_options)
    shared: dict[str, Any] = {
        "name": name,
        "topology": topology,
        "num_devices": mesh.size,
        "usable_bytes": topology.chip.memory_bytes if topology is not None else 0,
        "compile_seconds": time.monotonic() - began,
        "flops": flops,
        "coordinates": _coordinates(mesh),
        "versions": _versions(),
    }
    if executable is None:
        empty: dict[str, Any] = dict.fromkeys(("argument_bytes", "output_bytes", "temporary_bytes", "alias_bytes"), 0)
        return CompiledStep(
            **shared,
            **empty,
            fits=False,
            refusal=refusal,
            needed_bytes=needed,
            compiled_flops_per_chip=0,
            collectives=(),
        )
    return _read_executable(executable, shared)


def _compile(
    traced: Any, mesh: Mesh, compiler_options: Mapping[str, Any] | None
) -> tuple[jax.stages.Compiled | None, str, int]:
    """(executable, "", 0), or (None, the compiler's sentence, the bytes it names) for lack of memory."""
    try:
        lowered = traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,))
        return lowered.compile(compiler_options=dict(compiler_options or {}) or None), "", 0
    except jax.errors.JaxRuntimeError as error:
        return None, *_memory_refusal(error)


def _read_executable(executable: jax.stages.Compiled, shared: dict[str, Any]) -> CompiledStep:
    memory: Any = executable.memory_analysis()
    text = executable.as_text() or ""
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return CompiledStep(
        **shared,
        fits=not shared["usable_bytes"] or needed <= shared["usable_bytes"],
        refusal="",
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        needed_bytes=needed,
        compiled_flops_per_chip=compiled_flops(text),
        collectives=tuple(read_collectives(text)),
        executable=executable,
    )


def _memory_refusal(error: jax.errors.JaxRuntimeError) -> tuple[str, int]:
    """The compiler's sentence and the bytes it names, for an out-of-memory refusal; re-raises anything else."""
    message = str(error)
    amounts = re.search(r"\(([\d.]+)([KMGT]?)\)\s+exceeds available HBM", message) or re.search(
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message
    )
    if "RESOURCE_EXHAUSTED" not in message or (amounts is None and "exceed" not in message.lower()):
        raise error
    unit = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
    needed = int(float(amounts.group(1)) * unit[amounts.group(2)]) if amounts else 0
    sentence = message.splitlines()[0]
    return sentence[max(sentence.find("Ran out"), 0) :], needed


def _coordinates(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Position of each partition (devices in mesh order): torus coordinates, then the slice."""
    devices = list(mesh.devices.flat)
    if not all(hasattr(device, "coords") for device in devices):
        return ()
    return tuple((*device.coords, getattr(device, "slice_index", 0) or 0) for device in devices)


def _versions() -> str:
    try:
        return f"jax {jax.__version__} libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        return f"jax {jax.__version__}"
