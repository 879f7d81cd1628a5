"""``jaxcore embed``: the texts of a file to vectors, in order, through kills and on any number of devices.

Texts are embedded in windows of a fixed number of records. A finished window is on disk before it is noted as done (see
`vector_file`), so a run that was killed goes on with ``--resume`` where it stood; since windows are the same, the file
is too, to the last bit. Several processes each take a contiguous share of the windows, for their own devices.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from jaxcore import distributed
from jaxcore.commands.arguments import parse_arguments
from jaxcore.commands.text_runs import (
    TICKS_PER_WINDOW,
    advance_with_beats,
    barrier,
    beats_until_notice,
    load_model_tokenizer,
    open_texts,
    progress_bar,
)
from jaxcore.commands.vector_file import VectorFile, check_output
from jaxcore.data import Source, tokenizer_fingerprint
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.text_embedding import EmbeddedWindow, EmbeddingOptions, Pooling, embed_windows, text_length
from jaxcore.models import Encoder, load_pretrained, read_config
from jaxcore.training import as_plain, params_digest


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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which the model computes; vectors are float32."""
    window: int = 16384
    """Texts embedded, sorted by length and written at a time."""
    max_malformed_rate: float = 0.0
    """Largest share of records without a text; these would be left out of the rows."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices of each process along each mesh axis; by default all of them work on different texts."""
    resume: bool = False
    """Go on with an output that an earlier, interrupted run of this same command began."""

    def __post_init__(self) -> None:
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


def embed(options: EmbedOptions, *, tick: Callable[[int], bool] = lambda step: False, is_first: bool = True) -> None:
    """Embed every text of ``options.input`` into ``options.output``; see `EmbedOptions`.

    Args:
        tick: called equally often on every process; True asks to stop.
        is_first: whether this process shows progress and prints the summary.

    Raises:
        ValueError: input, model or output that cannot be used; nothing is written then.
        Interrupted: `tick` asked to stop; ``--resume`` goes on from the last finished window.
    """
    check_output(options.output, resume=options.resume)
    source = open_texts(options.input, options.field, options.max_malformed_rate)
    mesh = make_mesh(options.mesh, jax.local_devices())
    model, params = _load_model(options, mesh)
    tokenizer = load_model_tokenizer(options.tokenizer or options.model)
    choices = EmbeddingOptions(
        options.pooling, options.normalize, options.max_length or None, options.batch_tokens or None
    )
    longest = text_length(model, tokenizer, choices.max_length)
    file = VectorFile(
        options.output,
        num_rows=len(source),
        window=options.window,
        settings={
            **{name: str(getattr(options, name)) for name in ("field", "pooling", "normalize", "dtype")},
            "max_length": str(longest),
            "input": source.fingerprint(),
            "model": params_digest(params),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        },
        resume=options.resume,
        process=(jax.process_index(), jax.process_count()),
        barrier=barrier,
    )
    count, started = file.num_rows_left, time.perf_counter()
    embedding = functools.partial(
        embed_windows, model, params, tokenizer, options=choices, mesh=mesh, num_texts=len(source)
    )
    beats = beats_until_notice(tick, file.num_windows * TICKS_PER_WINDOW, options.output)
    with progress_bar("embed", count, is_first) as show:
        _write_windows(file, source, embedding, dim=model.config.hidden_size, show=show, beats=beats)
    truncated = file.finish()
    if is_first:
        seconds = time.perf_counter() - started
        print(
            f"{options.output}: {len(source):,} texts x {model.config.hidden_size}; {count:,} embedded here in "
            f"{seconds:.1f} s ({count / max(seconds, 1e-9):,.0f} a second), {truncated:,} cut to {longest} tokens"
        )


def _write_windows(
    file: VectorFile,
    source: Source,
    start: Callable[..., Iterator[EmbeddedWindow]],
    *,
    dim: int,
    show: Callable[[int], None],
    beats: Iterator[None],
) -> None:
    """Embed this process's windows and write each as it comes."""
    rows_of = [file.rows(window) for window in file.windows]
    texts = ([source[row]["text"] for row in rows] for rows in rows_of)
    results = start(
        windows=texts, widths=file.widths, advance=advance_with_beats([len(rows) for rows in rows_of], beats, show)
    )
    # The first window is waited for before anything is written: what cannot work fails there.
    results = itertools.chain(list(itertools.islice(results, 1)), results)
    file.open(dim)
    for window, result in zip(file.windows, results, strict=True):
        file.write(window, result)
        next(beats)
    for _ in beats:  # on a process with fewer windows than others
        pass


def _load_model(options: EmbedOptions, mesh: Mesh) -> tuple[Encoder, Any]:
    """The encoder and its parameters, each device's part straight from the file."""
    overrides: dict[str, Any] = {"dtype": options.dtype}
    if options.pooling != "model":
        overrides["pooler"] = "none"
    try:
        config = read_config(options.model, config_overrides=overrides)
    except ValueError as error:
        if "config_overrides={'pooler'" not in str(error):
            raise
        raise ValueError(f"{str(error).split(';')[0]}; choose --pooling mean, cls or max") from error
    if options.pooling == "model" and config.pooler == "none":
        raise ValueError(f"{options.model} has no pooler of its own; choose --pooling mean, cls or max")
    return load_pretrained(options.model, config_overrides=overrides, sharding=mesh)
