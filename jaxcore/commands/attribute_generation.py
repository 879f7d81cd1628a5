"""``jaxcore attribute`` of a decoder: which tokens before it made the model write each token of a continuation.

Texts are prompts; what follows them is given, or written by the model itself. Window by window, continuations are
written, explained, and their lines put on disk, so that an interrupted run resumes to the same bytes.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

import jax
from jax.sharding import Mesh

from jaxcore.commands.attribute_options import continuation_options
from jaxcore.commands.decoders import ending_tokens, load_decoder_tokenizer, read_decoder_config
from jaxcore.commands.line_file import LineFile
from jaxcore.commands.text_runs import barrier, beats_until_notice, progress_bar
from jaxcore.data import Source, tokenizer_fingerprint
from jaxcore.evaluation.generation_attribution import (
    Continuation,
    ContinuationExplanation,
    ContinuationOptions,
    LanguageModel,
    Level,
    by_segment,
    explain_continuations,
    generated_continuations,
    given_continuation,
)
from jaxcore.models import load_pretrained
from jaxcore.reporting import text_table
from jaxcore.reporting.generation_attribution import continuation_lines, generation_page, strongest_table
from jaxcore.reporting.html import write_page
from jaxcore.reporting.token_maps import printable
from jaxcore.training import params_digest

if TYPE_CHECKING:
    from jaxcore.commands.attribute_options import AttributeOptions

_WINDOW_SHARE = 16  # a continuation costs many times what a text does that is only read


def attribute_continuations(
    options: "AttributeOptions", source: Source, mesh: Mesh, *, tick: Callable[[int], bool], is_first: bool
) -> None:
    """Explain the continuations of the texts and put the explanations where ``options.output`` says.

    Raises:
        ValueError: prompts, continuations, options or a model that cannot be used; nothing is written then.
        Interrupted: `tick` asked to stop; ``--resume`` goes on from the last finished window.
    """
    choices = continuation_options(options, batch_size=1)
    strategy = options.chosen_strategy()
    explained = _load(options, mesh)
    texts = [source[row]["text"] for row in range(len(source))]
    given = _given(options, explained, texts)
    window = max(1, options.window // _WINDOW_SHARE)
    file = _line_file(options, source, explained, mesh, window) if options.kind == ".jsonl" else None
    starts = range(0, len(texts), window)
    rows_of = [range(start, min(start + window, len(texts))) for start in starts]
    if file is not None:
        rows_of = [file.rows(number) for number in file.windows]
    beats = beats_until_notice(
        tick, len(rows_of) if file is None else file.num_windows, options.output, resumes=file is not None
    )

    def continuations(rows: range) -> list[Continuation]:
        if given:
            return [given[row] for row in rows]
        contrast = options.contrast or [None] * len(texts)
        return [
            generated_continuations(
                explained, [texts[row]], max_new_tokens=options.max_new_tokens, strategy=strategy,
                key=jax.random.fold_in(jax.random.key(options.seed), row), stop_tokens=_stop_tokens(explained),
                contrast=contrast[row], chat=options.chat,
            )[0]
            for row in rows
        ]  # fmt: skip

    factor = len(choices.methods)
    with progress_bar("attribute", factor * sum(map(len, rows_of)), is_first, unit="texts x methods") as show:
        results = (
            (rows, list(explain_continuations(explained, continuations(rows), choices, mesh=mesh, first=rows.start,
                                              advance=show)))
            for rows in rows_of
        )  # fmt: skip
        if file is not None:
            _write_lines(file, results, beats, options, choices)
        elif options.kind == ".html":
            _write_page(results, options, choices)
        else:
            _print_terminal(results, options)
    if is_first and file is not None:
        print(f"{options.output}: {len(texts) * factor:,} lines, {len(texts):,} texts x {factor} methods")


Results = Iterator[tuple[range, list[ContinuationExplanation]]]


def _write_lines(
    file: LineFile, results: Results, beats: Iterator[None], options: "AttributeOptions", choices: ContinuationOptions
) -> None:
    is_open = False
    for rows, found in results:
        if not is_open:  # what cannot work fails before anything is written
            file.open()
            is_open = True
        lines = []
        for row, item in zip(rows, found, strict=True):
            segments = by_segment(item, options.level)
            lines += continuation_lines(row, item, segments, attributed=choices.attributed)
        file.write(lines, (1,))  # widths are those of the texts alone
        next(beats)
    for _ in beats:  # on a process with fewer windows than others
        pass
    if not is_open:
        file.open()
    file.finish()


def _write_page(results: Results, options: "AttributeOptions", choices: ContinuationOptions) -> None:
    explanations = [item for _, found in results for item in found]
    facts = {
        "model": options.model,
        "score": choices.score.replace("_", " "),
        "attributed to": choices.attributed,
        "continuations": "given" if options.continuation else f"by {options.strategy}",
        "seed": str(options.seed),
    }
    levels = [options.level, *(level for level in get_args(Level) if level != options.level)]
    page = generation_page(explanations, facts=facts, levels=levels, max_texts=options.report_texts)
    write_page(options.output, page)
    print(f"{options.output}: {len(explanations):,} texts x {len(choices.methods)} methods")


def _print_terminal(results: Results, options: "AttributeOptions") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for rows, found in results:
        for row, item in zip(rows, found, strict=True):
            console.print(f"text {row}: {printable(item.continuation.prompt)}", style="bold")
            console.print(printable(item.continuation.text))
            table = strongest_table(item, by_segment(item, options.level))
            cells = [[printable(cell) if isinstance(cell, str) else cell for cell in line] for line in table.rows]
            print(text_table(table.columns, cells))
            console.print()


def _load(options: "AttributeOptions", mesh: Mesh) -> LanguageModel:
    """The model on the mesh, with explicit attention: attention methods read its weights."""
    overrides = {"dtype": options.dtype, "attention_implementation": "explicit"}
    tokenizer = load_decoder_tokenizer(options.model, read_decoder_config(options.model), tokenizer=options.tokenizer)
    model, params = load_pretrained(options.model, config_overrides=overrides, dtype=options.dtype, sharding=mesh)
    return LanguageModel(model, params, tokenizer)


def _given(options: "AttributeOptions", explained: LanguageModel, texts: list[str]) -> list[Continuation]:
    """The continuations of the command line; errors name the text."""
    found = []
    for number, text in enumerate(options.continuation):
        contrast = options.contrast[number] if options.contrast else None
        try:
            found.append(given_continuation(explained, texts[number], text, contrast=contrast, chat=options.chat))
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from error
    return found


def _stop_tokens(explained: LanguageModel) -> tuple[int, ...]:
    return ending_tokens(explained.tokenizer, explained.model.config)


def _line_file(
    options: "AttributeOptions", source: Source, explained: LanguageModel, mesh: Mesh, window: int
) -> LineFile:
    names = (
        "chat", "continuation", "contrast", "attributed", "strategy", "decoding", "max_new_tokens", "score", "level",
        "field", "num_steps", "num_samples", "seed", "dtype", "memory_megabytes",
    )  # fmt: skip
    settings: dict[str, Any] = {  # what decides the lines, to the last byte
        **{name: str(getattr(options, name)) for name in names},
        "methods": ",".join(options.method_names(of_decoder=True)),
        "input": source.fingerprint(),
        "model": params_digest(explained.params),
        "tokenizer": tokenizer_fingerprint(explained.tokenizer),
        "devices": str(mesh.devices.size),
    }
    return LineFile(
        options.output,
        num_rows=len(source),
        window=window,
        settings=settings,
        resume=options.resume,
        process=(jax.process_index(), jax.process_count()),
        barrier=barrier,
        command="attribute",
    )
