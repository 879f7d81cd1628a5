"""Long evaluations item by item: results on disk as they are finished, read back after a kill.

The file is JSON Lines: a first line that says what is computed, then one line per item in order, written group by
group. After a kill, what a cut group left behind is dropped and computed again: groups are the same, so a run that was
stopped anywhere ends in the same file as one that was not.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcore.data.array_cache import content_hash
from jaxcore.evaluation.row_map import Interrupted, Tick

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    file: pathlib.Path | None,
    identity: str,
    group_size: int,
    to_json: Callable[[Result], Any] = lambda result: result,
    from_json: Callable[[Any], Result] = lambda value: value,
    tick: Tick = lambda step: False,
) -> list[Result]:
    """``function(group of items)`` over all items; those whose results `file` has are not computed.

    Every process computes all items together (the function may be a program on a mesh of several processes) and gets
    all results; process 0 writes. Results pass through JSON whether or not they were on disk before.

    Args:
        file: kept and continued, in a folder that all processes reach; None = nothing is kept.
        identity: what decides the results beside the items' number: a digest of it stands in the file's first line.
        group_size: items that are computed, and put on disk, together.
        to_json, from_json: a result as a JSON value and back.
        tick: called after each group on every process; True raises `Interrupted` while groups remain.

    Raises:
        ValueError: a group size below 1, a function that gives another number of results, a file of something else or
            damaged before its end.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1: got {group_size}")
    header = {"identity": content_hash(identity), "items": len(items), "group_size": group_size}
    lines = _begin(file, header, len(items), group_size)
    results = [from_json(line) for line in lines]
    for start in range(len(results), len(items), group_size):
        group = items[start : start + group_size]
        values = [to_json(result) for result in function(group)]
        if len(values) != len(group):
            raise ValueError(f"the function gave {len(values)} results for {len(group)} items")
        _append(file, values)
        results += [from_json(json.loads(json.dumps(value))) for value in values]
        if tick(start // group_size) and len(results) < len(items):
            raise Interrupted(f"stopped on notice after {len(results)} of {len(items)} items")
    return results


@dataclasses.dataclass(frozen=True)
class FinishedLog:
    """The finished items of a run, a file for each thing that is computed; a run that is resumed reads them back."""

    folder: pathlib.Path | None = None
    """None: nothing is kept."""
    identity: str = ""
    """Of the run: its configuration."""
    tick: Tick = lambda step: False
    """Called after each group of items on every process; also for the batches of a function that ticks itself."""

    def map(self, name: str, function: Any, items: Sequence[Any], *, identity: str = "", **options: Any) -> list[Any]:
        """`map_items` on the file ``NAME.jsonl`` of the folder.

        Args:
            identity: what decides these results beside the run's configuration and the items' number.
        """
        file = self.folder / f"{name}.jsonl" if self.folder else None
        whole = f"{self.identity} {name} {identity}"
        return map_items(function, items, file=file, identity=whole, tick=self.tick, **options)


def _begin(file: pathlib.Path | None, header: dict[str, Any], num_items: int, group_size: int) -> list[Any]:
    """The results of the groups that are there whole, as every process sees them; what is behind them is cut off."""
    lines = _whole_lines(file)
    if lines and _parsed(file, 0, lines[0]) != header:
        raise ValueError(f"{file} holds results of something else ({lines[0][:200].decode()}): remove it")
    count = min(max(len(lines) - 1, 0), num_items)
    if count < num_items:
        count = count // group_size * group_size
    if jax.process_count() > 1:  # process 0 may have seen, or be about to cut, another end
        count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
    found = [_parsed(file, number, line) for number, line in enumerate(lines[1 : 1 + count], 1)]
    if file is not None and jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = lines[: 1 + count] or [json.dumps(header).encode() + b"\n"]
        if not lines:
            file.write_bytes(kept[0])
        with file.open("r+b") as opened:
            opened.truncate(sum(map(len, kept)))
    return found


def _whole_lines(file: pathlib.Path | None) -> list[bytes]:
    if file is None or not file.exists():
        return []
    *lines, _ = file.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines]


def _parsed(file: pathlib.Path | None, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{file}, line {number + 1}, is damaged ({error}): remove the file") from error


def _append(file: pathlib.Path | None, values: Sequence[Any]) -> None:
    """The lines of a group, on disk when this returns."""
    if file is None or jax.process_index() != 0:
        return
    with file.open("ab") as opened:
        opened.write("".join(json.dumps(value) + "\n" for value in values).encode())
        opened.flush()
        os.fsync(opened.fileno())
