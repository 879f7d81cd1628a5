"""How a classifier is trained: by epochs, of which the best on held-out texts is kept, until none is better."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxcore.training.loop import Batches, LoopConfig, Tick, fit
from jaxcore.training.model_selection import best_state, keeping_best
from jaxcore.training.optimizers import OptimizerConfig
from jaxcore.training.run_directory import RunDirectory
from jaxcore.training.state import TrainState
from jaxcore.training.step import TrainStep

Selection = Literal["accuracy", "auc"]


@dataclasses.dataclass(frozen=True)
class ClassifierTrainingConfig:
    """Epochs, batches and optimiser, for one task or for several that differ in batch size and learning rate."""

    num_epochs: int = 6
    """At most."""
    patience: int = 0
    """Epochs in a row without a better dev value that end training; 0: all epochs are made."""
    selection: Selection = "accuracy"
    """What epochs are compared by on dev; auc: the area under the ROC curve, of two classes."""
    batch_size: int = 64
    """Texts, over all devices; drawn at random, whatever their length."""
    task_batch_sizes: tuple[tuple[str, int], ...] = ()
    """Task and batch size, for tasks whose batches are of another size."""
    task_learning_rates: tuple[tuple[str, float], ...] = ()
    """Task and learning rate, for tasks that are learnt at another."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_fraction=0)
    )
    """Its learning rate is constant: how many updates there will be, nobody knows."""

    def __post_init__(self) -> None:
        for name, size in (("any", self.batch_size), *self.task_batch_sizes):
            if size < 1:
                raise ValueError(f"batch sizes must be >= 1: got {size} for {name} task")
        for name, rate in self.task_learning_rates:
            if not rate > 0:
                raise ValueError(f"learning rates must be positive: got {rate} for {name} task")
        if self.num_epochs < 1 or self.patience < 0:
            raise ValueError(f"num_epochs must be >= 1 and patience >= 0: got {self.num_epochs} and {self.patience}")
        if self.optimizer.schedule != "constant" or self.optimizer.warmup_fraction:
            raise ValueError(
                "training ends when it gets no better: give the schedule constant and warmup_fraction 0 (warmup_steps "
                f"may be any), got {self.optimizer.schedule} and {self.optimizer.warmup_fraction}"
            )

    @property
    def named_tasks(self) -> frozenset[str]:
        """The tasks that have a batch size or a learning rate of their own."""
        return frozenset(task for task, _ in (*self.task_batch_sizes, *self.task_learning_rates))

    def of_task(self, task: str) -> "ClassifierTrainingConfig":
        """The same with the batch size and the learning rate of a task."""
        rate = dict(self.task_learning_rates).get(task, self.optimizer.learning_rate)
        return dataclasses.replace(
            self,
            batch_size=dict(self.task_batch_sizes).get(task, self.batch_size),
            optimizer=dataclasses.replace(self.optimizer, learning_rate=rate),
            task_batch_sizes=(),
            task_learning_rates=(),
        )


def fit_best_epoch(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int], Batches],
    *,
    training: ClassifierTrainingConfig,
    num_texts: int,
    dev_logits: Callable[[Any], Float[np.ndarray, "texts classes"]],
    dev_labels: Int[np.ndarray, " texts"],
    abstract: TrainState,
    mesh: Mesh,
    run: RunDirectory,
    loop: LoopConfig,
    title: str,
    tick: Tick = lambda step: False,
) -> tuple[TrainState, int]:
    """Train until `training` says it is enough: the state of the epoch that is best on dev, and the updates in all.

    Args:
        state, train_step, mesh, run, loop, title, tick: as of `fit`.
        batches: number of steps -> the batches.
        num_texts: of training; an epoch is as many whole batches of `training.batch_size` as they give, at least one.
        dev_logits: params -> logits of the dev texts; called by every process after every epoch.
        abstract: of the state, with the shardings that the result is to have.

    Raises:
        Preempted, NonFiniteLoss: as `fit`.
    """
    per_epoch = max(num_texts // training.batch_size, 1)
    num_steps = per_epoch * training.num_epochs
    measure, best = SELECTIONS[training.selection], run.path / "best"
    step, stop = keeping_best(
        train_step,
        lambda params: measure(dev_logits(params), dev_labels),
        every=per_epoch,
        directory=best,
        patience=training.patience,
    )
    last = fit(
        state, step, batches(num_steps), num_steps=num_steps, mesh=mesh, run=run, loop=loop, title=title, tick=tick,
        stop=stop,
    )  # fmt: skip
    return best_state(best, abstract) or last, int(last.step)


def accuracy(logits: Float[np.ndarray, "texts classes"], labels: Int[np.ndarray, " texts"]) -> float:
    """Share of texts whose class has the largest logit."""
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def area_under_roc(logits: Float[np.ndarray, "texts 2"], labels: Int[np.ndarray, " texts"]) -> float:
    """Area under the ROC curve of the second class's lead, ``P(lead of a positive > lead of a negative)``.

    Raises:
        ValueError: other than two classes.
    """
    from sklearn.metrics import roc_auc_score

    if logits.shape[-1] != 2:
        raise ValueError(f"the area under the ROC curve is of two classes: got logits of {logits.shape[-1]}")
    return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))


SELECTIONS: Mapping[Selection, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "auc": area_under_roc,
}
