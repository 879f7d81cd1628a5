"""``jaxcore embed``: the texts of a file to vectors, in order, through kills and on any number of devices.

Texts are embedded in windows of a fixed number of records. A finished window is on disk before it is noted as done in
``OUTPUT.progress.json``, so a run that was killed goes on with ``--resume`` where it stood; since windows are the same,
the file is too. Several processes each take a contiguous share of the windows and write into the same file.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxcore import distributed
from jaxcore.commands.arguments import parse_arguments
from jaxcore.data import Field, ListSource, Source, load_tokenizer, open_source
from jaxcore.evaluation import Interrupted
from jaxcore.evaluation.text_embedding import EmbeddedWindow, EmbeddingOptions, Pooling, embed_windows, text_length
from jaxcore.models import load_pretrained
from jaxcore.training import as_plain, write_json

_BARRIER_SECONDS = 24 * 3600  # the slowest process may be long after the first


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Options of `jaxcore embed`."""

    model: str
    """Folder or hub id: BERT, RoBERTa, DistilBERT, MiniLM, or a sentence-transformers folder of these; safetensors."""
    input: str
    """Texts: a .jsonl, .csv, .tsv or .parquet file (records), a .txt file (one text a line), or tfds:NAME/SPLIT."""
    output: pathlib.Path
    """A .npy file, float32 [texts, dim], or a .parquet file with the columns row and vector; rows in input order."""
    field: str = "text"
    """The field of a record that holds the text."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer; the model's own by default."""
    pooling: Pooling = "model"
    """As the model's files say; or the mean, the first ("cls") or the maximum of the tokens' vectors."""
    normalize: bool = False
    """Scale vectors to unit length."""
    max_length: int = 0
    """Longest text in tokens, longer ones are cut and counted; 0: what the model can read."""
    batch_tokens: int = 0
    """Tokens of a batch on each device, padding counted; 0 chooses by device. No influence on vectors but rounding."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the model computes; vectors are float32."""
    window: int = 16384
    """Texts embedded, sorted by length and written at a time."""
    max_malformed_rate: float = 0.0
    """Largest share of records without a text; these would be left out of the rows."""
    resume: bool = False
    """Go on with an output that an earlier, interrupted run of this same command began."""

    def __post_init__(self) -> None:
        if self.output.suffix not in (".npy", ".parquet"):
            raise ValueError(f"--output must end in .npy or .parquet: got {self.output}")
        if self.window < 1:
            raise ValueError(f"--window must be at least 1: got {self.window}")


def main(arguments: Sequence[str]) -> int:
    """Parse and run; returns the exit code."""
    options = parse_arguments(
        EmbedOptions, arguments, prog="jaxcore embed", description="Texts of a file to vectors, in input order."
    )
    process = distributed.start(config_hash=distributed.hash_config(as_plain(options)))
    embed(options, tick=distributed.tick, is_first=process.is_first)
    return 0


def embed(options: EmbedOptions, *, tick: Any = lambda step: False, is_first: bool = True) -> None:
    """Embed every text of ``options.input`` into ``options.output``; see `EmbedOptions`.

    Raises:
        ValueError: input, model or output that cannot be used; nothing is written then.
        Interrupted: `tick` asked to stop; ``--resume`` goes on from the last finished window.
    """
    _check_output(options)
    source = open_texts(options.input, options.field, options.max_malformed_rate)
    model, params = load_pretrained(options.model, config_overrides={"dtype": options.dtype})
    tokenizer = load_tokenizer(options.tokenizer or options.model)
    choices = EmbeddingOptions(
        options.pooling, options.normalize, options.max_length or None, options.batch_tokens or None
    )
    longest = text_length(model, tokenizer, choices.max_length)
    writer = _Writer(options, len(source), model.config.hidden_size, _identity(options, source), is_first)
    rows_of = [range(n * options.window, min((n + 1) * options.window, len(source))) for n in writer.windows]
    texts = ([source[row]["text"] for row in rows] for rows in rows_of)
    started, truncated = time.perf_counter(), 0
    with _progress_bar(sum(map(len, rows_of)), is_first) as advance:
        embedded = embed_windows(
            model,
            params,
            tokenizer,
            texts,
            options=choices,
            widths=writer.widths,
            num_texts=len(source),
            advance=advance,
        )
        for step, (rows, result) in enumerate(zip(rows_of, embedded, strict=True)):
            writer.write(step, rows.start, result)
            truncated += result.num_truncated
            if tick(step) and step + 1 < len(rows_of):
                raise Interrupted(f"stopped on notice; go on with --resume ({options.output} is not complete)")
    writer.finish()
    if is_first:
        seconds, count = time.perf_counter() - started, sum(map(len, rows_of))
        print(
            f"{options.output}: {len(source):,} texts x {model.config.hidden_size}; {count:,} embedded here in "
            f"{seconds:.1f} s ({count / max(seconds, 1e-9):,.0f} a second), {truncated:,} cut to {longest} tokens"
        )


def open_texts(path: str, field: str, max_malformed_rate: float) -> Source:
    """Records with the one field ``text``, from a file of records or of lines; ValueError where there are none."""
    fields = (Field("text", column=field),)
    if path.endswith(".txt"):
        file = pathlib.Path(path)
        if not file.is_file():
            raise ValueError(f"no file at {path}; check the path")
        lines = file.read_text(encoding="utf-8").splitlines()
        lines_source = [{field: line} for line in lines]
        source: Source = ListSource(lines_source, fields=fields, name=path, max_malformed_rate=max_malformed_rate)
    else:
        source = open_source(path, fields=fields, max_malformed_rate=max_malformed_rate)
    if len(source) == 0:
        raise ValueError(f"{path} holds no text in the field {field!r}")
    return source


def _identity(options: EmbedOptions, source: Source) -> str:
    """What must not change between a run and its resumption; how batches are cut may."""
    free = {"resume", "batch_tokens", "output"}
    fields = {name: value for name, value in as_plain(options).items() if name not in free}
    text = json.dumps([fields, source.fingerprint(), len(source)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_output(options: EmbedOptions) -> None:
    if not options.output.absolute().parent.is_dir():
        raise ValueError(f"cannot write {options.output}: its folder does not exist; make it first")
    if options.output.exists():
        raise ValueError(f"{options.output} exists already; remove it, or name another file")


class _Writer:
    """Vectors on disk, window by window, and what is done already.

    Windows are written into ``OUTPUT.part`` (a .npy file at its full size from the start); the finished file gets its
    name at the end, in one step.

    Attributes:
        windows: windows that this process has yet to embed.
        widths: padded widths of the run that is resumed, which give the same vectors to the last bit; else None.
    """

    def __init__(self, options: EmbedOptions, rows: int, dim: int, identity: str, is_first: bool) -> None:
        self._options, self._rows, self._dim, self._identity, self._is_first = options, rows, dim, identity, is_first
        self._part = options.output.with_name(options.output.name + ".part")
        index, count = jax.process_index(), jax.process_count()
        self._progress = options.output.with_name(f"{options.output.name}.progress.{index}-of-{count}.json")
        num_windows = -(-rows // options.window)
        self._done, self.widths = self._read_progress()
        if is_first and not self._part.exists():
            np.lib.format.open_memmap(self._part, mode="w+", dtype=np.float32, shape=(rows, dim)).flush()
        self._barrier("embed file made")
        self._array = np.lib.format.open_memmap(self._part, mode="r+")
        share = -(-num_windows // count)
        mine = range(index * share, min((index + 1) * share, num_windows))
        self.windows = [window for window in mine if window not in self._done]

    def write(self, step: int, start: int, result: EmbeddedWindow) -> None:
        """Put the vectors of ``windows[step]`` on disk, then note that they are there."""
        self._array[start : start + len(result.vectors)] = result.vectors
        self._array.flush()
        self._done.append(self.windows[step])
        self.widths = result.widths
        record = {"identity": self._identity, "widths": list(self.widths), "done": self._done}
        write_json(self._progress, record)

    def finish(self) -> None:
        """Wait for all processes, then give the file its name and shape."""
        self._barrier("embed windows done")
        if self._is_first:
            if self._options.output.suffix == ".parquet":
                self._write_parquet()
            else:
                os.replace(self._part, self._options.output)
            for left_over in self._options.output.parent.glob(f"{self._options.output.name}.progress.*.json"):
                left_over.unlink()
        self._barrier("embed file named")

    def _read_progress(self) -> tuple[list[int], tuple[int, ...] | None]:
        if not self._options.resume:
            if self._part.exists() and self._is_first:
                raise ValueError(f"{self._part} was begun by an earlier run; go on with --resume, or remove it")
            return [], None
        if not self._progress.exists():
            return [], None
        progress = json.loads(self._progress.read_text())
        if progress["identity"] != self._identity:
            raise ValueError(
                f"{self._part} was begun with another input, model or options; remove it and {self._progress.name}, "
                "or run the same command again"
            )
        return progress["done"], tuple(progress["widths"])

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        unnamed = self._options.output.with_name(self._options.output.name + ".new")
        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), self._dim))])
        with pq.ParquetWriter(unnamed, schema) as file:
            for start in range(0, self._rows, self._options.window):
                part = np.asarray(self._array[start : start + self._options.window])
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), self._dim)
                rows = pa.array(np.arange(start, start + len(part)))
                file.write_table(pa.table([rows, vectors], schema=schema))
        os.replace(unnamed, self._options.output)
        self._part.unlink()

    @staticmethod
    def _barrier(name: str) -> None:
        if jax.process_count() > 1:
            distributed.barrier(name, _BARRIER_SECONDS)


@contextlib.contextmanager
def _progress_bar(total: int, is_first: bool) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``; shows texts done, texts per second and time left to people at a terminal."""
    if not is_first or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.speed:,.0f} texts/s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=total)
        yield lambda count: bar.advance(task, count)
