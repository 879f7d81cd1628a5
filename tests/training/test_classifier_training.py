"""Classifiers by epochs: which epoch is kept, when training ends, and settings of single tasks."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.data.row_batches import RowSampler, row_batches
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.training import LoopConfig, OptimizerConfig, abstract_state, create_state, open_run_directory
from jaxcore.training.classifier_training import (
    ClassifierTrainingConfig,
    accuracy,
    area_under_roc,
    fit_best_epoch,
)

CONFIG = ClassifierTrainingConfig(num_epochs=6, batch_size=4)
LABELS = np.array([0, 1, 1, 0])
CERTAIN = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
# Dev logits after each epoch: accuracies .75, 1, .5, 1, .5, 1.
EPOCHS = [np.where([[row < right] for row in range(4)], CERTAIN, CERTAIN[:, ::-1]) for right in (3, 4, 2, 4, 2, 4)]


@jax.jit
def count_up(state, batch):
    metrics = {"loss": jnp.float32(0), "gradient_norm": jnp.float32(0), "finite": jnp.bool_(True)}
    return state.replace(step=state.step + 1, params={"w": state.params["w"] + 1}), metrics


def train(path, **changes):
    """Nine texts in batches of four: an epoch of two steps, each of which adds 1 to w."""
    training = dataclasses.replace(CONFIG, **changes)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    initialize, optimizer = lambda key: {"w": jnp.zeros(())}, optax.sgd(1.0)
    with contextlib.closing(open_run_directory(path, CONFIG, resume=False)) as run:
        return fit_best_epoch(
            create_state(initialize, optimizer, mesh, seed=0),
            count_up,
            lambda num_steps: row_batches(
                RowSampler({"x": np.zeros((9, 1), np.float32)}, batch_size=4, seed=0),
                num_steps=num_steps, process_index=0, process_count=1,
            ),
            training=training,
            num_texts=9,
            dev_logits=lambda params: EPOCHS[int(params["w"]) // 2 - 1],
            dev_labels=LABELS,
            abstract=abstract_state(initialize, optimizer, mesh),
            mesh=mesh,
            run=run,
            loop=LoopConfig(checkpoint_every=0),
            title="test",
        )  # fmt: skip


@pytest.mark.parametrize(("patience", "updates"), [(0, 12), (1, 6), (2, 8), (9, 12)])
def test_the_first_of_the_best_epochs_is_kept_and_patience_ends_training(tmp_path, patience, updates):
    state, made = train(tmp_path / "run", patience=patience)
    assert (int(state.step), int(state.params["w"]), made) == (4, 4, updates)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 2)), rng.integers(2, size=30)
    lead = logits[:, 1] - logits[:, 0]
    expected = np.mean(lead[labels == 1][:, None] > lead[labels == 0])
    assert area_under_roc(logits, labels) == pytest.approx(expected)
    assert accuracy(logits, labels) == np.mean((lead > 0) == labels)
    with pytest.raises(ValueError, match="of two classes: got logits of 3"):
        area_under_roc(np.zeros((4, 3)), LABELS)


def test_tasks_have_settings_of_their_own():
    config = dataclasses.replace(CONFIG, task_batch_sizes=(("a", 8),), task_learning_rates=(("b", 0.5),))
    of = {task: config.of_task(task) for task in "abc"}
    assert [of[task].batch_size for task in "abc"] == [8, 4, 4]
    assert [of[task].optimizer.learning_rate for task in "abc"] == [3e-3, 0.5, 3e-3]
    assert config.named_tasks == {"a", "b"} and not of["a"].named_tasks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be >= 1"),
        ({"patience": -1}, "patience >= 0: got 6 and -1"),
        ({"batch_size": 0}, "got 0 for any task"),
        ({"task_batch_sizes": (("a", 0),)}, "got 0 for a task"),
        ({"task_learning_rates": (("a", 0.0),)}, r"got 0\.0 for a task"),
        ({"optimizer": OptimizerConfig()}, "give the schedule constant"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
