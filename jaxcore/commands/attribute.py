"""``jaxcore attribute``: which tokens of a text made the model say what it says, by any number of methods.

A text or a pair of texts given on the command line, or those of a file; a classifier's score, the similarity of an
encoder's embeddings to another text, or each token with which a decoder continues it (attribute_generation.py). The
answer goes to the terminal, to a report (one HTML file), or to lines of JSON, which are written window by window: a run
that was killed goes on with ``--resume`` and gives the same file, to the last byte.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcore import distributed
from jaxcore.attribution.method_names import method_table
from jaxcore.commands.arguments import parse_arguments
from jaxcore.commands.attribute_generation import attribute_continuations
from jaxcore.commands.attribute_models import load_text_model
from jaxcore.commands.attribute_options import AttributeOptions, attribution_options, check_options
from jaxcore.commands.line_file import LineFile, check_new_file
from jaxcore.commands.text_runs import (
    TICKS_PER_WINDOW,
    advance_with_beats,
    barrier,
    beats_until_notice,
    open_texts,
    progress_bar,
)
from jaxcore.data import Field, ListSource, Source, open_source, tokenizer_fingerprint
from jaxcore.distributed import make_mesh
from jaxcore.evaluation.text_attribution import explain_windows
from jaxcore.evaluation.text_explanation import AttributionOptions, ExplainedWindow, TextExplanation, by_word
from jaxcore.evaluation.text_model import Text, TextModel
from jaxcore.models import DecoderConfig, read_config
from jaxcore.models.recurrent_directory import holds_recurrent
from jaxcore.reporting import text_table, write_report
from jaxcore.reporting.explanations import (
    explanation_agreement,
    explanation_heatmaps,
    explanation_lines,
    explanations_report,
)
from jaxcore.reporting.token_maps import printable, terminal_heatmaps
from jaxcore.training import as_plain, params_digest


def main(arguments: Sequence[str]) -> int:
    """Parse and run; returns the exit code."""
    options = parse_arguments(
        AttributeOptions,
        arguments,
        prog="jaxcore attribute",
        description="Which tokens of a text made the model say what it says.",
    )
    if options.methods:
        print(text_table(("method", "what it measures"), method_table()))
        return 0
    check_options(options)
    process = distributed.start(config_hash=distributed.hash_config(as_plain(options)))
    attribute(options, tick=distributed.tick, is_first=process.is_first)
    return 0


def attribute(
    options: AttributeOptions,
    *,
    tick: Callable[[int], bool] = lambda step: False,
    is_first: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Explain the texts and put the explanations where ``options.output`` says; see `AttributeOptions`.

    Args:
        tick: called equally often on every process; True asks to stop.
        is_first: whether this process shows progress and prints the summary.
        devices: those to work on; this process's own by default.

    Raises:
        ValueError: input, model, labels or output that cannot be used.
        Interrupted: `tick` asked to stop.
    """
    check_options(options)
    if options.kind != "terminal":
        check_new_file(options.output)
    if options.kind != ".jsonl" and jax.process_count() > 1:
        raise ValueError("a report or the terminal takes one process: write .jsonl, or start one process")
    source = _open(options)
    mesh = make_mesh(options.mesh, jax.local_devices() if devices is None else devices)
    if not holds_recurrent(options.model) and isinstance(read_config(options.model), DecoderConfig):
        attribute_continuations(options, source, mesh, tick=tick, is_first=is_first)
        return
    explained = load_text_model(options, mesh)
    choices = attribution_options(options, explained.labels)
    run = functools.partial(explain_windows, explained, options=choices, mesh=mesh, num_texts=len(source))
    file = _line_file(options, source, explained, mesh) if options.kind == ".jsonl" else None
    starts = range(0, len(source), options.window)
    rows_of = [range(start, min(start + options.window, len(source))) for start in starts]
    if file is not None:
        rows_of = [file.rows(window) for window in file.windows]
    num_windows = len(rows_of) if file is None else file.num_windows
    beats = beats_until_notice(tick, num_windows * TICKS_PER_WINDOW, options.output, resumes=file is not None)
    factor = len(choices.methods)
    with progress_bar("attribute", factor * sum(map(len, rows_of)), is_first, unit="texts x methods") as show:
        advance = advance_with_beats([len(rows) * factor for rows in rows_of], beats, show)
        texts = ((rows.start, [_text(source[row]) for row in rows]) for rows in rows_of)
        results = run(windows=texts, widths=None if file is None else file.widths, advance=advance)
        windows = _each_window(results, beats, level=options.level)
        if file is not None:
            _write_lines(file, windows, options, explained.labels, choices.versus)
        elif options.kind == ".html":
            _write_report(options, [item for found, _ in windows for item in found], explained, choices)
        else:
            _print_terminal((found for found, _ in windows), explained.labels, choices.versus)
    if is_first and file is not None:
        print(f"{options.output}: {len(source) * factor:,} lines, {len(source):,} texts x {factor} methods")


def _each_window(
    results: Iterator[ExplainedWindow], beats: Iterator[None], *, level: str
) -> Iterator[tuple[list[TextExplanation], tuple[int, ...]]]:
    """Each window as it comes, at the level of tokens or words, with its widths; the last tick of a window follows."""
    for result in results:
        yield [by_word(item) if level == "word" else item for item in result.explanations], result.widths
        next(beats)
    for _ in beats:  # on a process with fewer windows than others
        pass


def _write_lines(
    file: LineFile, windows: Iterator[Any], options: AttributeOptions, labels: Sequence[str], versus: int | None
) -> None:
    is_open = False
    for found, widths in windows:
        if not is_open:  # what cannot work fails before anything is written
            file.open()
            is_open = True
        lines = [line for item in found for line in explanation_lines(item, labels, versus=versus, level=options.level)]
        file.write(lines, widths)
    if not is_open:
        file.open()
    file.finish()


def _write_report(
    options: AttributeOptions,
    explanations: Sequence[TextExplanation],
    explained: TextModel,
    choices: AttributionOptions,
) -> None:
    asked = f"similarity to {options.similar_to!r:.120}" if options.similar_to else choices.score
    if options.versus:
        asked = f"logit of {options.target} less logit of {options.versus}"
    facts = {"model": options.model, "score": asked, "level": options.level, "seed": str(options.seed)}
    settings = {
        name: value
        for name, value in as_plain(options).items()
        if name not in ("text", "text_pair", "methods", "resume")
    }
    report = explanations_report(
        explanations,
        explained.labels,
        versus=choices.versus,
        facts=facts,
        options=settings,
        max_texts=options.report_texts,
    )
    write_report(options.output, report)
    counted = [
        f"{n:,} {word}" + "s" * (n != 1) for n, word in ((len(explanations), "text"), (len(choices.methods), "method"))
    ]
    print(f"{options.output}: {' x '.join(counted)}")


def _print_terminal(windows: Iterator[Sequence[TextExplanation]], labels: Sequence[str], versus: int | None) -> None:
    from rich.console import Console

    console, explanations = Console(highlight=False), []
    for found in windows:
        for item in found:
            explanations.append(item)
            console.print(terminal_heatmaps(explanation_heatmaps(item, labels, versus=versus)))
            for name, scored in item.methods.items():
                console.print(
                    f"strongest by {name}: {_strongest(item, scored.scores)}", markup=False, style="dim", soft_wrap=True
                )
            console.print()
    agreement = explanation_agreement(explanations)
    if agreement is not None:
        table = agreement.table()
        console.print(f"{table.caption}:", markup=False, soft_wrap=True)
        print(text_table(table.columns, table.rows))


def _strongest(item: TextExplanation, scores: np.ndarray, most: int = 5) -> str:
    """The tokens of largest magnitude that are the text's own, with their scores."""
    own = [index for index in np.argsort(-np.abs(scores), kind="stable").tolist() if not item.special[index]]
    return ", ".join(f"{printable(item.tokens[index])} {scores[index]:+.3g}" for index in own[:most])


def _open(options: AttributeOptions) -> Source:
    """Records with a ``text``, and for pairs a ``text_pair``."""
    if options.text:
        given: dict[str, Sequence[str]] = {"text": options.text}
        if options.text_pair:
            given["text_pair"] = options.text_pair
        records = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
        fields = tuple(Field(name) for name in given)
        return ListSource(records, fields=fields, name="--text", max_malformed_rate=0.0)
    if not options.pair_field:
        return open_texts(options.input, options.field, options.max_malformed_rate)
    fields = Field("text", column=options.field), Field("text_pair", column=options.pair_field)
    is_tfds = options.input.startswith("tfds:")  # TFDS checked its records when it wrote them
    checks = {} if is_tfds else {"max_malformed_rate": options.max_malformed_rate}
    return open_source(options.input, fields=fields, **checks)


def _text(record: Mapping[str, Any]) -> Text:
    return (record["text"], record["text_pair"]) if "text_pair" in record else record["text"]


def _line_file(options: AttributeOptions, source: Source, explained: TextModel, mesh: Mesh) -> LineFile:
    names = (
        "target", "versus", "similar_to", "score", "level", "field", "pair_field", "truncate", "num_steps",
        "num_samples", "seed", "dtype", "batch_tokens", "memory_megabytes",
    )  # fmt: skip
    settings = {  # what decides the lines, to the last byte
        **{name: str(getattr(options, name)) for name in names},
        "methods": ",".join(options.method_names()),
        "input": source.fingerprint(),
        "model": params_digest(explained.params),
        "labels": ", ".join(explained.labels),
        "tokenizer": tokenizer_fingerprint(explained.tokenizer),
        "devices": str(mesh.devices.size),
    }
    return LineFile(
        options.output,
        num_rows=len(source),
        window=options.window,
        settings=settings,
        resume=options.resume,
        process=(jax.process_index(), jax.process_count()),
        barrier=barrier,
        command="attribute",
    )
