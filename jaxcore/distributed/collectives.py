"""Collective operations of a compiled program: kind, bytes, how often, and between whom.

Bytes are those of the whole array that the operation makes or consumes on one chip: an all-gather's result, a
reduce-scatter's operand, an all-reduce's or permute's array. What crosses a link is that times ``(n - 1) /
n`` (twice that for an all-reduce).
"""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

from jaxcore.distributed.hlo_text import Placed, parse_hlo, shape_bytes

__all__ = ["Collective", "CollectiveTotal", "read_collectives", "total_by_kind"]

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: an HLO opcode without ``-start``; ``dcn-...`` for a transfer between slices.
      bytes: of the whole array, per execution and chip.
      executions: per step (loops multiplied out).
      group: partition ids of one group of communicating chips, in order; empty if all or unknown. Source and
        target pairs of a permute are flattened.
      trip_count_known: whether `executions` could be read from the program.
    """

    kind: str
    bytes: int
    executions: int
    group: tuple[int, ...]
    trip_count_known: bool = True


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
    """All collectives of one kind: operations run and bytes moved per step and chip."""

    count: int
    bytes: int


def total_by_kind(collectives: Iterable[Collective]) -> dict[str, CollectiveTotal]:
    """Count and bytes per step by kind."""
    totals: dict[str, CollectiveTotal] = {}
    for item in collectives:
        before = totals.get(item.kind, CollectiveTotal(0, 0))
        totals[item.kind] = CollectiveTotal(before.count + item.executions, before.bytes + item.bytes * item.executions)
    return totals


def read_collectives(hlo_text: str) -> list[Collective]:
    """Every collective of a compiled program, each counted once per execution.

    Args:
      hlo_text: ``compiled.as_text()``.

    Notes:
      A reduce-scatter is either that op or a fusion that calls ``all-reduce-scatter`` with an all-reduce
      inside; the fusion is what runs. A gather that the TPU compiler spreads over several matmul fusions
      appears in each of them with one channel and one chain id; it runs once.
    """
    seen: set[tuple[str, str, str, str]] = set()
    found = []
    for placed in parse_hlo(hlo_text).placed():
        item = _collective(placed)
        if item is None:
            continue
        chain = placed.instruction.attribute(r'chain_id="?(\w+)')
        channel = placed.instruction.attribute(r"channel_id=(\d+)")
        if placed.computation != placed.caller and chain is not None and channel is not None:
            key = (placed.caller, item.kind, channel, chain)
            if key in seen:
                continue
            seen.add(key)
        found.append(item)
    return found


def _collective(placed: Placed) -> Collective | None:
    line = placed.instruction
    if line.opcode == "send" and (transfer := line.attribute(r'_xla_megascale_transfer_type="?(\w+)')):
        kind = "dcn-" + transfer.lower().replace("_", "-")
        first = line.shape[1 : line.shape.index("]") + 1] if line.shape.startswith("(") else line.shape
        return Collective(kind, shape_bytes(first), placed.executions, (), placed.trip_count_known)
    kind = line.opcode.removesuffix("-start")
    if kind not in _KINDS:
        return None
    group = _group(kind, line.attributes)
    size = _array_bytes(kind, line.shape, line.opcode.endswith("-start"), len(group))
    if kind == "all-reduce" and placed.computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, size, placed.executions, group, placed.trip_count_known)


def _array_bytes(kind: str, shape: str, is_start: bool, group_size: int) -> int:
    """Bytes of the whole array from the result's shape."""
    total = shape_bytes(shape)
    if kind == "all-gather" and is_start and shape.startswith("(") and group_size:
        # (operands, results), and results are group_size times the operands.
        return total * group_size // (group_size + 1)
    if kind == "collective-permute" and is_start:
        # (operands, results, context words): the arrays are there twice.
        arrays = re.sub(r"\b[su]32\[\]", "", shape)
        return shape_bytes(arrays) // 2
    if kind == "reduce-scatter":
        return total * max(group_size, 1)
    return total


def _group(kind: str, attributes: str) -> tuple[int, ...]:
    """Partition ids of the first replica group, in any of the three notations; () if absent or unknown."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", attributes)
        return tuple(map(int, re.findall(r"\d+", pairs.group(1)))) if pairs else ()
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed.group(1).split(",")))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        shape = [int(size) for size in iota.group(1).split(",")]
        return tuple(_iota(iota.group(2)).reshape(shape)[0].tolist())
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))?\s*\{([^}]*)\}",
        attributes,
    )
    return _mesh_group(*mesh.groups()) if mesh else ()


def _iota(text: str) -> np.ndarray:
    """``[4,4]T(1,0)``: the numbers from zero in that shape, transposed."""
    shape, _, permutation = text.partition("T")
    dims = [int(size) for size in shape.strip("[]").split(",")]
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose([int(axis) for axis in permutation.strip("()").split(",")]) if permutation else ids


def _mesh_group(axes: str, device_ids: str | None, over: str) -> tuple[int, ...]:
    """First group of ``mesh['x'=4,'y'=2], device_ids=(...) {'x'}``: the devices that differ in the named
    axes only."""
    names, sizes = zip(*re.findall(r"'([^']+)'=(\d+)", axes), strict=True)
    dims = [int(size) for size in sizes]
    ids = (_iota(device_ids) if device_ids else np.arange(math.prod(dims))).reshape(dims)
    chosen = re.findall(r"'([^']+)'", over)
    if ":" in over or any(name not in names for name in chosen):
        return ()
    index = tuple(slice(None) if name in chosen else 0 for name in names)
    return tuple(ids[index].ravel().tolist())
