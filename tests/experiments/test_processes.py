"""Real processes: two train as one, kill -9 and SIGTERM lose nothing, and the exit codes say what happened."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxcore.training import read_metrics

REPOSITORY = pathlib.Path(__file__).parents[2]
FIELDS = [
    "--preset", "smoke", "--num-steps", "24", "--loop.checkpoint-every", "4", "--evaluation.explained", "8",
    "--data.world.num-test-authors", "20", "--data.world.num-training-authors", "16", "--evaluation.draws", "4",
    "--evaluation.pairs", "60", "--evaluation.batch-size", "64", "--evaluation.clustered-authors", "4",
]  # fmt: skip


def launch(run_dir, *extra, environment=None):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device per process, quickly compiled
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", "star", "--run-dir", str(run_dir), *FIELDS, *extra],
        cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code=0):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors[-2000:]
    return output


def pair(run_dir, *extra):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rank = lambda i: {  # noqa: E731
        "JAXCORE_COORDINATOR": address, "JAXCORE_NUM_PROCESSES": "2", "JAXCORE_PROCESS_ID": str(i),
    }  # fmt: skip
    return [launch(run_dir, *extra, environment=rank(i)) for i in range(2)]


def wait_for_rows(run_dir, process, count):
    """Until the run has logged `count` steps (or ended)."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(read_metrics(run_dir / "metrics.jsonl")) >= count:
            return
        time.sleep(0.01)  # polling a child process


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one") / "run"
    finish(launch(run_dir))
    return run_dir, json.loads((run_dir / "results.json").read_text())


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_train_as_one(uninterrupted, tmp_path):
    whole, results = uninterrupted
    processes = pair(tmp_path / "run")
    outputs = [finish(process) for process in processes]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), rtol=1e-5)
    # The collectives library announces its connections on its own; the project speaks on the first process only.
    spoken = ["\n".join(x for x in output.splitlines() if not x.startswith("[Gloo]")) for output in outputs]
    assert "parameters" in spoken[0] and not spoken[1]
    both = json.loads((tmp_path / "run" / "results.json").read_text())
    accuracy = "accuracy/n20_s8"
    assert both["metrics"][accuracy] == pytest.approx(results["metrics"][accuracy], abs=0.05)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_identical(uninterrupted, tmp_path):
    _, results = uninterrupted
    moments, run_dir = random.Random(1), tmp_path / "run"
    for _ in range(5):
        process = launch(run_dir, "--resume")
        wait_for_rows(run_dir, process, min(len(read_metrics(run_dir / "metrics.jsonl")), 20) + moments.randint(1, 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(launch(run_dir, "--resume"))
    resumed = json.loads((run_dir / "results.json").read_text())
    assert resumed["params_digest"] == results["params_digest"]
    assert resumed["metrics"] == results["metrics"]


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_with_75_at_one_step(tmp_path):
    run_dir = tmp_path / "run"
    first, second = pair(run_dir, "--num-steps", "4000")
    wait_for_rows(run_dir, first, 6)
    second.send_signal(signal.SIGTERM)
    messages = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (75, 75), messages
    steps = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
    assert f"after step {steps[-1]};" in messages[0]
    assert len(read_metrics(run_dir / "metrics.jsonl")) == steps[-1]
