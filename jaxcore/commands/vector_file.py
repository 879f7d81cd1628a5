"""Vectors on disk, window by window: resumable after a kill, written by several processes, whole or not there at all.

Beside the file ``OUTPUT`` there are, until it is finished,
    OUTPUT.part                       a .npy file at its full size from the start, which all processes write into
    OUTPUT.progress.K-of-N.json       what process K of N has finished, written after the vectors themselves
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from jaxcore.evaluation.text_embedding import EmbeddedWindow
from jaxcore.training import write_json

SUFFIXES = (".npy", ".parquet")


def check_output(path: pathlib.Path, *, resume: bool) -> None:
    """Raise ValueError for a path that a `VectorFile` cannot be written to."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--output must end in {' or '.join(SUFFIXES)}: got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {path}: its folder does not exist; make it first")
    if path.exists():
        raise ValueError(f"{path} exists already; remove it, or name another file")
    if _part(path).exists() and not resume:
        raise ValueError(f"{_part(path)} was begun by an earlier run; go on with --resume, or remove it")


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.part")


class VectorFile:
    """A file of one float32 vector per row, written in windows of rows; a process has a contiguous share of them.

    Attributes:
        windows: windows that this process has yet to write.
        num_rows_left: rows of these windows.
        num_windows: windows of the process with the most of them, counting those that are written.
        widths: padded widths of the run that is resumed, which give its vectors to the last bit; None without one.
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
    ) -> None:
        """Look at what is there; nothing is written before `open`.

        Args:
            path: where the finished file will be; .npy or .parquet.
            num_rows, window: rows in all, and of each window but the last.
            settings: what decides the vectors, by name; a run that is resumed must have the same.
            resume: go on with what an earlier run began, if one did.
            process: index of this process and number of processes.
            barrier: waits for all processes.

        Raises:
            ValueError: another suffix, no such folder, a file that is there or begun already, other settings.
        """
        self._path, self._num_rows, self._window = path, num_rows, window
        self._settings = {**settings, "rows": str(num_rows), "window": str(window)}
        self._index, count = process
        self._barrier = barrier
        self._part = _part(path)
        self._progress = path.with_name(f"{path.name}.progress.{self._index}-of-{count}.json")
        check_output(path, resume=resume)
        earlier = self._read_progress() if resume and self._part.exists() else {}
        self._done: list[int] = earlier.get("done", [])
        self._truncated: int = earlier.get("truncated", 0)
        self.widths: tuple[int, ...] | None = tuple(earlier["widths"]) if earlier else None
        total = -(-num_rows // window)
        self.num_windows = -(-total // count)
        first = self._index * self.num_windows
        mine = range(first, min(first + self.num_windows, total))
        self.windows = [number for number in mine if number not in self._done]
        self.num_rows_left = sum(len(self.rows(number)) for number in self.windows)
        self._array: np.memmap | None = None

    def rows(self, window: int) -> range:
        """The rows of a window."""
        return range(window * self._window, min((window + 1) * self._window, self._num_rows))

    def open(self, dim: int) -> None:
        """Make the file at its full size, or open what was begun. All processes call it."""
        self._barrier("embed begins")  # every process has looked at what was there
        if self._index == 0 and not self._is_begun(dim):
            np.lib.format.open_memmap(self._part, mode="w+", dtype=np.float32, shape=(self._num_rows, dim)).flush()
        self._barrier("embed file made")
        self._array = np.lib.format.open_memmap(self._part, mode="r+")

    def write(self, window: int, result: EmbeddedWindow) -> None:
        """Put a window's vectors on disk, then note that they are there."""
        assert self._array is not None, "open() comes first"
        rows = self.rows(window)
        self._array[rows.start : rows.stop] = result.vectors
        self._array.flush()
        self._done.append(window)
        self._truncated += result.num_truncated
        self.widths = result.widths
        self._write_progress()

    def finish(self) -> int:
        """Wait for all processes, then give the file its name, in one step.

        Returns:
            Texts of all windows that were cut; 0 on all processes but the first.
        """
        self._barrier("embed windows done")
        truncated = 0
        if self._index == 0:
            if self._path.suffix == ".parquet":
                self._write_parquet()
            else:
                os.replace(self._part, self._path)
            for left_over in self._path.parent.glob(f"{self._path.name}.progress.*-of-*.json"):
                truncated += json.loads(left_over.read_text(encoding="utf-8")).get("truncated", 0)
                left_over.unlink()
        self._array = None
        self._barrier("embed file named")
        return truncated

    def _is_begun(self, dim: int) -> bool:
        """Whether an earlier run made the file at its full size."""
        try:
            array = np.load(self._part, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            array = None
        begun = array is not None and array.shape == (self._num_rows, dim) and array.dtype == np.float32
        if self._done and not begun:
            raise ValueError(f"{self._part} is damaged; remove it and {self._progress.name}, and start anew")
        return begun

    def _read_progress(self) -> dict:
        """What an earlier run noted; empty where it noted nothing."""
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
            settings, _ = progress["settings"], progress["widths"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self._progress} is damaged ({error}); remove it and start anew") from error
        changed = [
            name for name in sorted({*settings, *self._settings}) if settings.get(name) != self._settings.get(name)
        ]
        if changed:
            told = "; ".join(f"{name} was {settings.get(name)}, is {self._settings.get(name)}" for name in changed)
            raise ValueError(
                f"{self._part} was begun by a run with another input, model or options ({told}); "
                f"run that command again, or remove it and {self._progress.name}"
            )
        return progress

    def _write_progress(self) -> None:
        record = {"settings": self._settings, "widths": list(self.widths or ()), "done": self._done}
        write_json(self._progress, {**record, "truncated": self._truncated})

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert self._array is not None
        dim = self._array.shape[1]
        unnamed = self._path.with_name(f"{self._path.name}.new")
        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
        with pq.ParquetWriter(unnamed, schema) as file:
            for start in range(0, self._num_rows, self._window):
                part = np.asarray(self._array[start : start + self._window])
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dim)
                rows = pa.array(np.arange(start, start + len(part)))
                file.write_table(pa.table([rows, vectors], schema=schema))
        os.replace(unnamed, self._path)
        self._part.unlink()
