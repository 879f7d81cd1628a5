"""Long evaluations item by item: results on disk as they are finished, read back after a kill.

The file is one of `jaxcore.distributed.GroupedLines`: a run that was stopped anywhere ends in the same file as one that
was not.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxcore.data.array_cache import content_hash
from jaxcore.distributed import GroupedLines
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
    settings = {"identity": content_hash(identity), "items": len(items), "group_size": group_size}
    lines = None if file is None else GroupedLines(file, settings, num_lines=len(items), group_size=group_size)
    results = [] if lines is None else lines.read(lambda number, value: from_json(value))
    for start in range(len(results), len(items), group_size):
        group = items[start : start + group_size]
        values = [to_json(result) for result in function(group)]
        if len(values) != len(group):
            raise ValueError(f"the function gave {len(values)} results for {len(group)} items")
        if lines is not None:
            lines.append(values)
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
