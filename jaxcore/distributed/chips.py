"""Accelerator figures, with sources, and topology names such as ``v5e:16x16``.

Peaks are dense bf16 figures by the vendor (never the "with sparsity" ones); 1 GB = 1e9 bytes. "Usable" memory
of a TPU is the limit that its compiler names when it refuses a program. Link rates are the effective ones
that jax-ml/scaling-book (tpus.md) measured, one way per link; the rate between slices is the pod's divided by
256.
"""

import dataclasses
import re

__all__ = ["CHIPS", "Chip", "Topology", "chip_for_device_kind", "parse_topology"]

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator kind.

    Attributes:
      name: short name, as in topology names.
      peak_flops: dense bf16 FLOP/s.
      memory_bytes: bytes of device memory a program can use.
      memory_bandwidth: bytes/s of device memory.
      link_bandwidth: bytes/s, one way, of one link (one torus axis, one direction), effective.
      network_bandwidth: bytes/s per chip between slices or nodes.
      torus_axes: physical axes of the interconnect; 0 where all chips of an island see each other.
      source: where the figures were read.
      device_kinds: prefixes of ``jax.Device.device_kind``.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    torus_axes: int
    source: str
    device_kinds: tuple[str, ...]


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e",
            peak_flops=197e12,
            memory_bytes=int(15.75 * GIB),
            memory_bandwidth=819e9,
            link_bandwidth=45e9,
            network_bandwidth=3.1e9,
            torus_axes=2,
            source="cloud.google.com/tpu/docs/v5e",
            device_kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            name="v5p",
            peak_flops=459e12,
            memory_bytes=int(95.7 * GIB),
            memory_bandwidth=2765e9,
            link_bandwidth=90e9,
            network_bandwidth=6.25e9,
            torus_axes=3,
            source="docs.cloud.google.com/tpu/docs/v5p",
            device_kinds=("TPU v5p", "TPU v5"),
        ),
        Chip(
            name="v6e",
            peak_flops=918e12,
            memory_bytes=int(31.2 * GIB),
            memory_bandwidth=1640e9,
            link_bandwidth=90e9,
            network_bandwidth=12.5e9,
            torus_axes=2,
            source="cloud.google.com/tpu/docs/v6e",
            device_kinds=("TPU v6 lite", "TPU v6e"),
        ),
        Chip(
            name="h100",
            peak_flops=989.4e12,
            memory_bytes=int(80e9),
            memory_bandwidth=3350e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            torus_axes=0,
            source="glennklockwood.com/garden/processors/h100; network: one 400 Gb/s adapter per GPU",
            device_kinds=("NVIDIA H100",),
        ),
        Chip(
            name="h200",
            peak_flops=989.4e12,
            memory_bytes=int(141e9),
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            torus_axes=0,
            source="aiwiki.ai/wiki/nvidia_h200; network: one 400 Gb/s adapter per GPU",
            device_kinds=("NVIDIA H200",),
        ),
    )
}


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip behind ``jax.Device.device_kind`` (longest matching prefix), or None for one not in the table."""
    matches = [
        (len(prefix), chip) for chip in CHIPS.values() for prefix in chip.device_kinds if device_kind.startswith(prefix)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


@dataclasses.dataclass(frozen=True)
class Topology:
    """A named set of chips: ``num_slices`` slices, each a grid of ``shape``.

    Attributes:
      name: as given by the user, for example ``v5e:16x16`` or, with two slices, ``v5e:16x16:2``.
      chip: the accelerator kind.
      shape: chips along each physical axis of one slice.
      num_slices: slices, joined by the data-centre network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_chips(self) -> int:
        return self.chips_per_slice * self.num_slices

    @property
    def slice_name(self) -> str:
        """Name of one slice, as the TPU compiler knows it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which physical axes close to a ring (twice the bandwidth of an open line).

        v5e and v6e wrap an axis of 16 only; v5p wraps every axis once the slice is made of whole 4x4x4 cubes.
        """
        if self.chip.torus_axes == 3:
            return (all(size % 4 == 0 for size in self.shape),) * len(self.shape)
        return tuple(size >= 16 for size in self.shape)


def parse_topology(name: str) -> Topology:
    """Reads ``CHIP:AxB``, ``CHIP:AxBxC`` and ``CHIP:AxB:SLICES``.

    Raises:
      ValueError: unknown chip, wrong number of axes, or text that does not follow the form.
    """
    example = "v5e:16x16, v5p:4x4x4, v6e:8x8, or v5e:16x16:2 for two slices"
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"topology {name!r} is not of the form CHIP:SHAPE; write for example {example}")
    chip_name, shape_text, slices_text = match.groups()
    tpus = sorted(chip.name for chip in CHIPS.values() if chip.torus_axes)
    if chip_name not in tpus:
        raise ValueError(f"topology {name!r}: unknown TPU {chip_name!r}; choose one of {', '.join(tpus)}")
    chip = CHIPS[chip_name]
    shape = tuple(map(int, shape_text.split("x")))
    if len(shape) != chip.torus_axes:
        raise ValueError(
            f"topology {name!r}: {chip_name} has {chip.torus_axes} axes, got {len(shape)}; write for example {example}"
        )
    num_slices = int(slices_text or 1)
    if min(shape) < 1 or num_slices < 1:
        raise ValueError(f"topology {name!r}: every size must be at least 1")
    return Topology(name=name, chip=chip, shape=shape, num_slices=num_slices)
