"""Checkpoints: asynchronous, committed atomically, restored exactly and onto any mesh.

Layout: ``checkpoints/STEP/{state, meta}``. `state` is the sharded `TrainState` (orbax, OCDBT), `meta` a JSON with
the data position and what the run was. A step is there as a whole or not at all; one that turns out broken (a disk
that filled, a file cut short) is skipped with a warning in favour of the one before.
"""

import dataclasses
import logging
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcore.training.state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read back: its step, the state with the asked shardings, and its `meta`."""

    step: int
    state: TrainState
    meta: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    """orbax's manager, kept from asking for preemption notices itself.

    It asks the coordination service with the training step as counter, while the run asks with its tick count. The
    service agrees on "the largest counter seen last, plus one": after orbax's smaller number that is a tick which has
    passed already, and the notice is never seen.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run. All processes construct it and make the same calls in the same order."""

    def __init__(self, directory: pathlib.Path, *, keep_latest: int = 3, keep_every: int = 0) -> None:
        """
        Args:
            directory: made when absent; local or a bucket path.
            keep_latest: newest steps kept.
            keep_every: steps divisible by this are kept for good; 0 for none.
        """
        self.directory = pathlib.Path(directory).absolute()
        policies: list[ocp.checkpoint_managers.PreservationPolicy] = [ocp.checkpoint_managers.LatestN(keep_latest)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, meta: dict[str, Any], *, step: int) -> None:
        """Start writing `state`; returns once its buffers are copied and may be donated."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
            force=True,
        )

    def wait(self) -> None:
        """Block until every started write is committed; raises what the writer raised."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract: TrainState) -> Restored | None:
        """The newest checkpoint that can be read, laid out as `abstract` says; None when there is none.

        A broken newest step is logged and removed, so that the resumed run can write it again.

        Args:
            abstract: shapes, dtypes and the shardings wanted *now*; the mesh that wrote may have been another.

        Raises:
            ValueError: there are checkpoints and none can be read.
        """
        broken: list[int] = []
        for step in reversed(self.steps()):
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()),
                )
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                logger.warning(
                    "checkpoint of step %d cannot be read, falling back to the one before: %s",
                    step,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                broken.append(step)
                continue
            self._discard(broken)
            return Restored(step, items["state"], items["meta"])
        if broken:
            raise ValueError(
                f"none of the checkpoints {sorted(broken)} in {self.directory} can be read; "
                "start in a new run directory"
            )
        return None

    def close(self) -> None:
        """Finish pending writes and release the manager's threads."""
        self._manager.close()

    def _discard(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
        self._manager.reload()


def save_snapshot(directory: pathlib.Path, state: TrainState) -> None:
    """Write one state by itself (not part of a run's checkpoints), synchronously; `read_snapshot` reads it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(directory).absolute(), state, force=True)


def read_snapshot(directory: pathlib.Path, abstract: TrainState) -> TrainState:
    """The state that `save_snapshot` wrote, laid out as `abstract` says."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(pathlib.Path(directory).absolute(), abstract)
