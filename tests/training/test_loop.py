"""The loop: kills, notices, truncated checkpoints, other meshes, and numbers gone bad."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.training import (
    Checkpoints,
    LoopConfig,
    NonFiniteLoss,
    OptimizerConfig,
    Preempted,
    abstract_state,
    create_state,
    fit,
    make_train_step,
    one_shot_gradients,
    open_run_directory,
    params_digest,
    read_metrics,
    read_snapshot,
)

OPTIMIZER = optax.adamw(1e-2)
NUM_STEPS = 30


def initialize(key):
    return {"w": jax.random.normal(key, (8, 4))}


def loss(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    return jnp.mean(((batch["x"] + noise) @ params["w"]) ** 2) + jnp.mean(batch["x"])


class NumberedBatches:
    """Batch k is a pure function of k; `poison` makes one step's numbers bad."""

    def __init__(self, poison=None):
        self.step, self.poison = 0, poison

    def __iter__(self):
        return self

    def __next__(self):
        x = np.random.default_rng(self.step).standard_normal((16, 8)).astype(np.float32)
        if self.step == self.poison:
            x[5] = np.nan
        ids = 100 * self.step + np.arange(16)
        self.step += 1
        return {"x": x, "example_ids": ids}

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def train(path, *, mesh_config=None, resume=False, poison=None, num_steps=NUM_STEPS, every=5, **options):
    mesh = make_mesh(mesh_config or MeshConfig(data=8))
    state = create_state(initialize, OPTIMIZER, mesh, seed=0)
    step = make_train_step(one_shot_gradients(loss), OPTIMIZER, state, mesh)
    run = open_run_directory(path, OptimizerConfig(), resume=resume)
    try:
        return fit(
            state, step, NumberedBatches(poison), num_steps=num_steps, mesh=mesh, run=run,
            loop=LoopConfig(checkpoint_every=every), **options,
        )  # fmt: skip
    finally:
        run.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, params_digest(train(path).params)


def test_a_run_logs_every_step_once(uninterrupted):
    path, _ = uninterrupted
    assert [row["step"] for row in read_metrics(path / "metrics.jsonl")] == list(range(NUM_STEPS))
    assert Checkpoints(path / "checkpoints").steps()[-1] == NUM_STEPS


def test_a_notice_commits_the_step_and_the_resumed_run_ends_the_same(uninterrupted, tmp_path):
    whole, digest = uninterrupted
    with pytest.raises(Preempted, match="after step 13"):
        train(tmp_path / "run", tick=lambda done: done == 13)
    assert 13 in Checkpoints(tmp_path / "run" / "checkpoints").steps()
    state = train(tmp_path / "run", resume=True)
    assert params_digest(state.params) == digest
    losses = [[row["loss"] for row in read_metrics(p / "metrics.jsonl")] for p in (whole, tmp_path / "run")]
    assert losses[0] == losses[1]


def test_training_that_is_stopped_ends_there_and_is_not_taken_up_again(uninterrupted, tmp_path):
    ended = train(tmp_path / "run", stop=lambda done: done >= 13)
    assert int(ended.step) == 13 and Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 13
    again = train(tmp_path / "run", resume=True, stop=lambda done: done >= 13)
    assert params_digest(again.params) == params_digest(ended.params)
    rows = [read_metrics(path / "metrics.jsonl") for path in (uninterrupted[0], tmp_path / "run")]
    assert [row["loss"] for row in rows[1]] == [row["loss"] for row in rows[0][:13]]


@pytest.mark.parametrize("mesh_config", [MeshConfig(data=1, fsdp=4, tensor=2), MeshConfig(data=1, tensor=8)])
def test_a_checkpoint_restores_on_another_mesh(uninterrupted, tmp_path, mesh_config):
    whole, _ = uninterrupted
    with pytest.raises(Preempted):
        train(tmp_path / "run", tick=lambda done: done == 13)
    train(tmp_path / "run", resume=True, mesh_config=mesh_config)
    losses = [[row["loss"] for row in read_metrics(p / "metrics.jsonl")] for p in (whole, tmp_path / "run")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_checkpoint_of_eight_devices_restores_on_four_and_on_one(uninterrupted):
    whole, digest = uninterrupted
    for count in (4, 1):
        mesh = make_mesh(MeshConfig(), jax.devices()[:count])
        restored = Checkpoints(whole / "checkpoints").restore_latest(abstract_state(initialize, OPTIMIZER, mesh))
        assert restored.step == NUM_STEPS
        assert len(restored.state.params["w"].sharding.device_set) == count
        assert params_digest(restored.state.params) == digest


def damage(step_directory: pathlib.Path):
    """Cut every data file of a checkpoint short, as a full disk would."""
    files = [path for path in (step_directory / "state").rglob("*") if path.is_file() and path.stat().st_size > 50]
    assert files
    for path in files:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)


def test_a_truncated_newest_checkpoint_is_skipped_with_a_warning(uninterrupted, tmp_path, caplog):
    _, digest = uninterrupted
    with pytest.raises(Preempted):
        train(tmp_path / "run", tick=lambda done: done == 13)
    damage(tmp_path / "run" / "checkpoints" / "13")
    state = train(tmp_path / "run", resume=True)
    assert "checkpoint of step 13 cannot be read" in caplog.text
    assert params_digest(state.params) == digest


def test_when_no_checkpoint_can_be_read_the_run_says_so(tmp_path):
    with pytest.raises(Preempted):
        train(tmp_path / "run", every=0, tick=lambda done: done == 3)
    damage(tmp_path / "run" / "checkpoints" / "3")
    with pytest.raises(ValueError, match=r"none of the checkpoints \[3\]"):
        train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoints" / "3").exists()


def test_bad_numbers_stop_the_run_with_the_ids_and_the_last_good_state(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"at step 7 .*batch ids \[700, 701"):
        train(tmp_path / "run", poison=7)
    record = json.loads((tmp_path / "run" / "nonfinite" / "batch_of_process_0.json").read_text())
    assert record["step"] == 7 and record["example_ids"] == list(range(700, 716))
    mesh = make_mesh(MeshConfig(data=8))
    saved = read_snapshot(tmp_path / "run" / "nonfinite" / "state", abstract_state(initialize, OPTIMIZER, mesh))
    good = train(tmp_path / "good", num_steps=7)
    assert params_digest(saved.params) == params_digest(good.params)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [5]


def test_only_the_newest_checkpoints_are_kept(uninterrupted):
    whole, _ = uninterrupted
    assert Checkpoints(whole / "checkpoints").steps() == [20, 25, 30]


REPOSITORY = pathlib.Path(__file__).parents[2]
CHILD = """
import sys, time
sys.path[:0] = [sys.argv[2]]
import test_loop
slow = test_loop.NumberedBatches.__next__
def paced(self):
    time.sleep(0.05)
    return slow(self)
test_loop.NumberedBatches.__next__ = paced
state = test_loop.train(sys.argv[1], resume=True)
print(test_loop.params_digest(state.params))
"""


def start_child(path):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(pathlib.Path(__file__).parent)],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_uninterrupted(uninterrupted, tmp_path):
    """kill -9 three times while it trains and saves; the parameters are bit-identical in the end."""
    _, digest = uninterrupted
    moments, path = random.Random(0), tmp_path / "run"
    for _ in range(3):
        before = len(read_metrics(path / "metrics.jsonl"))
        child = start_child(path)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            if len(read_metrics(path / "metrics.jsonl")) > max(before - 6, 0) + moments.randint(1, 6):
                break
            time.sleep(0.02)  # polling a child process, not waiting for luck
        child.send_signal(signal.SIGKILL)
        child.wait()
    child = start_child(path)
    output, _ = child.communicate(timeout=120)
    assert output.strip() == digest
    assert [row["step"] for row in read_metrics(path / "metrics.jsonl")] == list(range(NUM_STEPS))
