"""`compile` for a TPU that is not there: what it prints, and exit code 1 for a program that does not fit."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the tpu extra)")
REPOSITORY = pathlib.Path(__file__).parents[2]
SMALL = ["--model.num-layers", "2", "--data.batches.authors-per-batch", "64", "--micro-batch", "256"]


def compile_star(*fields):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments", "compile", "star", "--topology", "v5e:4x4", "--step", "train", *fields],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_pod_step_compiles_and_its_weights_are_gathered_not_its_activations():
    finished = compile_star(*SMALL)
    assert finished.returncode == 0, finished.stderr
    for part in ("HBM", "of 15.75 GiB", "fits", "FLOPs", "all-gather", "reduce-scatter", "predict", "64 per chip"):
        assert part in finished.stdout
    # Splitting a weight's contraction would all-reduce activations: tens of gigabytes instead of the gradients' one.
    reduced = re.search(r"all-reduce ([\d.]+) (kB|MB|GB)", finished.stdout)
    assert reduced is None or reduced[2] != "GB" or float(reduced[1]) < 1.5


@pytest.mark.slow
def test_what_does_not_fit_ends_with_1_and_says_by_how_much():
    finished = compile_star(*SMALL, "--micro-batch", "0", "--model.remat", "none", "--model.hidden-size", "4096")
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert re.search(r"HBM +[\d.]+ of 15\.75 GiB +DOES NOT FIT", finished.stdout)


def test_an_unknown_step_is_named():
    finished = compile_star("--step", "nope")
    assert finished.returncode == 2
    assert "unknown step 'nope': expected one of train, embed, explain" in finished.stderr
