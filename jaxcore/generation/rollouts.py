"""Rollouts: many samples of many prefixes, each prefix read once, kept on disk batch by batch, resumed exactly.

The file is JSON Lines: a first line that says what is drawn, then one line per prefix,

    {"prefix": 17, "samples": [[5, 8, 2], ...], "stopped": [true, ...]}

written batch by batch (`jaxcore.distributed.GroupedLines`): a batch that a kill cut off is drawn again from the same
key, so that a run that was stopped anywhere ends in the same file as one that was not.
"""

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxcore.distributed import (
    GroupedLines,
    check_batch,
    current_ticker,
    gather_to_host,
    jit_on_mesh,
    replicated,
    split_rows,
)
from jaxcore.generation.generate import generate
from jaxcore.generation.option_checks import check_count
from jaxcore.generation.progress import Generated
from jaxcore.generation.prompts import pad_left, prompt_width
from jaxcore.generation.strategy import Strategy


class Rollout(NamedTuple):
    """One continuation of a prefix."""

    tokens: list[int]
    """Without padding; the stop token, if one ended it, included."""
    stopped: bool
    """True if a stop token ended it."""


class RolloutsInterrupted(Exception):
    """A notice came between two batches; those drawn are on disk, and the same call goes on from there."""


class Sampler(NamedTuple):
    """How rollouts are drawn: what `sample_rollouts` compiles."""

    strategy: Strategy
    num_samples: int
    """Of each prefix."""
    max_new_tokens: int
    stop_tokens: tuple[int, ...] = ()


def rollout_program(model: Any, sampler: Sampler, mesh: Mesh) -> Any:
    """Jitted ``(params, input_ids, attention_mask, key_data) -> Generated``; prefixes are split over the batch axes.

    The arrays are prefixes padded on the left [prefixes, width]; results are replicated.
    """

    def run(params: Any, input_ids: Array, attention_mask: Array, key_data: Array) -> Generated:
        return generate(
            model,
            params,
            input_ids,
            attention_mask,
            strategy=sampler.strategy,
            max_new_tokens=sampler.max_new_tokens,
            num_samples=sampler.num_samples,
            stop_tokens=sampler.stop_tokens,
            key=jax.random.wrap_key_data(key_data),
        )

    return jit_on_mesh(run, mesh, out_shardings=replicated(mesh))


def sample_rollouts(
    model: Any,
    params: Any,
    prefixes: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    file: pathlib.Path,
    seed: int,
    mesh: Mesh,
    batch_size: int = 1,
    width: int | None = None,
    identity: str = "",
    program: Any = None,
    tick: Callable[[int], bool] = lambda batch: False,
) -> list[list[Rollout]]:
    """`sampler.num_samples` continuations of every prefix, in order; those that `file` has are read from it.

    Args:
        model, params: as for `generate`.
        prefixes: token ids of each.
        file: kept and continued; in a folder that all processes reach. Process 0 writes.
        seed: batch b draws with key fold_in(key(seed), b).
        mesh: prefixes of a batch are split over its batch axes; all samples of a prefix stay together.
        batch_size: prefixes per call of the program; a multiple of the mesh's batch shards. After each call the lines
            are on disk, so 1 per device keeps most.
        width: tokens that all prefixes are padded to, for one program; None = per batch, one of few (`prompt_width`).
        identity: names the parameters (a digest): a file of others is not continued.
        program: from `rollout_program`, where it is compiled already.
        tick: called after each batch on every process; True raises `RolloutsInterrupted`.

    Raises:
        ValueError: no or an empty prefix, a prefix longer than the context leaves room for, a file drawn from something
            else or damaged before its end, and as `generate`.
    """
    check_count("num_samples", sampler.num_samples)
    check_count("max_new_tokens", sampler.max_new_tokens)
    check_batch(mesh, batch_size, jax.process_count())
    room = model.config.context_length - sampler.max_new_tokens - sampler.strategy.num_extra_positions
    _check_prefixes(prefixes, room, width)
    settings = _settings(prefixes, sampler, seed=seed, batch_size=batch_size, width=width, identity=identity)
    lines = GroupedLines(pathlib.Path(file), settings, num_lines=len(prefixes), group_size=batch_size)
    results = lines.read(_from_line)
    program = program or rollout_program(model, sampler, mesh)
    for batch in range(-(-len(results) // batch_size), -(-len(prefixes) // batch_size)):
        chosen = prefixes[batch * batch_size : (batch + 1) * batch_size]
        filled = [*chosen, *[chosen[0]] * (batch_size - len(chosen))]
        arrays = pad_left(filled, width or prompt_width(max(map(len, chosen)), limit=room))
        inputs = (split_rows(mesh, array.astype(np.int32)) for array in arrays)
        key_data = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), batch))
        with current_ticker().phase("rollouts"):  # long beside a step; the first one compiles
            generated = gather_to_host(program(params, *inputs, np.asarray(key_data)))
        drawn = _rows(generated)[: len(chosen)]
        lines.append([_to_line(len(results) + row, samples) for row, samples in enumerate(drawn)])
        results += drawn
        if tick(batch) and len(results) < len(prefixes):
            raise RolloutsInterrupted(f"stopped on notice after {len(results)} of {len(prefixes)} prefixes")
    return results


def _check_prefixes(prefixes: Sequence[Sequence[int]], room: int, width: int | None) -> None:
    if not len(prefixes):
        raise ValueError("rollouts need at least one prefix")
    for number, prefix in enumerate(prefixes):
        if not 1 <= len(prefix) <= room:
            raise ValueError(f"prefix {number} has {len(prefix)} tokens: expected 1 to {room}, what the context leaves")
        if width is not None and len(prefix) > width:
            raise ValueError(f"prefix {number} has {len(prefix)} tokens: expected at most the width of {width}")


def _settings(prefixes: Sequence[Sequence[int]], sampler: Sampler, **others: Any) -> dict[str, str]:
    digest = hashlib.sha256()
    for prefix in prefixes:
        digest.update(np.asarray([len(prefix), *prefix], np.int64).tobytes())
    described = {"prefixes": digest.hexdigest(), **sampler._asdict(), **others}
    return {name: str(value) for name, value in described.items()}


def _rows(generated: Generated) -> list[list[Rollout]]:
    def rollout(row: int, sample: int) -> Rollout:
        length = int(generated.lengths[row, sample])
        return Rollout(generated.tokens[row, sample, :length].tolist(), bool(generated.stopped[row, sample]))

    rows, samples = generated.lengths.shape
    return [[rollout(row, sample) for sample in range(samples)] for row in range(rows)]


def _to_line(prefix: int, samples: Sequence[Rollout]) -> dict[str, Any]:
    return {"prefix": prefix, "samples": [r.tokens for r in samples], "stopped": [r.stopped for r in samples]}


def _from_line(number: int, line: Any) -> list[Rollout]:
    samples = [Rollout(*pair) for pair in zip(line["samples"], line["stopped"], strict=True)]
    if line["prefix"] != number:
        raise ValueError(f"it is of prefix {line['prefix']}")
    return samples
