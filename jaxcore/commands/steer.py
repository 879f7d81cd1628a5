"""``jaxcore steer``: directions that make a decoder prefer some responses to others, found and applied.

    jaxcore steer --model PATH --pairs pairs.jsonl --layers 10-14 --output honest.safetensors
    jaxcore steer --model PATH --vectors honest.safetensors --strength 0.5 --prompt "Q: Why do veins appear blue?\\nA:"

The first call reads preference pairs (prompt, chosen, rejected) and writes steering vectors; the second continues
prompts under them and shows each text beside the one that the model gives by itself. A line of JSON has the fields
prompt, text (steered), unsteered, strength and tokens (ids of the steered text). For many prompts, any decoding
strategy, several processes and ``--resume`` there is ``jaxcore generate --vectors honest.safetensors --strength 0.5``.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxcore import distributed
from jaxcore.commands.arguments import option_names, parse_arguments
from jaxcore.commands.decoders import (
    ending_tokens,
    load_decoder_tokenizer,
    load_for_decoding,
    prompt_ids,
    read_decoder_config,
)
from jaxcore.commands.line_file import check_new_file
from jaxcore.commands.steer_options import SteerOptions, check_options
from jaxcore.commands.text_runs import open_texts
from jaxcore.data.preference_pairs import (
    PreferencePair,
    encode_pairs,
    is_truthfulqa,
    read_preference_pairs,
    read_truthfulqa,
)
from jaxcore.data.preference_task import mask_token
from jaxcore.distributed import check_batch, make_mesh
from jaxcore.evaluation.steering_bench import SteeringBench, steering_programs, steering_vectors
from jaxcore.generation import Completion, Greedy, Sampling, complete
from jaxcore.generation.steering import chosen_layers, load_steering, save_steering, steering_edits
from jaxcore.models import load_pretrained
from jaxcore.reporting.token_maps import printable_lines
from jaxcore.training import as_plain


def main(arguments: Sequence[str]) -> int:
    """Parse and run; returns the exit code."""
    options = parse_arguments(
        SteerOptions,
        arguments,
        prog="jaxcore steer",
        description="Find directions that steer a decoder language model, or generate under them.",
        known=option_names(SteerOptions),
    )
    check_options(options)
    process = distributed.start(config_hash=distributed.hash_config(as_plain(options)))
    if options.builds:
        build_vectors(options, tick=distributed.tick, is_first=process.is_first)
    else:
        apply_vectors(options)
    return 0


# ---- building --------------------------------------------------------------------------------------------


def build_vectors(
    options: SteerOptions, *, tick: Callable[[int], bool] = lambda step: False, is_first: bool = True
) -> None:
    """Find vectors on preference pairs and write them to ``options.output``; see `SteerOptions`.

    Args:
        tick: called equally often on every process; True asks to stop.
        is_first: whether this process writes the file and prints the summary.

    Raises:
        ValueError: pairs, model, layers or output that cannot be used; nothing is written then.
        Interrupted: `tick` asked to stop.
    """
    check_options(options)
    check_new_file(options.output)
    config = read_decoder_config(options.model)
    layers = chosen_layers(options.layers, config.num_layers)
    mesh = make_mesh(options.mesh)
    check_batch(mesh, options.batch_size, jax.process_count())
    pairs = _read_pairs(options)
    tokenizer = load_decoder_tokenizer(options.model, config, tokenizer=options.tokenizer)
    rows = encode_pairs(pairs, tokenizer)
    longest = rows["prompt_ids"].shape[1] + rows["chosen"].shape[1]
    if longest > config.context_length:
        raise ValueError(f"pairs of up to {longest} tokens do not fit the model's context of {config.context_length}")
    model, params = load_pretrained(
        options.model, config_overrides={"dtype": options.dtype, "remat": "full"}, dtype=options.dtype, sharding=mesh
    )
    programs = steering_programs(
        model, mesh, num_steps=options.num_steps, reduction=options.reduction, seed=options.seed
    )
    bench = SteeringBench(programs, params, options.batch_size, mask_token(tokenizer), tick)
    steering = steering_vectors(
        bench,
        rows,
        method=options.method,
        layers=layers,
        k=options.k,
        aggregate=options.aggregate,
        num_heads=options.num_heads,
        seed=options.seed,
    )
    if is_first:
        facts = {"model": options.model, "pairs": options.pairs, "num_pairs": str(len(pairs))}
        save_steering(options.output, steering, facts=facts)
        named = "layer" if len(layers) == 1 else "layers"
        print(f"{options.output}: {options.method} from {len(pairs)} pairs, {named} {', '.join(map(str, layers))}")


def _read_pairs(options: SteerOptions) -> list[PreferencePair]:
    """The pairs to use, in the order of the file."""
    if is_truthfulqa(options.pairs):
        pairs = read_truthfulqa(options.pairs, seed=options.seed)
    else:
        names = {name: getattr(options, name) for name in ("prompt_field", "chosen_field", "rejected_field")}
        pairs = read_preference_pairs(options.pairs, **names)
    if not options.num_pairs or len(pairs) <= options.num_pairs:
        return pairs
    drawn = np.random.default_rng(options.seed).permutation(len(pairs))[: options.num_pairs]
    return [pairs[index] for index in sorted(drawn.tolist())]


# ---- applying --------------------------------------------------------------------------------------------


def apply_vectors(options: SteerOptions) -> None:
    """Continue the prompts with and without the vectors and put both where ``options.output`` says.

    Raises:
        ValueError: prompts, model, vectors or output that cannot be used; nothing is written then.
    """
    check_options(options)
    if jax.process_count() > 1:
        raise ValueError("both texts side by side take one process: `jaxcore generate --vectors` spreads over several")
    if options.writes_lines:
        check_new_file(options.output)
    config = read_decoder_config(options.model)
    steering = load_steering(options.vectors, config)
    prompts = list(options.prompt) or _read_prompts(options)
    tokenizer = load_decoder_tokenizer(options.model, config, tokenizer=options.tokenizer)
    mesh = make_mesh(options.mesh)
    model, params = load_for_decoding(options.model, options.dtype, mesh)
    run = functools.partial(
        complete,
        model,
        params,
        [prompt_ids(tokenizer, prompt, chat=options.chat) for prompt in prompts],
        max_new_tokens=options.max_new_tokens,
        tokenizer=tokenizer,
        strategy=Sampling(temperature=options.temperature) if options.temperature else Greedy(),
        key=jax.random.key(options.seed),
        stop_tokens=ending_tokens(tokenizer, config),
        batch_size=options.batch_size,
        mesh=mesh,
    )
    # Strength 0 is the model by itself, to the last bit, in the program that steers.
    plain, steered = (run(edits=steering_edits(steering, strength)) for strength in (0.0, options.strength))
    texts = [(prompt, before[0], after[0]) for prompt, before, after in zip(prompts, plain, steered, strict=True)]
    for row, (_, *items) in enumerate(texts):
        if not all(np.isfinite(item.log_probs).all() for item in items):
            raise ValueError(f"log probabilities of prompt {row} are not finite: look at the model's weights")
    if options.writes_lines:
        _write_lines(options.output, texts, options.strength)
        print(f"{options.output}: {len(texts):,} lines")
    else:
        _print_terminal(texts, options)


def _read_prompts(options: SteerOptions) -> list[str]:
    source = open_texts(options.input, options.field, 0.0)
    return [source[row]["text"] for row in range(len(source))]


def _write_lines(path: pathlib.Path, texts: Sequence[tuple[str, Completion, Completion]], strength: float) -> None:
    """All lines at once: the file is whole or not there."""
    lines = [
        {"prompt": prompt, "text": after.text, "unsteered": before.text, "strength": strength, "tokens": after.tokens}
        for prompt, before, after in texts
    ]
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data.encode("utf-8", errors="backslashreplace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _print_terminal(texts: Sequence[tuple[str, Completion, Completion]], options: SteerOptions) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for prompt, before, after in texts:
        console.print(printable_lines(prompt), style="bold")
        for name, item in (("unsteered", before), (f"steered, strength {options.strength:g}", after)):
            console.print(f"{name}:", style="dim")
            console.print(printable_lines(item.text or ""))
        console.print()
