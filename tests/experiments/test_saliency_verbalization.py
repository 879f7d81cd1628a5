"""Saliency map verbalization end to end on the smoke preset, its controls, its reader, and the published study."""

import dataclasses
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import saliency_verbalization as verbalization
from experiments.__main__ import main
from jaxcore.data import train_tokenizer
from jaxcore.data.labelled_text_task import open_labelled_text_task
from jaxcore.data.sentiment_world import SentimentWorldConfig
from jaxcore.evaluation import RunValues, judge, judge_single_run, map_rows
from jaxcore.generation import complete
from jaxcore.models import Decoder, DecoderConfig, EncoderConfig, save_pretrained
from jaxcore.models.classifier import load_classifier
from jaxcore.training import Preempted, read_metrics

SMOKE = verbalization.PRESETS["smoke"]
TINY = dataclasses.replace(
    SMOKE,
    num_steps=4,
    batch_size=16,
    evaluation_batch_size=32,
    integration_steps=16,
    data=dataclasses.replace(
        SMOKE.data,
        num_training=80,
        num_test=24,
        vocab_size=256,
        max_length=24,
        world=SentimentWorldConfig(num_polar=10, num_neutral=40, shortest=8, longest=16),
    ),
    loop=dataclasses.replace(SMOKE.loop, checkpoint_every=2),
)
GENERATOR = "generator_of_the_tests:generate"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a generator that quotes each prompt's first word and one word that no text holds."""

    def generate(prompts):
        first = [re.findall(r": (\S+) \(", prompt)[0] for prompt in prompts]
        return [f'It is positive sentiment, Negative too: "{word}" and "zebra" decide.' for word in first]

    module = types.ModuleType("generator_of_the_tests")
    setattr(module, "generate", generate)  # noqa: B010
    sys.modules["generator_of_the_tests"] = module
    path = tmp_path_factory.mktemp("verbalization") / "run"
    yield path, verbalization.run(dataclasses.replace(TINY, generator=GENERATOR), path)
    del sys.modules["generator_of_the_tests"]


@pytest.fixture(scope="module")
def trained():
    """Maps of a fresh classifier on the tiny texts, and the steps that made them."""
    steps, task = verbalization.make_steps(TINY), verbalization.open_task(TINY)
    state = verbalization.initial_state(TINY, steps)
    maps, _ = verbalization.explain_texts(TINY, steps, state.params, task.test, lambda step: False)
    return steps, state, task, maps


# ---- the run ---------------------------------------------------------------------------------------------


def test_the_run_directory_holds_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["metrics"] == results.metrics and written["experiment"] == "saliency_verbalization"
    assert re.fullmatch("[0-9a-f]{64}", results.params_digest)
    assert len(read_metrics(path / "metrics.jsonl")) == TINY.num_steps
    for name in verbalization.REPRESENTATIONS:
        assert {f"coverage/{name}", f"simulation/{name}", f"tokens/{name}"} <= set(results.metrics)
    assert all(np.isfinite(value) for value in results.metrics.values())


def test_the_report_shows_every_representation(finished):
    path, results = finished
    page = (path / "report.html").read_text()
    for text in ("is most important for the prediction", "% of the evidence", "Generator: It is", "random span"):
        assert text in page
    assert f"{results.metrics['coverage/summary']:.3f}" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_a_language_model_writes_in_batches_what_it_writes_alone(tmp_path):
    tokenizer = train_tokenizer(["a good film; a bad one"], vocab_size=300, kind="bpe")
    sizes = {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "num_key_value_heads": 1, "head_size": 8}
    model = DecoderConfig(vocab_size=300, intermediate_size=8, max_positions=64, initializer_range=0.5, **sizes)
    params = jax.jit(Decoder(model).init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    save_pretrained(tmp_path, model, params)
    tokenizer.save_pretrained(tmp_path)
    config = dataclasses.replace(TINY, generator_model=str(tmp_path), generator_tokens=4, generator_batch=2)
    generate = verbalization.load_model_generator(config, verbalization.make_steps(TINY).mesh)
    alone = complete(Decoder(model), params, ["x", "y"], tokenizer=tokenizer, max_new_tokens=4)
    assert generate(["y", "x", "y"]) == [alone[i][0].text for i in (1, 0, 1)]


def test_what_a_generator_writes_is_masked_and_measured(finished):
    path, results = finished
    metrics = results.metrics
    page = (path / "report.html").read_text()
    texts = re.findall(r"Generator: (It is [^<]*) decide", page)
    assert texts and all("{placeholder}" in text for text in texts)
    assert metrics["instructed/citations"] == 2 * min(TINY.data.num_test, metrics["texts_read"])
    assert metrics["instructed/citation_precision"] == 0.5
    at_k = [metrics[f"instructed/coverage_at_k/{k}"] for k in verbalization.RANKS]
    assert at_k == sorted(at_k) and at_k[-1] <= 1


def test_a_resumed_run_ends_like_an_uninterrupted_one_and_says_nothing_of_a_generator_it_lacks(finished, tmp_path):
    _, results = finished
    with pytest.raises(Preempted):
        verbalization.run(TINY, tmp_path / "run", tick=lambda step: step == 3)
    resumed = verbalization.run(TINY, tmp_path / "run", resume=True)
    assert resumed.params_digest == results.params_digest
    kept = {name: value for name, value in results.metrics.items() if not name.startswith("instructed/")}
    assert resumed.metrics == kept and len(kept) < len(results.metrics)
    assert "What a generator would be asked" in (tmp_path / "run" / "report.html").read_text()


def test_a_transformer_is_explained_the_same_way_and_read_back(tmp_path):
    encoder = EncoderConfig(
        num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16, max_positions=32, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    config = dataclasses.replace(TINY, num_steps=2, classifier="transformer", transformer=encoder)
    results = verbalization.run(config, tmp_path / "run")
    assert results.metrics["classifier/completeness_error"] < 1e-3
    assert results.metrics["exact_percentages"] == 1
    model, _, labels = load_classifier(tmp_path / "run" / "model")
    assert labels == ("negative", "positive") and model.config.encoder.hidden_size == 16
    with pytest.raises(ValueError, match="pretrained needs"):
        dataclasses.replace(config, pretrained=str(tmp_path / "run" / "model"))


# ---- maps ------------------------------------------------------------------------------------------------


def test_maps_complete_the_predicted_logit_from_a_text_of_padding(trained):
    """Summed over the words: the logit of the text less that of the same number of padding vectors."""
    steps, state, task, _ = trained
    test = task.test
    output = map_rows(
        steps.explain, state.params, verbalization.explained_rows(test), batch_size=TINY.evaluation_batch_size,
        mesh=steps.mesh,
    )  # fmt: skip
    mask = jnp.asarray(test.attention_mask)
    empty = steps.model.apply({"params": state.params}, jnp.zeros_like(mask), mask)
    predicted = np.argmax(output["logits"], axis=1)
    wanted = (output["logits"] - np.asarray(empty.logits))[np.arange(len(test)), predicted]
    np.testing.assert_allclose(output["scores"].sum(1), wanted, atol=1e-5)
    assert not output["scores"][test.attention_mask == 0].any()


def test_texts_of_no_length_that_is_read_are_refused(trained):
    steps, state, task, _ = trained
    config = dataclasses.replace(TINY, reading=dataclasses.replace(TINY.reading, min_tokens=90))
    with pytest.raises(ValueError, match=r"0 of 24 test texts have 90 to 99 tokens: expected at least two"):
        verbalization.explain_texts(config, steps, state.params, task.test, lambda step: False)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_scripted_verbaliser_has_the_summary_s_length_and_its_share_of_typical_words(trained, share, kept):
    *_, maps = trained
    config = dataclasses.replace(TINY.reading, plausible_share=share)
    summary = maps.mask & (np.cumsum(maps.mask, axis=1) <= 3)
    association = np.zeros((2, TINY.vocab_size))
    association[:, maps.texts.input_ids[0, 5]] = 1.0
    shown = verbalization.plausible_tokens(config, maps, summary, association, np.random.default_rng(0))
    np.testing.assert_array_equal(shown.sum(1), summary.sum(1))
    if kept:
        np.testing.assert_array_equal(shown, summary)
    else:
        assert shown[0, 5]


# ---- texts -----------------------------------------------------------------------------------------------


def test_the_classifier_and_the_reader_learn_from_different_texts():
    task = verbalization.open_task(TINY)
    assert len(task.training) == len(task.reading) == TINY.data.num_training // 2
    assert len(task.test) == TINY.data.num_test
    whole = open_labelled_text_task(TINY.data, seed=TINY.seed).train
    assert [*task.training.tokens, *task.reading.tokens] == whole.tokens
    ends = verbalization.open_task(dataclasses.replace(TINY, classifier="transformer"))
    assert ends.test.tokens[0] == ["[CLS]", *task.test.tokens[0], "[SEP]"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--batch-size", "15"], "each of 2 classes"),
        (["--integration-steps", "0"], "integration_steps"),
        (["--generator", "nothing"], "generator must be module:function"),
        (["--generator", "a:b", "--generator-model", "c"], "give a generator or a generator_model"),
        (["--generator-model", "/does/not/exist"], "/does/not/exist"),
        (["--generator", "json:nothing"], "cannot be imported"),
        (["--study-path", "/does/not/exist"], "no folder and no tar archive at study_path /does/not/exist"),
        (["--data.path", "/does/not/exist.txt"], "no file at /does/not/exist.txt"),
        (["--data.test-path", "x.csv"], "data.test_path needs data.path"),
        (["--data.label-names", "a", "b", "c", "--batch-size", "24"], "the texts have the labels [0, 1]"),
        (["--search.length", "1"], "ones must lie between 1 and the length"),
        (["--classifier", "transformer", "--pretrained", "x"], "pretrained needs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(fields, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    code = main(
        ["run", "saliency_verbalization", "--preset", "smoke", "--num-steps", "0", *fields, "--run-dir", str(run_dir)]
    )
    shown = capsys.readouterr()
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", shown.err), shown.err
    assert message in shown.err


# ---- human study -----------------------------------------------------------------------------------------


def test_the_published_study_says_what_is_claimed_of_it(shared_data):
    metrics = verbalization.analyse_study(str(shared_data / "verbalisation" / "smv_human_study.tar.gz")).metrics
    verdicts = judge_single_run(verbalization.STUDY_CLAIMS, "study", RunValues(metrics))
    assert len(verdicts) == len(verbalization.STUDY_CLAIMS.claims) and all(verdict.passed for verdict in verdicts)


# ---- claims ----------------------------------------------------------------------------------------------


def test_claims_fail_when_nothing_is_better_than_chance():
    metrics = {side.metric: 0.5 for c in verbalization.CLAIMS.claims for side in (c.value, c.against) if side}
    metrics |= {"gain_low/summary_permuted": -0.01, "gain_low/summary_whole_text": -0.01, "coverage/span": 0.6}
    metrics |= {"coverage_ratio/permuted": 1.0, "coverage_at_k/smallest_gap": 0.0}
    runs = {"verbalised": [RunValues(metrics)] * 5}
    held = {claim.name for claim in verbalization.CLAIMS.claims if judge(claim, runs).passed}
    assert held == {"plausible_is_as_simulatable"}
