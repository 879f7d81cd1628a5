"""The best state of a training run, by a measurement every so many steps, and the end of a run that gets no better."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from jaxcore.training.checkpoints import read_snapshot, save_snapshot
from jaxcore.training.loop import Stop
from jaxcore.training.run_directory import write_json
from jaxcore.training.state import TrainState
from jaxcore.training.step import TrainStep


def keeping_best(
    train_step: TrainStep, measure: Callable[[Any], float], *, every: int, directory: pathlib.Path, patience: int = 0
) -> tuple[TrainStep, Stop]:
    """A training step for `fit` that also measures, every `every` steps, and writes the best state to `directory`.

    Of equal values the earliest is kept. A resumed run reads what was best from `directory`; steps that it repeats
    measure the same again. `measure` and the step are called by every process.

    Args:
        train_step: from `make_train_step`.
        measure: params -> a number, the higher the better.
        every: steps between measurements, at least 1.
        directory: of the state and ``best.json``.
        patience: so many measurements in a row that are not better end the training; 0: it goes on.

    Returns:
        The step, and `fit`'s `stop`.

    Raises:
        ValueError: every < 1 or patience < 0.
    """
    if every < 1 or patience < 0:
        raise ValueError(f"a measurement is made every 1 or more steps, patience >= 0: got {every} and {patience}")
    record = directory / "best.json"
    best = json.loads(record.read_text()) if record.is_file() else {"value": float("-inf"), "step": 0}
    state_of_step = [0]

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = train_step(state, batch)
        with jax.transfer_guard("allow"):
            if state_of_step[0] == 0:
                state_of_step[0] = int(state.step) - 1
            state_of_step[0] += 1
            if state_of_step[0] % every == 0:
                value = float(measure(state.params))
                if value > best["value"]:
                    best.update(value=value, step=state_of_step[0])
                    save_snapshot(directory / "state", state)
                    if jax.process_index() == 0:
                        write_json(record, best)
        return state, metrics

    return step, lambda done: 0 < patience * every <= done - best["step"]


def best_state(directory: pathlib.Path, abstract: TrainState) -> TrainState | None:
    """The state that `keeping_best` kept, laid out as `abstract` says; None if none was measured."""
    return read_snapshot(directory / "state", abstract) if (directory / "best.json").is_file() else None
