"""The disagreement study end to end on the smoke preset; that its claims can fail; what it refuses."""

import contextlib
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
from jaxcore.__main__ import main as attribute
from jaxcore.attribution.scores import predicted_classes, probability
from jaxcore.data.classification_task import open_classification_task, task_shape
from jaxcore.evaluation import RunValues, judge
from jaxcore.training import Preempted, classifier_training, open_run_directory

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


# ---- training --------------------------------------------------------------------------------------------


def test_presets_train_as_the_paper_did():
    """Task, model: batch size, learning rate; song_of_disagreement.md, architecture and hyperparameters."""
    gpu = song.PRESETS["gpu"]
    expected = {
        "sst2": (64, 64, 1e-5), "imdb": (64, 64, 1e-5), "mnli": (512, 32, 2e-5), "snli": (64, 64, 2e-5),
        "qqp": (1024, 64, 2e-5),
    }  # fmt: skip
    assert set(gpu.tasks) == set(expected)
    for task, (recurrent_batch, transformer_batch, rate) in expected.items():
        recurrent, transformer = (song.training_of(gpu, task, name) for name in ("bilstm", "transformer"))
        assert (recurrent.batch_size, recurrent.optimizer.learning_rate) == (recurrent_batch, 1e-3)
        assert (transformer.batch_size, transformer.optimizer.learning_rate) == (transformer_batch, rate)
        selection = "auc" if task in ("sst2", "imdb") else "accuracy"
        assert (recurrent.optimizer.name, recurrent.selection) == ("amsgrad", selection)
        assert (transformer.optimizer.name, transformer.selection) == ("adamw", "accuracy")
    for preset in (gpu, song.PRESETS["pod"]):
        for training in (preset.bilstm_training, preset.transformer_training):
            assert (training.num_epochs, training.patience) == (40, 5)
        assert preset.pretrained and preset.word_vectors
        assert (preset.explanation.num_instances, preset.explanation.lime_samples) == (500, 1000)


def test_an_epoch_that_is_no_better_ends_training_and_auc_decides(tmp_path):
    """With a learning rate of nothing every epoch is as good as the first: of six, two are made."""
    training = dataclasses.replace(
        SMOKE.bilstm_training, num_epochs=6, task_learning_rates=(("sentiment", 1e-12),), selection="auc"
    )
    config = dataclasses.replace(SMOKE, bilstm_training=training)
    steps = song.make_steps(config, "sentiment", "bilstm")
    task = open_classification_task("sentiment", config.data, seed=0)
    per_epoch = len(task.splits["train"]) // 64
    with contextlib.closing(open_run_directory(tmp_path / "run", config, resume=False)) as directory:
        state, num_steps = song.train_model(config, task, steps, None, directory, lambda step: False)
    assert num_steps == 2 * per_epoch and int(state.step) == per_epoch
    logits, labels = song.logits_of(steps, state.params, task, "dev"), task.splits["dev"].labels
    lead = logits[:, 1] - logits[:, 0]
    above = lead[labels == 1][:, None] > lead[labels == 0]
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best["value"] == pytest.approx(above.mean(), abs=1e-3)
    assert best["value"] != pytest.approx(classifier_training.accuracy(logits, labels), abs=1e-3)


def test_a_task_has_its_batch_size_and_learning_rate():
    recurrent = [song.make_steps(SMOKE, task, "bilstm").training for task in ("sentiment", "overlap")]
    assert [training.batch_size for training in recurrent] == [64, 32]
    rates = [song.training_of(SMOKE, task, "transformer").optimizer.learning_rate for task in ("sentiment", "overlap")]
    assert rates == [3e-3, 1e-3]


def test_training_starts_from_what_is_published_for_the_models_that_are_trained(tmp_path):
    task = open_classification_task("sentiment", SMOKE.data, seed=0)
    (tmp_path / "words.vec").write_text(f"1 8\n{task.words[7]} {' '.join(map(str, range(8)))}\n")
    config = dataclasses.replace(SMOKE, word_vectors=str(tmp_path / "words.vec"))
    assert list(song.starts_of(config, [task]).vectors) == [task.words[7]]
    given = dataclasses.replace(config, models=("transformer",), pretrained="/does/not/exist")
    assert not song.starts_of(dataclasses.replace(given, pretrained=""), [task]).vectors
    with pytest.raises(ValueError, match="/does/not/exist"):
        song.starts_of(given, [task])
    assert not song.starts_of(dataclasses.replace(given, models=("bilstm",), word_vectors=""), [task]).vectors


def test_what_training_starts_from_reaches_it(tmp_path):
    """Hardly trained, the table still holds the vector of a word that was given."""
    training = dataclasses.replace(SMOKE.bilstm_training, num_epochs=1, task_learning_rates=(("sentiment", 1e-12),))
    config = dataclasses.replace(SMOKE, bilstm_training=training)
    steps, task = (
        song.make_steps(config, "sentiment", "bilstm"),
        open_classification_task("sentiment", SMOKE.data, seed=0),
    )
    starts = song.Starts(None, {task.words[7]: np.arange(8, dtype=np.float32)})
    params = song.starting_params(steps.model, steps.initialize, starts, words=task.words, seed=0)
    with contextlib.closing(open_run_directory(tmp_path / "run", config, resume=False)) as directory:
        state, _ = song.train_model(config, task, steps, params, directory, lambda step: False)
    np.testing.assert_allclose(state.params["word"][7], np.arange(8), atol=1e-6)


@pytest.mark.parametrize(("name", "ends"), [("bilstm", ([], [])), ("transformer", (["[CLS]"], ["[SEP]"]))])
def test_a_trained_classifier_is_explained_by_the_names_of_its_labels(finished, tmp_path, name, ends):
    model = finished[0] / "cells" / f"sentiment-{name}" / "model"
    settings = json.loads((model / "config.json").read_text())
    assert settings["id2label"] == {"0": "negative", "1": "positive"}
    assert settings["label2id"] == {"negative": 0, "positive": 1}
    text = " ".join(open_classification_task("sentiment", SMOKE.data, seed=0).splits["test"].first[0])
    named = ["--target", "positive", "--versus", "negative", "--output", str(tmp_path / "out.jsonl")]
    assert attribute(["attribute", "--model", str(model), "--text", text, "--method", "attention", *named]) == 0
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert (line["target"], line["versus"]) == ("positive", "negative") and line["predicted"] in settings["label2id"]
    assert line["tokens"] == [*ends[0], *text.split(), *ends[1]]


# ---- instances -------------------------------------------------------------------------------------------


@functools.cache
def pieces(name, task_name="sentiment"):
    """A model with fresh parameters and a few instances of it."""
    task = open_classification_task(task_name, SMOKE.data, seed=0)
    model = song.make_model(SMOKE, name, task_shape(task_name, SMOKE.data))
    rows = task.inputs(task.splits["dev"].take(np.arange(3)), song.layout_of(model))
    params = jax.jit(model.init)(jax.random.key(0), *rows.values())["params"]
    batch = {name: jnp.asarray(value) for name, value in rows.items()} | {"number": jnp.arange(3)}
    given = song.Given(params, {name: value[:2] for name, value in rows.items()}, jnp.uint32(0))
    return model, given, batch


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


def test_methods_share_no_random_numbers(monkeypatch):
    """One random method under two names: what it draws follows the name, the seed and the place in the data."""
    for name in ("here", "there"):
        monkeypatch.setattr(song, "METHODS", {**song.METHODS, name: song.METHODS["grad_shap"]})
    model, given, batch = pieces("bilstm")

    def scores(name, seed=0, first=0):
        explain = jax.jit(functools.partial(song.explain, model, SMOKE.explanation, name))
        rows = {**batch, "number": first + jnp.arange(3)}
        return np.asarray(explain(given._replace(seed=jnp.uint32(seed)), rows)["scores"])

    here = scores("here")
    np.testing.assert_array_equal(here, scores("here"))
    for other in (scores("there"), scores("here", seed=1), scores("here", first=3)):
        assert np.abs(here - other).max() > 1e-4 * here.max()


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
        (["--bilstm-training.patience", "-1"], "patience >= 0: got 2 and -1"),
        (["--bilstm-training.optimizer.schedule", "cosine"], "give the schedule constant"),
        (["--bilstm-training.task-batch-sizes", "nothing", "8"], "unknown task 'nothing'"),
        (["--transformer-training.task-batch-sizes", "sentiment", "0"], "got 0 for sentiment task"),
        (["--word-vectors", "/does/not/exist.vec"], "no file of word vectors at /does/not/exist.vec"),
        (["--pretrained", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = [argument.format(folder=tmp_path) for argument in arguments]
    run_dir = tmp_path / "run"
    assert main(["run", "song_of_disagreement", "--preset", "smoke", "--run-dir", str(run_dir), *given]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown) and message in shown
    assert not run_dir.exists()
