"""A progress bar for people at a terminal; silent elsewhere and on every process but the first."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import jax

Advance = Callable[[int, float, float], None]


@contextlib.contextmanager
def progress_bar(title: str, num_steps: int, *, start_step: int = 0) -> Iterator[Advance]:
    """Yields ``advance(step, loss, examples_per_second)``; shows step, loss, examples/s and time left."""
    if jax.process_index() != 0 or not sys.stderr.isatty():
        yield lambda step, loss, examples_per_second: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:,.0f} examples/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(title, total=num_steps, completed=start_step, loss=float("nan"), rate=0.0)
        yield lambda step, loss, examples_per_second: bar.update(
            task, completed=step, loss=loss, rate=examples_per_second
        )
