"""Lines of JSON on disk, window by window: resumable after a kill, written by several processes, whole or not there.

Beside the file ``OUTPUT`` there are, until it is finished,
    OUTPUT.part.K-of-N                the lines of process K of N so far
    OUTPUT.progress.K-of-N.json       how many of its windows and bytes are done, written after the lines themselves
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxcore.training import write_json


def check_new_file(path: pathlib.Path) -> None:
    """ValueError for a path whose folder is missing, or where there is a file already."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {path}: its folder does not exist; make it first")
    if path.exists():
        raise ValueError(f"{path} exists already; remove it, or name another file")


class LineFile:
    """A file of lines, made in windows of rows; a process has a contiguous share of the windows and does them in order.

    Attributes:
        windows: windows that this process has yet to write.
        num_windows: windows of the process with the most of them, counting those that are written.
        widths: padded widths of the run that is resumed, which give its lines to the last byte; None without one.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        num_rows: int,
        window: int,
        settings: Mapping[str, str],
        resume: bool,
        process: tuple[int, int] = (0, 1),
        barrier: Callable[[str], None] = lambda name: None,
        command: str = "lines",
    ) -> None:
        """Look at what is there; nothing is written before `open`.

        Args:
            path: where the finished file will be.
            num_rows, window: rows in all, and of each window but the last.
            settings: what decides the lines, by name; a run that is resumed must have the same.
            resume: go on with what an earlier run began, if one did.
            process: index of this process and number of processes.
            barrier: waits for all processes.
            command: whose file it is; barriers are named after it.

        Raises:
            ValueError: no such folder, a file that is there or begun already, or by another number of processes, other
                settings, a damaged part.
        """
        self._path, self._num_rows, self._window = path, num_rows, window
        self._barrier = lambda moment: barrier(f"{command} {moment}")
        self._settings = {**settings, "rows": str(num_rows), "window": str(window)}
        self._index, self._count = process
        check_new_file(path)
        self._check_parts(resume)
        earlier = self._read_progress() if resume else {}
        self._done, self._bytes = int(earlier.get("done", 0)), int(earlier.get("bytes", 0))
        self.widths: tuple[int, ...] | None = tuple(earlier["widths"]) if earlier else None
        total = -(-num_rows // window)
        self.num_windows = -(-total // self._count)
        first = self._index * self.num_windows
        self.windows = list(range(first, min(first + self.num_windows, total)))[self._done :]

    def rows(self, window: int) -> range:
        """The rows of a window."""
        return range(window * self._window, min((window + 1) * self._window, self._num_rows))

    def open(self) -> None:
        """Make this process's part, or cut what was begun to what is noted as done. All processes call it."""
        self._barrier("begins")  # every process has looked at what was there
        with open(self._part, "ab") as part:
            part.truncate(self._bytes)  # lines of a window that was not finished

    def write(self, lines: Sequence[Mapping[str, Any]], widths: tuple[int, ...]) -> None:
        """Put the lines of the next window on disk, then note that they are there."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        data = text.encode("utf-8", errors="backslashreplace")
        with open(self._part, "ab") as part:
            part.write(data)
            part.flush()
            os.fsync(part.fileno())
        self._done, self._bytes, self.widths = self._done + 1, self._bytes + len(data), widths
        record = {"settings": self._settings, "widths": list(widths), "done": self._done, "bytes": self._bytes}
        write_json(self._progress, record)

    def finish(self) -> None:
        """Wait for all processes, then give the file its name, in one step."""
        self._barrier("windows done")
        if self._index == 0:
            parts = [self._beside("part", index) for index in range(self._count)]
            with open(parts[0], "ab") as whole:
                for part in parts[1:]:
                    with open(part, "rb") as lines:
                        shutil.copyfileobj(lines, whole)
                    part.unlink()
            os.replace(parts[0], self._path)
            for left_over in self._left_over("progress"):
                left_over.unlink()
        self._barrier("file named")

    def _beside(self, kind: str, index: int) -> pathlib.Path:
        return self._path.with_name(
            f"{self._path.name}.{kind}.{index}-of-{self._count}" + ".json" * (kind == "progress")
        )

    @property
    def _part(self) -> pathlib.Path:
        return self._beside("part", self._index)

    @property
    def _progress(self) -> pathlib.Path:
        return self._beside("progress", self._index)

    def _left_over(self, kind: str) -> list[pathlib.Path]:
        """Files of this kind beside the output, of any number of processes."""
        start = f"{self._path.name}.{kind}."
        return sorted(file for file in self._path.absolute().parent.iterdir() if file.name.startswith(start))

    def _check_parts(self, resume: bool) -> None:
        begun = self._left_over("part")
        if begun and not resume:
            raise ValueError(f"{begun[0]} was begun by an earlier run; go on with --resume, or remove it")
        mine = {self._beside("part", index).name for index in range(self._count)}
        others = [file for file in begun if file.name not in mine]
        if others:
            raise ValueError(f"{others[0]} was begun by another number of processes; start as many again, or remove it")

    def _read_progress(self) -> dict[str, Any]:
        """What an earlier run noted; empty where it noted nothing."""
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
            settings, size = progress["settings"], self._part.stat().st_size
            damaged = size < progress["bytes"] or not progress["widths"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self._progress} is damaged ({error}); remove it and start anew") from error
        names = sorted({*settings, *self._settings})
        changed = [name for name in names if settings.get(name) != self._settings.get(name)]
        if changed:
            told = "; ".join(f"{name} was {settings.get(name)}, is {self._settings.get(name)}" for name in changed)
            raise ValueError(
                f"{self._part} was begun by a run with another input, model or options ({told}); "
                f"run that command again, or remove it and {self._progress.name}"
            )
        if damaged:
            raise ValueError(f"{self._part} is shorter than what is noted as done; remove it and {self._progress.name}")
        return progress
