"""The training loop: batches in, a trained state out, through kills, notices and numbers gone bad."""

import contextlib
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcore.distributed import current_ticker, shard_local_batch
from jaxcore.training.checkpoints import Checkpoints, save_snapshot
from jaxcore.training.metrics import MetricsWriter
from jaxcore.training.progress import progress_bar
from jaxcore.training.results import package_versions
from jaxcore.training.run_directory import RunDirectory, write_json
from jaxcore.training.state import TrainState
from jaxcore.training.step import TrainStep

logger = logging.getLogger(__name__)

Tick = Callable[[int], bool]
Stop = Callable[[int], bool]


class Batches(Protocol):
    """An endless iterator over this process's part of each global batch, whose position is one integer."""

    def __iter__(self) -> "Batches": ...

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the loop writes.

    Attributes:
        checkpoint_every: steps between checkpoints; 0 keeps only the one of a preemption or the end.
        keep_checkpoints: newest checkpoints kept.
        log_every: steps between rows of ``metrics.jsonl``.
    """

    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    log_every: int = 1

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0 or self.keep_checkpoints < 1 or self.log_every < 1:
            raise ValueError(
                "loop.checkpoint_every must be >= 0, loop.keep_checkpoints and loop.log_every >= 1: got "
                f"{self.checkpoint_every}, {self.keep_checkpoints}, {self.log_every}"
            )


class Preempted(Exception):
    """A notice came; the state is committed and the run can be resumed."""


class NonFiniteLoss(Exception):
    """The loss or its gradient stopped being a number; the last good state and the batch's ids are on disk."""


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Batches,
    *,
    num_steps: int,
    mesh: Mesh,
    run: RunDirectory,
    loop: LoopConfig,
    title: str = "train",
    tick: Tick = lambda step: False,
    stop: Stop = lambda step: False,
    frozen: tuple[str, ...] = (),
) -> TrainState:
    """Train from where the run directory stands to `num_steps`, or until `stop`, and leave a checkpoint of the end.

    The host looks at a step's metrics only after the next one is dispatched, so the device never waits for it. The
    step itself runs under ``jax.transfer_guard("disallow")``.

    Args:
        state: the fresh state; replaced by the newest checkpoint when `run` is resumed.
        train_step: from `make_train_step`; compiled at its first call.
        batches: yields dicts of equally long numpy arrays, with ``example_ids`` among them.
        tick: called once per step on every process; True asks to save and leave (see
            `jaxcore.distributed.preemption`).
        stop: asked before every step with the number of steps done, alike on every process; True ends training there
            (see `jaxcore.training.model_selection`), and again when the finished run is resumed.
        frozen: entries of `state.params` that no step changes: left out of checkpoints, and on resumption taken from
            `state` as given, which must be the same then: nothing compares it. So a checkpoint of adapters is as large
            as they are, not as the model.

    Raises:
        Preempted: after a notice, once the checkpoint is committed.
        NonFiniteLoss: with the step, the batch ids and where the last good state was saved.
    """
    checkpoints = Checkpoints(run.checkpoints, keep_latest=loop.keep_checkpoints)
    if run.resumed:
        state = _resume(checkpoints, state, batches, frozen)
    start = int(state.step)
    writer = MetricsWriter(run.path, start_step=start) if jax.process_index() == 0 else None
    try:
        with progress_bar(title, num_steps, start_step=start) as advance:
            report = _Reporter(run, writer, advance, loop.log_every)
            for step in itertools.takewhile(lambda step: not stop(step), range(start, num_steps)):
                batch = next(batches)
                global_batch = shard_local_batch(mesh, _on_device_part(batch))
                with _compiling(step == start), jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, global_batch)
                report.look_at_previous_then_keep(step, metrics, batch, state)
                done = step + 1
                if loop.checkpoint_every and done % loop.checkpoint_every == 0 and done < num_steps:
                    report.look_at_kept(state)  # never commit a state whose step has not been looked at
                    checkpoints.save(_without(state, frozen), _meta(batches, mesh), step=done)
                if tick(done) and done < num_steps:
                    report.look_at_kept(state)
                    checkpoints.save(_without(state, frozen), _meta(batches, mesh), step=done)
                    checkpoints.wait()
                    raise Preempted(f"stopped on notice after step {done}; the checkpoint is committed")
            report.look_at_kept(state)
            checkpoints.save(_without(state, frozen), _meta(batches, mesh), step=int(state.step))
    finally:
        with current_ticker().phase("save", LONG_PHASE_SECONDS):
            checkpoints.close()
        if writer is not None:
            writer.close()
    return state


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _without(state: TrainState, frozen: tuple[str, ...]) -> TrainState:
    """The state that checkpoints hold."""
    if not frozen:
        return state
    kept = {name: value for name, value in state.params.items() if name not in frozen}
    return dataclasses.replace(state, params=kept)


def _resume(checkpoints: Checkpoints, state: TrainState, batches: Batches, frozen: tuple[str, ...]) -> TrainState:
    """The newest readable checkpoint, with the data where it stood; the fresh state when there is none."""
    with current_ticker().phase("restore", LONG_PHASE_SECONDS):
        restored = checkpoints.restore_latest(_abstract(_without(state, frozen)))
    if restored is None:
        return state
    logger.info("resuming after step %d", restored.step)
    batches.set_state(restored.meta["data"])
    if not frozen:
        return restored.state
    given = {name: state.params[name] for name in frozen}
    return dataclasses.replace(restored.state, params={**restored.state.params, **given})


def _meta(batches: Batches, mesh: Mesh) -> dict[str, Any]:
    """What a checkpoint says of itself: where the data stood, and for a reader, what wrote it."""
    return {"data": batches.get_state(), "mesh": dict(mesh.shape), "versions": package_versions()}


LONG_PHASE_SECONDS = 3600
"""Limit of what happens once and may take long (restore, compile) before the watchdog calls it stuck."""


def _compiling(first: bool) -> contextlib.AbstractContextManager:
    return current_ticker().phase("compile", LONG_PHASE_SECONDS) if first else contextlib.nullcontext()


def _on_device_part(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the step computes with: ids of examples stay on the host, for error messages."""
    return {name: value for name, value in batch.items() if name != "example_ids"}


class _Reporter:
    """Looks at each step's metrics one step late, logs them, and stops the run when they are not finite."""

    def __init__(self, run: RunDirectory, writer: MetricsWriter | None, advance: Any, log_every: int) -> None:
        self._run, self._writer, self._advance, self._log_every = run, writer, advance, log_every
        self._kept: tuple[int, dict[str, jax.Array], Mapping[str, np.ndarray]] | None = None
        self._clock = time.perf_counter()

    def look_at_previous_then_keep(
        self, step: int, metrics: dict[str, jax.Array], batch: Mapping[str, np.ndarray], state: TrainState
    ) -> None:
        self.look_at_kept(state)
        self._kept = (step, metrics, batch)

    def look_at_kept(self, state: TrainState) -> None:
        if self._kept is None:
            return
        step, metrics, batch = self._kept
        self._kept = None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            self._stop(step, values, batch, state)
        now = time.perf_counter()
        rows = len(next(iter(batch.values()))) * jax.process_count()
        rate, self._clock = rows / max(now - self._clock, 1e-9), now
        self._advance(step + 1, values["loss"], rate)
        if self._writer is not None and (step + 1) % self._log_every == 0:
            self._writer.write(step, {**values, "examples_per_second": round(rate, 1)})

    def _stop(self, step: int, values: dict[str, float], batch: Mapping[str, np.ndarray], state: TrainState) -> None:
        """Save what is needed to look into it. The state is the last good one: bad steps change nothing."""
        directory = self._run.path / "nonfinite"
        directory.mkdir(exist_ok=True)
        save_snapshot(directory / "state", state)
        ids = np.asarray(batch.get("example_ids", ())).tolist()
        write_json(
            directory / f"batch_of_process_{jax.process_index()}.json",
            {"step": step, "metrics": {k: repr(v) for k, v in values.items()}, "example_ids": ids},
        )
        shown = json.dumps(ids[:8])[:-1] + (", ...]" if len(ids) > 8 else "]")
        raise NonFiniteLoss(
            f"loss or gradient is not finite at step {step} (loss {values['loss']}, gradient norm "
            f"{values['gradient_norm']}), batch ids {shown}; the last good state and all ids are in {directory}"
        )
