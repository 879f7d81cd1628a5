"""``jaxcore generate``: continuations of prompts from a decoder language model, by any decoding strategy.

Prompts given on the command line, or those of a file. The answer goes to the terminal, or to lines of JSON, which are
written batch by batch: a run that was killed goes on with ``--resume`` and gives the same file, to the last byte. For
that, batches are always the same prompts, and each draws with the seed's key folded with its first prompt's index.

A line has the fields prompt, sample (its number among the prompt's), text, tokens (ids, the stop token included),
log_prob (of all its tokens under the model, in nats) and stopped (whether a stop token ended it).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcore import distributed
from jaxcore.commands.arguments import option_names, parse_arguments
from jaxcore.commands.decoders import (
    ending_tokens,
    load_decoder_tokenizer,
    load_for_decoding,
    prompt_ids,
    read_decoder_config,
)
from jaxcore.commands.generate_options import GenerateOptions, StrategyOptions, check_options
from jaxcore.commands.line_file import LineFile, check_new_file
from jaxcore.commands.text_runs import barrier, beats_until_notice, open_texts, progress_bar
from jaxcore.data import Field, ListSource, Source, tokenizer_fingerprint
from jaxcore.distributed import make_mesh
from jaxcore.generation import Completion, Strategy, complete, prompt_width, strategy_table
from jaxcore.generation.steering import SteeringVectors, load_steering, steering_edits
from jaxcore.generation.vocabularies import check_tables
from jaxcore.models import DecoderConfig
from jaxcore.reporting import text_table
from jaxcore.reporting.token_maps import printable_lines
from jaxcore.training import as_plain, params_digest


@dataclasses.dataclass(frozen=True)
class Prompts:
    """All prompts of a run, as texts and token ids."""

    source: Source
    ids: list[list[int]]
    width: int
    """That the longest is padded to."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """A prompt with its continuations."""

    prompt: str
    completions: list[Completion]

    def lines(self) -> list[dict[str, Any]]:
        """As lines of the output file."""
        return [
            {
                "prompt": self.prompt,
                "sample": number,
                "text": item.text,
                "tokens": item.tokens,
                "log_prob": _log_prob(item),
                "stopped": item.stopped,
            }
            for number, item in enumerate(self.completions)
        ]


def main(arguments: Sequence[str]) -> int:
    """Parse and run; returns the exit code."""
    options = parse_arguments(
        GenerateOptions,
        arguments,
        prog="jaxcore generate",
        description="Continue prompts with a decoder language model.",
        known=option_names(GenerateOptions, StrategyOptions),
    )
    if options.strategies:
        print(text_table(("strategy", "how tokens are chosen", "options"), strategy_table()))
        return 0
    check_options(options)
    process = distributed.start(config_hash=distributed.hash_config(as_plain(options)))
    generate(options, tick=distributed.tick, is_first=process.is_first)
    return 0


def generate(
    options: GenerateOptions, *, tick: Callable[[int], bool] = lambda step: False, is_first: bool = True
) -> None:
    """Continue the prompts and put the continuations where ``options.output`` says; see `GenerateOptions`.

    Args:
        tick: called equally often on every process; True asks to stop.
        is_first: whether this process shows progress and prints the summary.

    Raises:
        ValueError: prompts, model, strategy or output that cannot be used; nothing is written then.
        Interrupted: `tick` asked to stop; ``--resume`` goes on from the last finished batch.
    """
    check_options(options)
    if options.writes_lines:
        check_new_file(options.output)
    elif jax.process_count() > 1:
        raise ValueError("the terminal takes one process: write .jsonl, or start one process")
    strategy = options.chosen_strategy()
    source = _open(options)
    configs = [read_decoder_config(name) for name in (options.model, options.assistant) if name]
    _check_models(options, strategy, configs)
    steering = load_steering(options.vectors, configs[0]) if options.vectors else None
    mesh = make_mesh(options.mesh, jax.local_devices())
    tokenizer = load_decoder_tokenizer(
        options.model, configs[0], tokenizer=options.tokenizer, assistant=options.assistant
    )
    prompts = _encode(options, source, tokenizer, strategy, configs)
    stops = _stop_tokens(options, tokenizer, configs[0])
    models = [load_for_decoding(name, options.dtype, mesh) for name in (options.model, options.assistant) if name]
    batch = min(options.batch_size, len(source))
    file = None
    if options.writes_lines:
        digests = [params_digest(params) for _, params in models]
        file = _line_file(options, prompts, batch, stops, tokenizer_fingerprint(tokenizer), digests, steering, mesh)
    run = functools.partial(
        complete,
        *models[0],
        max_new_tokens=options.max_new_tokens,
        tokenizer=tokenizer,
        strategy=strategy,
        stop_tokens=stops,
        num_samples=options.num_samples,
        assistant=models[1] if len(models) > 1 else None,
        edits=steering_edits(steering, options.strength) if steering else None,
        mesh=mesh,
    )
    starts = range(0, len(source), batch)
    rows_of = [range(start, min(start + batch, len(source))) for start in starts]
    if file is not None:
        rows_of = [file.rows(window) for window in file.windows]
    num_batches = len(rows_of) if file is None else file.num_windows
    beats = beats_until_notice(tick, num_batches, options.output, resumes=file is not None)
    with progress_bar("generate", sum(map(len, rows_of)), is_first and file is not None, unit="prompts") as show:
        results = _each_batch(run, prompts, rows_of, batch=batch, seed=options.seed, beats=beats, show=show)
        if file is None:
            _print_terminal(results)
        else:
            _write_lines(file, results, prompts.width)
    if is_first and file is not None:
        count = len(source) * options.num_samples
        print(f"{options.output}: {count:,} lines, {len(source):,} prompts x {options.num_samples}")


def _each_batch(
    run: Callable[..., list[list[Completion]]],
    prompts: Prompts,
    batches: Sequence[range],
    *,
    batch: int,
    seed: int,
    beats: Iterator[None],
    show: Callable[[int], None],
) -> Iterator[list[Continued]]:
    """Each batch as it comes; its tick follows when it has been written."""
    for rows in batches:
        ids = [prompts.ids[row] for row in rows]
        filled = [*ids, *[ids[0]] * (batch - len(ids))]  # the last batch runs the same program
        found = run(filled, key=jax.random.fold_in(jax.random.key(seed), rows.start))
        for row, completions in zip(rows, found, strict=False):
            if not all(np.isfinite(item.log_probs).all() for item in completions):
                raise ValueError(f"log probabilities of prompt {row} are not finite: look at the model's weights")
        yield [Continued(prompts.source[row]["text"], item) for row, item in zip(rows, found, strict=False)]
        show(len(rows))
        next(beats)
    for _ in beats:  # on a process with fewer batches than others
        pass


def _write_lines(file: LineFile, results: Iterable[list[Continued]], width: int) -> None:
    is_open = False
    for found in results:
        if not is_open:  # what cannot work fails before anything is written
            file.open()
            is_open = True
        file.write([line for item in found for line in item.lines()], (width,))
    if not is_open:
        file.open()
    file.finish()


def _print_terminal(results: Iterable[list[Continued]]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for item in (item for found in results for item in found):
        console.print(printable_lines(item.prompt), style="bold")
        for number, completion in enumerate(item.completions):
            end = "stopped" if completion.stopped else "cut off"
            facts = f"{len(completion.tokens)} tokens, log probability {_log_prob(completion):.2f}, {end}"
            console.print(f"sample {number}: {facts}", style="dim")
            console.print(f"{printable_lines(completion.text or '')}\n")


def _log_prob(completion: Completion) -> float:
    return float(np.sum(completion.log_probs, dtype=np.float64))


def _open(options: GenerateOptions) -> Source:
    if options.prompt:
        records = [{"text": prompt} for prompt in options.prompt]
        return ListSource(records, fields=(Field("text"),), name="--prompt", max_malformed_rate=0.0)
    return open_texts(options.input, options.field, options.max_malformed_rate)


def _check_models(options: GenerateOptions, strategy: Strategy, configs: Sequence[DecoderConfig]) -> None:
    """ValueError for a strategy that does not fit the models; no weights have been read."""
    sizes = [config.vocab_size for config in configs]
    check_tables(sizes[0], sizes[-1])
    strategy.check(sizes[0], options.max_new_tokens, options.num_samples)


def _encode(
    options: GenerateOptions, source: Source, tokenizer: Any, strategy: Strategy, configs: Sequence[DecoderConfig]
) -> Prompts:
    """Token ids of every prompt; ValueError for one without tokens or longer than the context leaves room for."""
    context = min(config.context_length for config in configs)
    room = context - options.max_new_tokens - strategy.num_extra_positions
    if room < 1:
        raise ValueError(
            f"--max-new-tokens {options.max_new_tokens} leaves no room for a prompt in the model's context of {context}"
        )
    encode = functools.partial(prompt_ids, tokenizer, chat=options.chat)
    ids = [encode(source[row]["text"]) for row in range(len(source))]
    for row, tokens in enumerate(ids):
        if not tokens:
            raise ValueError(f"empty prompt: prompt {row} has no token: {source[row]['text']!r:.80}")
        if len(tokens) > room:
            raise ValueError(
                f"prompt {row} has {len(tokens)} tokens, but with {options.max_new_tokens} new ones only {room} fit "
                f"the model's context of {context}: cut it, or ask for fewer (--max-new-tokens)"
            )
    return Prompts(source, ids, prompt_width(max(map(len, ids)), limit=room))


def _stop_tokens(options: GenerateOptions, tokenizer: Any, config: DecoderConfig) -> tuple[int, ...]:
    """Those asked for; else those of the model or its tokenizer."""
    stops = list(options.stop_tokens)
    for text in options.stop_text:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unknown = tokenizer.unk_token_id in ids and text != tokenizer.unk_token
        if len(ids) != 1 or unknown:
            known = "unknown" if unknown else f"{len(ids)} tokens"
            raise ValueError(f"--stop-text {text!r} is {known} to the tokenizer: give a text that is one token")
        stops += ids
    for token in stops:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"stop token {token} is outside the model's vocabulary, 0 to {config.vocab_size - 1}")
    if stops:
        return tuple(dict.fromkeys(stops))
    return ending_tokens(tokenizer, config)


def _line_file(
    options: GenerateOptions,
    prompts: Prompts,
    batch: int,
    stops: Sequence[int],
    tokenizer: str,
    digests: Sequence[str],
    steering: SteeringVectors | None,
    mesh: Mesh,
) -> LineFile:
    names = ("strategy", "max_new_tokens", "num_samples", "seed", "dtype", "field", "chat")
    steered = "" if steering is None else f"{steering.digest()}, strength {options.strength}"
    settings = {  # what decides the lines, to the last byte
        **{name: str(getattr(options, name)) for name in names},
        "options": ", ".join(f"{name}={value}" for name, value in options.decoding.given().items()),
        "stop_tokens": ", ".join(map(str, stops)),
        "input": prompts.source.fingerprint(),
        "model": ", ".join(digests),
        "tokenizer": tokenizer,
        "vectors": steered,
        "devices": str(mesh.devices.size),
    }
    return LineFile(
        options.output,
        num_rows=len(prompts.source),
        window=batch,
        settings=settings,
        resume=options.resume,
        process=(jax.process_index(), jax.process_count()),
        barrier=barrier,
        command="generate",
    )
