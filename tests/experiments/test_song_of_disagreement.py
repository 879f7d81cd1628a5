"""The disagreement study end to end on the smoke preset; that its claims can fail; what it refuses."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments import song_of_disagreement as song
from experiments.__main__ import main
from jaxcore.attribution.scores import predicted_classes, probability
from jaxcore.data.classification_task import open_classification_task, task_shape
from jaxcore.evaluation import RunValues, judge
from jaxcore.training import Preempted

SMOKE = song.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "run"
    return path, song.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "song_of_disagreement" and re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    assert all(np.isfinite(value) for value in results.metrics.values())
    html = (path / "report.html").read_text()
    for text in ("The paper&#39;s table: bilstm", "attention_flow", "deeplift_as_run", "[CLS]"):
        assert text in html, text
    assert (path / "cells" / "sentiment-bilstm" / "metrics.jsonl").is_file()


def test_every_claim_on_single_texts_finds_what_it_speaks_of(finished):
    results = finished[1]
    for claim in song.CLAIMS.claims:
        for side in (claim.value, claim.against):
            if side is not None and not side.metric.startswith("overlap/"):
                assert side.metric in (results.samples if claim.paired_samples else results.metrics), side


def test_what_must_be_exact_is_exact_before_anything_is_learnt(finished):
    metrics = finished[1].metrics
    for model in SMOKE.models:
        assert metrics[f"sentiment/{model}/linear/largest_difference"] < 1e-5
        assert metrics[f"sentiment/{model}/linear/least_tau"] > 0.999
        assert metrics[f"sentiment/{model}/linear/lime_tau"] > 0.9


def test_the_mean_of_a_pair_is_that_of_its_instances(finished):
    """`attribution_pairs` is the mean of six tau; the run kept both."""
    metrics, samples = finished[1].metrics, finished[1].samples
    for model in SMOKE.models:
        pairs = [metrics[f"sentiment/{model}/tau/{a}/{b}"] for a, b in song.pair_names(song.PILOT_METHODS)]
        assert np.mean(pairs) == pytest.approx(metrics[f"sentiment/{model}/attribution_pairs"], abs=1e-5)
        assert np.mean(samples[f"sentiment/{model}/attribution_pairs"]) == pytest.approx(np.mean(pairs), abs=1e-5)


# ---- instances -------------------------------------------------------------------------------------------


@functools.cache
def pieces(name, task_name="sentiment"):
    """A model with fresh parameters and a few instances of it."""
    task = open_classification_task(task_name, SMOKE.data, seed=0)
    model = song.make_model(SMOKE, name, task_shape(task_name, SMOKE.data))
    rows = task.inputs(task.splits["dev"].take(np.arange(3)), song.layout_of(name))
    params = jax.jit(model.init)(jax.random.key(0), *rows.values())["params"]
    batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"number": jnp.arange(3)}
    given = song.Given(params, {name: value[:2] for name, value in rows.items()}, jnp.uint32(0))
    return model, given, batch


@pytest.mark.parametrize(("name", "task"), [("bilstm", "sentiment"), ("bilstm", "overlap"), ("transformer", "overlap")])
def test_the_embeddings_that_are_explained_are_what_the_model_reads(name, task):
    model, given, batch = pieces(name, task)

    @jax.jit
    def both(given, batch):
        instances = song.instances_of(model, given, batch)
        assert len(instances.embeddings) == (2 if (name, task) == ("bilstm", "overlap") else 1)
        return instances.predict(instances.embeddings), song.apply_model(model, given.params, batch).logits

    logits, expected = both(given, batch)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_the_baseline_is_padding_at_every_position():
    """For the transformer it differs per position; at padded positions input and baseline are the same."""
    for name in ("bilstm", "transformer"):
        model, *arguments = pieces(name)
        embeddings, masks, baselines = jax.jit(lambda *a, model=model: song.instances_of(model, *a)[1:4])(*arguments)
        embedding, baseline = np.asarray(embeddings[0]), np.asarray(baselines[0])
        difference = np.abs(embedding - baseline).max(axis=-1)
        padding = ~np.asarray(masks[0])
        assert padding.any() and np.all(difference[padding] < 1e-6) and np.all(difference[~padding] > 1e-3)
        spread = np.ptp(baseline[0], axis=0).max()
        assert (spread > 1e-3) == (name == "transformer")


def test_the_score_is_the_probability_of_the_predicted_class():
    model, given, batch = pieces("bilstm")
    seen = jax.jit(functools.partial(song.look, model))(given, batch)
    chances = jax.nn.softmax(jax.jit(functools.partial(song.apply_model, model))(given.params, batch).logits)
    np.testing.assert_allclose(seen["score"], chances.max(axis=1), rtol=1e-5)


@pytest.mark.parametrize("method", song.METHOD_NAMES)
def test_every_method_explains_both_texts_of_a_pair(method):
    """Shapes only: what the methods compute is tested where they are defined."""
    model, given, batch = pieces("bilstm", "overlap")
    settings = dataclasses.replace(SMOKE.explanation, methods=song.METHOD_NAMES)
    found = jax.eval_shape(functools.partial(song.explain, model, settings, method), given, batch)
    assert found["scores"].shape == (3, 2 * SMOKE.data.max_length) and found["total"].shape == (3,)


def test_gradient_x_delta_is_what_the_paper_ran_as_deeplift():
    model, given, batch = pieces("bilstm")

    @jax.jit
    def by_hand(given, batch):
        instances = song.instances_of(model, given, batch)
        embeddings, baseline, mask = instances.embeddings[0], instances.baseline[0], instances.masks[0]
        score = probability(instances.predict, predicted_classes(instances.predict, instances.embeddings))
        gradient = jax.grad(lambda x: score((x,)).sum())(embeddings)
        return jnp.abs(jnp.sum(gradient * (embeddings - baseline), axis=-1)) * mask

    found = jax.jit(functools.partial(song.explain, model, SMOKE.explanation, "deeplift_as_run"))(given, batch)
    np.testing.assert_allclose(found["scores"], by_hand(given, batch), rtol=1e-4, atol=1e-7)


def test_tokens_are_reduced_as_the_paper_does():
    attributions = (jnp.array([[[1.0, -3.0], [2.0, 2.0]]]), jnp.array([[[-5.0, 1.0]]]))
    masks = (jnp.array([[True, False]]), jnp.array([[True]]))
    np.testing.assert_array_equal(song.reduce_tokens(attributions, masks, masks_tokens=False), [[2, 0, 4]])
    np.testing.assert_array_equal(song.reduce_tokens(attributions, masks, masks_tokens=True), [[1, 0, 2]])


# ---- agreement -------------------------------------------------------------------------------------------


def scores_of(rng, *, noise, shape=(40, 12)):
    """Four methods that share a signal, and an attention of its own."""
    signal = rng.normal(size=shape)
    scores = {name: np.abs(signal + noise * rng.normal(size=shape)) for name in song.PILOT_METHODS}
    return {name: value.astype(np.float32) for name, value in {**scores, "attention": rng.random(shape)}.items()}


def test_agreement_is_per_instance_and_over_the_tokens_alone():
    rng = np.random.default_rng(0)
    scores, lengths = scores_of(rng, noise=0.5), rng.integers(4, 13, size=40)
    mask = np.arange(12) < lengths[:, None]
    metrics, samples, _ = song.measure_agreement(SMOKE, "bilstm", scores, mask)
    taus = {
        (a, b): [scipy.stats.kendalltau(scores[a][i, : lengths[i]], scores[b][i, : lengths[i]])[0] for i in range(40)]
        for a, b in song.pair_names(song.PILOT_METHODS)
    }
    assert metrics["tau/lime/grad_shap"] == pytest.approx(np.mean(taus["lime", "grad_shap"]), abs=1e-5)
    np.testing.assert_allclose(samples["attribution_pairs"], np.mean(list(taus.values()), axis=0), atol=1e-5)


def test_constant_scores_are_counted_and_never_zero():
    scores = scores_of(np.random.default_rng(0), noise=0.5)
    scores["attention"][:] = 1 / 12
    metrics, samples, _ = song.measure_agreement(SMOKE, "bilstm_uniform", scores, np.ones((40, 12), bool))
    assert metrics["undefined/lime/attention"] == 40
    assert "tau/lime/attention" not in metrics and "attention_pairs" not in metrics
    assert len(samples["attribution_pairs"]) == 40


def test_shared_noise_fails_the_control_and_honest_scores_pass_it():
    """Scores that agree strongly agree with nothing once they are permuted within the instance."""
    scores = scores_of(np.random.default_rng(0), noise=0.1, shape=(200, 12))
    metrics, _, _ = song.measure_agreement(SMOKE, "bilstm", scores, np.ones((200, 12), bool))
    assert abs(metrics["shuffled_tau"]) < 0.05 and metrics["attribution_pairs"] > 0.6


def test_claims_fail_when_scores_are_copied_or_nothing_differs():
    copied = {claim.value.metric: 1.0 for claim in song.CLAIMS.claims} | {
        f"{task}/{model}/{name}": 1.0
        for task in ("sentiment", "overlap")
        for model in ("bilstm", "transformer")
        for name in ("attribution_pairs", "attention_pairs", "shuffled_tau")
    }
    for model in ("bilstm", "transformer"):
        measured = {name: 1.0 for name in song.LIMITS}
        copied |= {f"sentiment/{model}/{name}": value for name, value in song.rooms(measured).items()}
        copied[f"sentiment/{model}/relatives_lead"] = -0.1
    run = RunValues(copied, {"sentiment/bilstm_minus_transformer": [0.0, 0.0, 0.0]})
    passed = {claim.name for claim in song.CLAIMS.claims if judge(claim, {"study": [run] * 3}).passed}
    allowed = ("learns", "learnt", "linear_scores", "relatives_agree")
    assert all(name.endswith(allowed) for name in passed), passed
    assert "transformer_disagrees_more" not in passed and "bilstm_attention_agrees_least" not in passed


def test_a_pair_task_that_was_not_learnt_makes_its_claim_not_applicable(finished):
    metrics = {"overlap/bilstm/attribution_pairs": 0.1, "overlap/bilstm/dev_accuracy": 0.79}
    judged = {}
    for accuracy in (0.79, 0.81):
        metrics["overlap/bilstm/dev_accuracy"] = accuracy
        results = dataclasses.replace(finished[1], metrics={**finished[1].metrics, **metrics})
        judged[accuracy] = {verdict.name for verdict in song.single_run_verdicts(results)}
    assert judged[0.81] - judged[0.79] == {"pairs_agree_less"}


# ---- interruption and bad input --------------------------------------------------------------------------


def test_a_run_that_was_stopped_resumes_to_the_same_numbers(finished, tmp_path):
    """Stopped in the first model's second epoch, whose best epoch may be the first."""
    seen = []

    def tick(step):
        seen.append(step)
        return step == 11

    with pytest.raises(Preempted):
        song.run(SMOKE, tmp_path / "run", tick=tick)
    again = song.run(SMOKE, tmp_path / "run", resume=True)
    assert again.params_digest == finished[1].params_digest
    assert again.metrics == finished[1].metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "nothing"], "unknown task 'nothing'"),
        (["--tasks", "sentiment", "sentiment"], "named once each"),
        (["--explanation.methods", "lime"], "explanation.methods must be lime, integrated_gradients"),
        (["--explanation.num-instances", "1"], "num_instances at least 2"),
        (["--explanation.num-instances", "65"], "sentiment has 64 test texts"),
        (["--explanation.batch-size", "17"], "17"),
        (["--data.max-length", "100"], "the transformer has 64 positions"),
        (["--data.path", "/does/not/exist"], "no file or folder at /does/not/exist"),
        (["--tasks", "snli", "--data.path", "{folder}"], "no file snli"),
        (["--bilstm-training.num-epochs", "0"], "num_epochs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = [argument.format(folder=tmp_path) for argument in arguments]
    run_dir = tmp_path / "run"
    assert main(["run", "song_of_disagreement", "--preset", "smoke", "--run-dir", str(run_dir), *given]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown) and message in shown
    assert not run_dir.exists()
