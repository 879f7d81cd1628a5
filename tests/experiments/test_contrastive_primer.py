"""The primer end to end on the smoke preset, what its estimators estimate, and what it refuses."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import contrastive_primer as primer
from experiments.__main__ import main
from jaxcore.training import Preempted

SMOKE = primer.PRESETS["smoke"]
FAMILIES_ONLY = dataclasses.replace(SMOKE, parts=("families",), families=())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("primer") / "run"
    return path, primer.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says_of_every_part(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "contrastive_primer" and re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    for part in ("estimation/", "matching/", "detection/", "families/"):
        assert any(name.startswith(part) for name in results.metrics), part
    assert all(np.isfinite(value) for value in results.metrics.values())
    html = (path / "report.html").read_text()
    assert "ELECTRA" in html and "simcse" in html


def test_every_claim_finds_what_it_speaks_of(finished):
    """Names only: twenty updates decide nothing."""
    results = finished[1]
    for claim in primer.CLAIMS.claims:
        for side in (claim.value, claim.against):
            if side is not None:
                table = results.samples if claim.paired_samples else results.metrics
                assert side.metric in table, side


def test_ranking_estimates_the_conditional_and_uncorrected_objectives_do_not(tmp_path):
    """E1 in small: 400 updates on one world."""
    estimation = dataclasses.replace(SMOKE.estimation, num_steps=400, batch_size=256)
    config = dataclasses.replace(SMOKE, parts=("estimation",), num_replicates=1, estimation=estimation)
    metrics = primer.run(config, tmp_path / "run").metrics
    kl = {name: metrics[f"estimation/kl/{name}"] for name in primer.ESTIMATORS}
    assert kl["ranking"] < 0.005
    assert kl["ranking_uncorrected"] > 20 * kl["ranking"] and kl["binary_uncorrected"] > 100 * kl["ranking"]
    assert metrics["estimation/kl/ranking_uncorrected_tabular_to_ratio"] < kl["ranking_uncorrected_tabular"] / 5


def test_the_known_conditional_is_one():
    world = primer.make_conditional(SMOKE.estimation, jax.random.key(0))
    np.testing.assert_allclose(np.exp(world.log_truth).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(world.log_noise).sum(), 1, rtol=1e-5)
    assert np.abs(np.asarray(world.labels).mean(0)).max() < 1e-6


def test_a_run_that_was_stopped_resumes_to_the_same_parameters(tmp_path):
    whole = primer.run(FAMILIES_ONLY, tmp_path / "whole")
    with pytest.raises(Preempted):
        primer.run(FAMILIES_ONLY, tmp_path / "cut", tick=lambda step: step == 2)
    again = primer.run(FAMILIES_ONLY, tmp_path / "cut", resume=True)
    assert again.params_digest == whole.params_digest


@pytest.mark.parametrize("objective", ["nt_xent", "sigmoid", "symmetric_info_nce"])
def test_the_step_of_a_family_builds_on_eight_devices(objective):
    config = dataclasses.replace(
        FAMILIES_ONLY, objective=objective, mesh=dataclasses.replace(SMOKE.mesh, data=4, fsdp=2)
    )
    program = primer.build(config)
    _, metrics = jax.eval_shape(program.steps["train"].function, *program.steps["train"].arguments)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "nothing"], "unknown objective 'nothing'"),
        (["--families", "nothing"], "unknown families"),
        (["--num-replicates", "0"], "num_replicates >= 1"),
        (["--micro-batch", "5"], "micro_batch 5 does not divide"),
        (["--data.path", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = ["run", "contrastive_primer", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
