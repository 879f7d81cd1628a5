"""DebCSE's reconstruction end to end on the smoke preset, its loss by hand, and what it refuses."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments import debcse
from experiments.__main__ import main
from jaxcore.data.latent_pairs import generate_latent_pairs
from jaxcore.data.pair_selection import SelectionConfig
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation import RunValues, judge
from jaxcore.models import EncoderConfig
from jaxcore.training import Preempted

SMOKE = debcse.PRESETS["smoke"]
LATENT = dataclasses.replace(SMOKE, task="latent", arm="inverse", compared=(), num_steps=60, temperature=0.1)
SMALL_BERT = EncoderConfig(
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    intermediate_size=32,
    max_positions=40,
    dropout=0.0,
    attention_dropout=0.0,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("debcse") / "run"
    return path, debcse.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says_under_the_name_of_a_reconstruction(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == results.experiment == "debcse_recon"
    assert written["metrics"] == results.metrics and re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    for arm in ("inverse_both", "inverse"):
        assert f"arms/{arm}/test" in results.metrics
    gain = results.metrics["arms/inverse_both/test"] - results.metrics["arms/inverse/test"]
    assert results.metrics["guard/negatives_gain"] == pytest.approx(gain)
    assert results.metrics["guard/negatives_gain_low"] <= gain <= results.metrics["guard/negatives_gain_high"]
    for folder in ("checkpoints", "teacher", "arms/inverse"):
        assert (path / folder).is_dir()


def test_diagnostics_of_every_rule_are_measured_before_training(finished):
    _, results = finished
    of = lambda arm, name: results.metrics[f"selection/{arm}/{name}"]  # noqa: E731
    assert of("twin", "positive_surface") == 1.0 and of("twin", "fallback_rate") == 1.0
    assert of("inverse", "positive_surface") < of("uniform", "positive_surface") < of("inverted", "positive_surface")
    assert of("twin_inverse", "negative_surface") > of("twin_uniform", "negative_surface")
    assert of("inverse_both", "false_negative_rate") == 0 < of("twin_hardest", "false_negative_rate")
    assert -1 <= results.metrics["teacher/bias/surface"] <= 1 and "teacher/bias/length_gap" in results.metrics
    assert results.metrics["fallback_rate"] == of("inverse_both", "fallback_rate") < 1


def test_the_report_shows_arms_and_selection_and_says_what_it_is(finished):
    path, results = finished
    page = (path / "report.html").read_text()
    for text in ("Selected pairs", "reconstruction", "twin_hardest", "selection.num_bins", "Training loss", "teacher"):
        assert text in page
    assert f"{results.metrics['test']:.1f}" in page
    assert not re.search(r'(src|href)="https?:', page)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(stop, finished, tmp_path):
    """Stopped in the teacher, then in the student (each counts its steps from 1; evaluation ticks from 0)."""
    _, results = finished
    seen = []

    def tick(done):
        seen.append(done)
        return done == 9 and seen.count(9) == stop  # no evaluation of the smoke preset takes nine batches

    with pytest.raises(Preempted):
        debcse.run(SMOKE, tmp_path / "run", tick=tick)
    resumed = debcse.run(SMOKE, tmp_path / "run", resume=True)
    assert resumed.params_digest == results.params_digest and resumed.metrics == results.metrics


def test_all_arms_start_alike_and_seeds_differ(tmp_path):
    still = debcse.run(dataclasses.replace(SMOKE, num_steps=0), tmp_path / "still")
    tests = {still.metrics[f"{name}/test"] for name in ("untrained", "arms/inverse_both", "arms/inverse")}
    assert len(tests) == 1
    other = debcse.run(dataclasses.replace(SMOKE, num_steps=0, seed=1), tmp_path / "other")
    assert other.metrics["test"] != still.metrics["test"]


def test_word_vectors_are_frozen_and_the_map_starts_as_the_identity():
    config = dataclasses.replace(SMOKE, compared=())
    steps = debcse.make_steps(config)
    task = debcse.open_task(config)
    table = task.word_vectors(32)
    state = debcse.initial_state(config, steps, table)
    np.testing.assert_array_equal(state.params["table"], table)
    kernel = jax.tree.leaves(state.params["encoder"])[-1]
    rows = {name: np.asarray(x[:64]).reshape(32, 2, -1) for name, x in task.rows().items()}
    batch = {**rows, "reference": np.zeros((32, 2, 4), np.float32)}
    config_of_two = dataclasses.replace(config, arm="inverse")
    steps = debcse.make_steps(config_of_two)
    kept = np.asarray(kernel).copy()
    after, metrics = steps.train(state, jax.device_put(batch, debcse.batch_sharding(steps.mesh)))
    np.testing.assert_array_equal(after.params["table"], table)
    assert np.abs(np.asarray(jax.tree.leaves(after.params["encoder"])[-1]) - kept).max() > 0
    assert np.isfinite(float(metrics["loss"]))


def dense_loss(vectors, reference, *, temperature, threshold, own_weight, twin_weight, num_negatives):
    """debcse.md M1, M4, M5 in float64, pair by pair."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    vectors, reference = unit(vectors.astype(np.float64)), unit(reference.astype(np.float64))
    count = len(vectors)
    total = 0.0
    for i in range(count):
        for view, weight in ((1, 1.0), (2, twin_weight)):
            logits = {}
            for j in range(count):
                teacher = reference[i, 0] @ reference[j, 1 if view == 1 else 0]
                if i == j or teacher <= threshold:
                    logits[j] = vectors[i, 0] @ vectors[j, view] / temperature
            denominator = sum(math.exp(x) for x in logits.values())
            if view == 1:
                for j in range(count):
                    for m in range(num_negatives):
                        own = own_weight if i == j else 0.0
                        denominator += math.exp(vectors[i, 0] @ vectors[j, 3 + m] / temperature + own)
            total -= weight * (logits[i] - math.log(denominator)) / count
    return total


@pytest.mark.parametrize("micro_batch", [0, 8])
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=4)])
def test_the_loss_is_that_of_the_specification(mesh, micro_batch):
    config = dataclasses.replace(
        LATENT, arm="inverse_both", num_negatives=2, twin_weight=0.7, own_negative_weight=1.5, latent_dropout=0.0,
        batch_size=16, mesh=mesh, micro_batch=micro_batch,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        "observations": rng.normal(size=(16, 5, 32)).astype(np.float32),
        "reference": rng.normal(size=(16, 2, 3)).astype(np.float32),
    }
    expected = dense_loss(
        batch["observations"], batch["reference"], temperature=0.1, threshold=0.3, own_weight=1.5, twin_weight=0.7,
        num_negatives=2,
    )  # fmt: skip
    masked = dense_loss(
        batch["observations"], batch["reference"], temperature=0.1, threshold=2.0, own_weight=1.5, twin_weight=0.7,
        num_negatives=2,
    )  # fmt: skip
    steps = debcse.make_steps(config, positive_threshold=0.3)
    state = debcse.initial_state(config, steps, None)
    _, metrics = steps.train(state, jax.device_put(batch, debcse.batch_sharding(steps.mesh)))
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert abs(masked - expected) > 1e-3, "the mask must matter for this test to mean something"


def test_a_transformer_gives_its_first_token_before_the_head_at_test_and_the_head_in_training():
    data = dataclasses.replace(SMOKE.data, max_length=12)
    config = dataclasses.replace(SMOKE, encoder="transformer", model=SMALL_BERT, data=data)
    steps = debcse.make_steps(config)
    state = debcse.initial_state(config, steps, None)
    rows = {"input_ids": jnp.arange(24).reshape(2, 12) % 9, "attention_mask": jnp.ones((2, 12), jnp.int32)}
    output = steps.model.apply({"params": state.params["encoder"]}, rows["input_ids"], rows["attention_mask"])
    at_test = debcse._encode(steps.model, state.params, rows, None)
    in_training = debcse._encode(steps.model, state.params, rows, jax.random.key(0))
    np.testing.assert_allclose(at_test, output.last_hidden_state[:, 0], atol=1e-6)
    np.testing.assert_allclose(in_training, output.pooled, atol=1e-6)
    assert np.abs(in_training - at_test).max() > 0.1


def test_the_latent_world_is_scored_by_rank_correlation_with_the_truth(tmp_path):
    results = debcse.run(LATENT, tmp_path / "run")
    world = generate_latent_pairs(LATENT.latent, seed=0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosine = (unit(world.test_first) * unit(world.test_second)).sum(1)
    for name, truth in (("score", world.test_meaning), ("bias", world.test_surface)):
        expected = scipy.stats.spearmanr(cosine, truth).statistic
        assert results.metrics[f"untrained/{name}"] == pytest.approx(expected, abs=1e-6)
    assert results.metrics["score"] > results.metrics["untrained/score"] + 0.1
    assert abs(results.metrics["bias"]) < results.metrics["untrained/bias"] - 0.1
    assert results.metrics["fallback_rate"] < 0.05


def test_rounds_and_the_logistic_propensity_run(tmp_path):
    config = dataclasses.replace(
        SMOKE, compared=(), num_steps=2, teacher_steps=2, selection=SelectionConfig(propensity="logistic"), rounds=2
    )
    results = debcse.run(config, tmp_path / "run")
    assert np.isfinite(results.metrics["test"]) and (tmp_path / "run" / "round0").is_dir()


def test_a_supervised_target_weights_candidates_by_labelled_pairs():
    config = dataclasses.replace(
        SMOKE,
        selection=dataclasses.replace(SMOKE.selection, target="supervised"),
        mining=dataclasses.replace(SMOKE.mining, surface="idf_jaccard"),
    )
    task = debcse.open_task(config)
    directions = np.random.default_rng(0).normal(size=(debcse.sentence_vocab_size(config.data), 16))

    def embed(rows):  # bags of random directions
        vectors = (directions[rows["input_ids"]] * rows["attention_mask"][..., None]).sum(1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    material = debcse.mine_material(config, task, embed, debcse.make_mesh(config.mesh))
    selector = material.selector
    grid = np.meshgrid(np.linspace(-0.95, 0.95, 20), np.linspace(0.05, 0.95, 10))
    propensity = np.asarray(selector.positive(*(jnp.asarray(x, jnp.float32) for x in grid), jnp.zeros((10, 20))))
    assert np.ptp(propensity, axis=1).max() > 0 and np.ptp(propensity, axis=0).max() > 0, "both must count"
    np.testing.assert_allclose(material.teacher, embed(task.rows()))
    words, ids = task.word_ids(task.texts), selector.candidates.ids
    same = (words[ids[:, 0]] == words).all(1)
    assert not same.any(), "a duplicate is no candidate"
    missing = dataclasses.replace(task, training_pairs=None) if dataclasses.is_dataclass(task) else None
    if missing is not None:
        with pytest.raises(ValueError, match="needs labelled training pairs"):
            debcse.mine_material(config, missing, embed, debcse.make_mesh(config.mesh))


def test_verify_fails_without_training_and_says_which_claims(tmp_path, capsys):
    file = tmp_path / "verdicts.json"
    assert main(["verify", "debcse", "--seeds", "1", "--num-steps", "0", "--json", str(file)]) == 1
    assert "beats_retrieval" in capsys.readouterr().out
    failed = {verdict["name"] for verdict in json.loads(file.read_text())["verdicts"] if not verdict["passed"]}
    assert failed == {claim.name for claim in debcse.CLAIMS.claims}


def test_claims_hold_for_the_rehearsed_numbers_and_not_for_a_sampler_that_multiplies():
    """Rehearsal: debcse.md 8.A. A sampler that multiplies scores like the inverted arm."""
    rehearsed = {
        "twin": 0.515, "top": 0.60, "uniform": 0.76, "inverse": 0.89, "twin_uniform": 0.575, "twin_inverse": 0.625,
        "twin_hardest": 0.41,
    }  # fmt: skip

    def verdicts(**changes):
        scores = rehearsed | changes
        runs = {
            name: [RunValues({"score": score + seed / 1e4, "unbiasedness": -0.03}) for seed in range(5)]
            for name, score in scores.items()
        }
        return {claim.name for claim in debcse.CLAIMS.claims if judge(claim, runs).passed}

    names = {claim.name for claim in debcse.CLAIMS.claims}
    assert verdicts() == names
    assert verdicts(inverse=0.54) == names - {"beats_retrieval", "propensity_matters"}
    assert verdicts(twin_hardest=0.6) == names - {"gate_matters"}
    assert verdicts(twin_inverse=0.58) == names - {"negatives_matter"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compared", "twin", "best"], "unknown arms ['best']"),
        (["--batch-size", "1"], "batch_size 1 must be at least 2"),
        (["--micro-batch", "7"], "micro_batch 7 divide it"),
        (["--rounds", "0"], "rounds >= 1"),
        (["--temperature", "0"], "temperature > 0"),
        (["--task", "latent", "--rounds", "2"], "rounds belong to --task sentences"),
        (["--pretrained", "bert-base-uncased"], "weights of --encoder transformer"),
        (["--selection.minimum", "0"], "minimum in (0, 1]"),
        (["--selection.positive-threshold", "0.3", "--selection.negative-threshold", "0.4"], "must not exceed"),
        (["--batch-size", "60000"], "do not fill a batch of 60000"),
        (["--batch-size", "36"], "divi"),
        (["--data.path", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "debcse", "--preset", "smoke", *arguments]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", shown.err) and message in shown.err
    assert not (tmp_path / "runs").exists(), "nothing may be written"
