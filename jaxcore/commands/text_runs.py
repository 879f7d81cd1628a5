"""What commands over the texts of a file share: reading them, the model's tokenizer, stopping on notice, progress.

A command works through windows of texts. It ticks a fixed number of times in each, so that all processes tick equally
often and agree when to stop.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxcore import distributed
from jaxcore.data import Field, ListSource, Source, load_tokenizer, open_source
from jaxcore.evaluation import Interrupted

TICKS_PER_WINDOW = 16
"""A notice is seen soon enough, and by all processes at the same tick."""

_BARRIER_SECONDS = 24 * 3600  # the slowest process may be long after the first
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.model")


def open_texts(path: str, field: str, max_malformed_rate: float) -> Source:
    """Records with the one field ``text``, from a file of records or of lines; ValueError where there are none."""
    fields = (Field("text", column=field),)
    if path.startswith("tfds:") or (pathlib.Path(path) / "dataset_info.json").is_file():
        return open_source(path, fields=fields)  # TFDS checked its records when it wrote them
    if path.endswith(".txt"):
        file = pathlib.Path(path)
        if not file.is_file():
            raise ValueError(f"no file at {path}; check the path")
        # Not splitlines(): texts may hold other characters that Unicode counts as line breaks. Undecodable bytes
        # become lone surrogates, which the source reports with their line.
        lines = file.read_bytes().decode("utf-8-sig", errors="surrogateescape").split("\n")
        records = [{field: line.removesuffix("\r")} for line in (lines[:-1] if not lines[-1] else lines)]
        return ListSource(records, fields=fields, name=path, max_malformed_rate=max_malformed_rate)
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file, or a dataset that TFDS prepared")
    return open_source(path, fields=fields, max_malformed_rate=max_malformed_rate)


def load_model_tokenizer(path_or_id: str) -> Any:
    """The fast tokenizer of this folder or hub id; ValueError for a folder without one."""
    # Without any of its files transformers makes up an empty tokenizer, to which every word is unknown.
    if not has_tokenizer(path_or_id):
        raise ValueError(
            f"no tokenizer at {path_or_id}: none of {', '.join(_TOKENIZER_FILES)} is there; "
            "copy the tokenizer's files to the model, or name their folder with --tokenizer"
        )
    return load_tokenizer(path_or_id)


def has_tokenizer(path_or_id: str) -> bool:
    """Whether a folder holds a tokenizer's files; that of a hub id is taken for granted."""
    folder = pathlib.Path(path_or_id).expanduser()
    return not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES)


def barrier(name: str) -> None:
    """Wait for all processes, if there are several."""
    if jax.process_count() > 1:
        distributed.barrier(name, _BARRIER_SECONDS)


def beats_until_notice(
    tick: Callable[[int], bool], total: int, output: pathlib.Path, *, resumes: bool = True
) -> Iterator[None]:
    """`total` ticks, one per item. A notice at the last one comes too late to save anything.

    Args:
        resumes: whether what is done so far is kept.

    Raises:
        Interrupted: a tick asked to stop.
    """
    remedy = "go on with --resume" if resumes else "start again"
    for number in range(total):
        if tick(number) and number + 1 < total:
            raise Interrupted(f"stopped on notice; {remedy} ({output} is not complete)")
        yield


def advance_with_beats(sizes: list[int], beats: Iterator[None], show: Callable[[int], None]) -> Callable[[int], None]:
    """What is called after every batch: shows it, and ticks so often that each window has its share of ticks.

    The last tick of a window is left to whoever writes it: stopping just before would lose it.
    """
    remaining = iter(sizes)
    size = done = 0

    def advance(count: int) -> None:
        nonlocal size, done
        show(count)
        if done == size:
            size, done = next(remaining), 0
        due = (TICKS_PER_WINDOW - 1) * done // size
        done += count
        for _ in range((TICKS_PER_WINDOW - 1) * done // size - due):
            next(beats)

    return advance


@contextlib.contextmanager
def progress_bar(name: str, total: int, is_first: bool, *, unit: str = "texts") -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``; shows texts done, texts per second and time left to people at a terminal."""
    if not is_first or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn

    class Rate(ProgressColumn):
        """Units per second; empty before the first batch."""

        def render(self, task: Any) -> str:
            return f"{task.speed:,.3g} {unit}/s" if task.speed else ""

    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
