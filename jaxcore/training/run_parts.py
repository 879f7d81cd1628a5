"""Parts of a run that train models of their own: each in a run directory under the run's, resumed where it stood."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxcore.training.run_directory import RunDirectory, open_run_directory


@contextlib.contextmanager
def run_part(path: pathlib.Path, config: Any, *, resume: bool) -> Iterator[RunDirectory]:
    """The run directory of a part (an arm, a cell of a study), closed at the end.

    A part that the interrupted run had not begun begins anew when that run is resumed.

    Args:
        path: the part's directory, within the run's.
        config: the part's configuration.
        resume: whether the run is resumed.

    Raises:
        ValueError, RunDirectoryInUse: as `open_run_directory`.
    """
    directory = open_run_directory(path, config, resume=resume and path.exists())
    try:
        yield directory
    finally:
        directory.close()
