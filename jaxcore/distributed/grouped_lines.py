"""A file of JSON lines that grows by whole groups: what a killed run has finished, alike on all processes.

A first line says what is computed (`settings`), then comes one line per item, in order. Lines of a group are written
together. After a kill, what a cut group left behind is dropped and computed again, so that a run that was stopped
anywhere ends in the same file as one that was not.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Item = TypeVar("Item")


class GroupedLines:
    """The file of a run. All processes construct it and make the same calls; process 0 writes."""

    def __init__(self, file: pathlib.Path, settings: Mapping[str, Any], *, num_lines: int, group_size: int) -> None:
        """
        Args:
            file: in a folder that all processes reach; made when absent.
            settings: all that decides the lines.
            num_lines: items of the whole run; a file with lines beyond them is read as far as they go.
            group_size: items that are written together; the last group may be smaller.
        """
        self._file, self._settings = file, dict(settings)
        self._num_lines, self._group_size = num_lines, group_size

    def read(self, parse: Callable[[int, Any], Item]) -> list[Item]:
        """What `parse` makes of the number and value of each line of the groups that are there whole, on all processes.

        What is behind these is cut off the file. `parse` raises ValueError, KeyError or TypeError for a value that
        cannot be right.

        Raises:
            ValueError: a file of other settings (named with both values), of something else or damaged before its end.
        """
        lines = self._lines()
        count = min(max(len(lines) - 1, 0), self._num_lines)
        if count < self._num_lines:
            count = count // self._group_size * self._group_size
        if jax.process_count() > 1:  # process 0 may have seen, or be about to cut, another end
            count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
        items = [self._parsed(parse, number, line) for number, line in enumerate(lines[1 : 1 + count])]
        if jax.process_index() == 0:
            self._begin(lines[: 1 + count])
        return items

    def append(self, values: Sequence[Any]) -> None:
        """The lines of a group, on disk when this returns."""
        if jax.process_index() == 0:
            with self._file.open("ab") as file:
                file.write("".join(json.dumps(value) + "\n" for value in values).encode())
                file.flush()
                os.fsync(file.fileno())

    def _lines(self) -> list[bytes]:
        """Lines with an end; none for a file that is new or was cut in its first line."""
        if not self._file.exists():
            return []
        *lines, _ = self._file.read_bytes().split(b"\n")
        if not lines:
            return []
        try:
            earlier = dict(json.loads(lines[0])["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._file} holds no lines of a run: remove it, or name another file") from error
        changed = sorted(n for n in {*earlier, *self._settings} if earlier.get(n) != self._settings.get(n))
        if changed:
            told = "; ".join(f"{n} was {earlier.get(n)}, is {self._settings.get(n)}" for n in changed)
            raise ValueError(f"{self._file} is of something else ({told}): remove it, or name another file")
        return [line + b"\n" for line in lines]

    def _parsed(self, parse: Callable[[int, Any], Item], number: int, line: bytes) -> Item:
        try:
            return parse(number, json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._file}, line {number + 2}, is damaged ({error}): remove the file") from error

    def _begin(self, kept: list[bytes]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not kept:
            kept = [json.dumps({"settings": self._settings}).encode() + b"\n"]
            self._file.write_bytes(kept[0])
        with self._file.open("r+b") as file:
            file.truncate(sum(map(len, kept)))
