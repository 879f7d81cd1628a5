"""Metric rows on disk: `metrics.jsonl` for machines, TensorBoard events for eyes."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxcore.training.run_directory import write_text


class MetricsWriter:
    """Appends rows ``{"step": k, name: value, ...}``; only process 0 is given one."""

    def __init__(self, directory: pathlib.Path, *, start_step: int = 0) -> None:
        """
        Args:
            directory: the run's directory.
            start_step: rows of this step and later are dropped first: a resumed run makes them again.
        """
        from tensorboardX import SummaryWriter  # slow to import, and only a writer needs it

        path = directory / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row["step"] < start_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(directory / "events"), purge_step=start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it, so that a killed run keeps what it measured."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
