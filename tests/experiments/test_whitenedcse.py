"""WhitenedCSE end to end on the smoke preset, its loss by hand, and what it refuses."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import whitenedcse
from experiments.__main__ import main
from jaxcore.distributed import MeshConfig
from jaxcore.losses import group_whiten, unit_vectors
from jaxcore.models import EncoderConfig
from jaxcore.training import Preempted, read_metrics

SMOKE = whitenedcse.PRESETS["smoke"]
ALONE = dataclasses.replace(SMOKE, compared=())
TINY = EncoderConfig(
    num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=40, attention_dropout=0.0,
    pooler="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("whitenedcse") / "run"
    return path, whitenedcse.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "whitenedcse" and written["metrics"] == results.metrics
    assert re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    for name in ("dev", "test", "uniformity", "untrained/dev", "arms/simcse/dev", "geometry/raw"):
        assert np.isfinite(results.metrics[name])
    html = (path / "report.html").read_text()
    assert "simcse" in html and "Whitening without training" in html


def test_training_changes_what_is_measured_and_lowers_the_loss(finished):
    path, results = finished
    assert results.metrics["uniformity"] != results.metrics["untrained/uniformity"]
    losses = [row["loss"] for row in read_metrics(path / "metrics.jsonl")]
    assert len(losses) == SMOKE.num_steps and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_whitening_larger_groups_is_ever_more_uniform(finished):
    metrics = finished[1].metrics
    order = ["raw", "centred", "groups_of_1", "groups_of_8", "groups_of_32"]
    values = [metrics[f"geometry/{name}"] for name in order]
    assert values == sorted(values, reverse=True)
    assert metrics["geometry/smallest_drop"] == pytest.approx(min(-np.diff(values)))


def test_the_loss_is_that_of_the_paper_by_hand():
    """Two views without dropout: whiten each in its own shuffle, tanh(z W + b), InfoNCE of view 1 against view 2."""
    config = dataclasses.replace(
        ALONE, num_views=2, batch_size=8, word_vectors=dataclasses.replace(SMOKE.word_vectors, dropout=0.0)
    )
    views = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 32)), jnp.float32)
    params = {"head": {"kernel": jnp.eye(32) * 0.7, "bias": jnp.full(32, 0.1)}}
    key = jax.random.key(4)
    projected = whitenedcse.project(config, params, whitenedcse.distort(config, key, views))
    by_hand = []
    for view, view_key in zip(views, jax.random.split(key, 2), strict=True):
        shuffle = jax.random.permutation(view_key, 32)
        white = group_whiten(view, shuffle, num_groups=8, epsilon=config.epsilon)
        by_hand.append(np.tanh(white * 0.7 + 0.1))
    np.testing.assert_allclose(projected, np.stack(by_hand), atol=1e-5)
    logits = unit_vectors(projected[0]) @ unit_vectors(projected[1]).T / config.temperature
    expected = -np.mean(np.diagonal(jax.nn.log_softmax(logits, axis=1)))
    from jaxcore.losses import multi_positive_info_nce

    assert multi_positive_info_nce(projected, temperature=config.temperature) == pytest.approx(expected, rel=1e-4)


def test_a_run_that_was_stopped_resumes_to_the_same_parameters(tmp_path):
    whole = whitenedcse.run(ALONE, tmp_path / "whole")
    with pytest.raises(Preempted):
        whitenedcse.run(ALONE, tmp_path / "cut", tick=lambda step: step == 7)
    again = whitenedcse.run(ALONE, tmp_path / "cut", resume=True)
    assert again.params_digest == whole.params_digest and again.metrics == whole.metrics


def test_gradient_caching_and_eight_devices_train_the_same(tmp_path):
    """Dropout off, since micro-batches draw their own masks. Losses are compared, not embeddings: without dropout the
    encoder's bias has no gradient (features are centred), so Adam walks it along whatever rounding leaves."""
    still = dataclasses.replace(ALONE, word_vectors=dataclasses.replace(SMOKE.word_vectors, dropout=0.0))
    changes = {"whole": {}, "cached": {"micro_batch": 8}, "spread": {"mesh": MeshConfig(data=4, fsdp=2)}}
    losses = {}
    for name, change in changes.items():
        whitenedcse.run(dataclasses.replace(still, **change), tmp_path / name)
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert len(losses["whole"]) == SMOKE.num_steps and np.ptp(losses["whole"]) > 1e-3
    np.testing.assert_allclose(losses["cached"], losses["whole"], rtol=1e-4)
    np.testing.assert_allclose(losses["spread"], losses["whole"], rtol=1e-4)


def test_a_transformer_trains_on_its_first_token(tmp_path):
    config = dataclasses.replace(ALONE, encoder="transformer", model=TINY, num_groups=4, num_steps=2)
    results = whitenedcse.run(config, tmp_path / "run")
    assert np.isfinite(results.metrics["dev"])


@pytest.mark.parametrize("arm", whitenedcse.ARMS)
def test_every_arm_has_a_step_that_trains(arm):
    config = dataclasses.replace(ALONE, **whitenedcse.ARMS[arm])
    program = whitenedcse.build(config)
    state, metrics = jax.eval_shape(program.steps["train"].function, *program.steps["train"].arguments)
    assert metrics["loss"].shape == () and ("head" in state.params) == (config.head == "tanh")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-groups", "5"], "num_groups 5 does not divide the 32 channels"),
        (["--batch-size", "1"], "batch_size >= 2"),
        (["--micro-batch", "5"], "micro_batch 5 does not divide"),
        (["--compared", "nothing"], "unknown arms"),
        (["--pretrained", "x"], "pretrained belongs to"),
        (["--data.path", "/does/not/exist"], "/does/not/exist"),
        (["--mesh.data", "3"], "needs 3 devices"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = ["run", "whitenedcse", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
