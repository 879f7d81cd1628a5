"""CAP end to end on the smoke preset; the trap of unsigned attributions and trainable references; bad input."""

import contextlib
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from experiments import cap
from experiments.__main__ import main
from jaxcore.__main__ import main as attribute
from jaxcore.data.confusable_world import CLASS
from jaxcore.data.intent_task import open_intent_task
from jaxcore.data.row_batches import RowSampler
from jaxcore.data.tokenization import train_tokenizer
from jaxcore.evaluation import RunValues, judge
from jaxcore.models import Encoder, save_pretrained
from jaxcore.training import Preempted, open_run_directory, read_metrics

SMOKE = cap.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cap") / "run"
    return path, cap.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "cap" and re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    assert written["metrics"] == results.metrics and all(np.isfinite(v) for v in results.metrics.values())
    for arm in SMOKE.arms:
        for measure in ("accuracy", "attacked", "comprehensiveness", "sufficiency", "homogenisation"):
            assert f"{measure}/{arm}" in results.metrics
    assert len(read_metrics(path / "metrics.jsonl")) == SMOKE.num_steps
    page = (path / "report.html").read_text()
    for text in (
        "homogenisation",
        "typical of this label alone",
        "are inferred",
        "hybrid_mean",
        "priors.keep_probability",
    ):
        assert text in page


def with_priors_of(path):
    return dataclasses.replace(SMOKE, priors=dataclasses.replace(SMOKE.priors, file=str(path / "priors.jsonl")))


def test_priors_are_kept_word_by_word_and_read_back(finished):
    path, _ = finished
    lines = [json.loads(line) for line in (path / "priors.jsonl").read_text().splitlines()]
    assert len(lines) == 48
    for line in lines:
        for name in ("cap", "affinity", "lime", "ig"):
            assert len(line[f"r_{name}"]) == len(line["words"]) == 12
            assert sum(line[f"r_{name}"]) == pytest.approx(1, abs=1e-4)
    task = open_intent_task(SMOKE.data, seed=0)
    rows = task.rows(task.training)
    given = with_priors_of(path)
    read = cap.given_priors(given, task.training, rows["present"])
    made = cap.teacher_priors(SMOKE, task, rows["present"]).by_name
    np.testing.assert_allclose(read["cap"], made["cap"], atol=1e-5)
    assert cap.given_priors(SMOKE, task.training, rows["present"]) == {}
    with pytest.raises(ValueError, match="has no prior for training text 0"):
        cap.given_priors(given, task.test, task.rows(task.test)["present"])


def test_an_interrupted_run_resumes_to_the_same_bits(finished, tmp_path):
    _, results = finished
    seen = []

    def tick(step):
        seen.append(step)
        return seen[-6:] == [1, 2, 3, 4, 5, 6]

    with pytest.raises(Preempted):
        cap.run(SMOKE, tmp_path / "run", tick=tick)
    resumed = cap.run(SMOKE, tmp_path / "run", resume=True)
    assert resumed.params_digest == results.params_digest and resumed.metrics == results.metrics


def test_every_claim_finds_what_it_speaks_of(finished):
    """Names only: twelve updates decide nothing."""
    metrics = {f"{measure}/{arm}": 0.5 for measure in cap.MEASURES for arm in ("cap", *cap._GATE)}
    metrics |= {"ridge/agreement": -1e-3}
    runs = {variant: [RunValues(metrics)] * 3 for variant in cap.CLAIMS.variants}
    assert not any(judge(claim, runs).passed for claim in cap.CLAIMS.claims)
    measured = finished[1].metrics
    for claim in cap.CLAIMS.claims:
        for side in (claim.value, claim.against):
            assert side is None or side.metric in measured


def test_banking_is_asked_of_only_where_files_are_given():
    base = cap.PRESETS["cpu"]
    assert set(cap.CLAIMS.asked_of(base).variants) == {"world"}
    with_files = dataclasses.replace(base, data=dataclasses.replace(base.data, path="somewhere"))
    assert len(cap.CLAIMS.asked_of(with_files).claims) == len(cap.CLAIMS.claims)
    derived = {name: derive(with_files) for name, derive in cap.CLAIMS.variants.items()}
    assert derived["world"].data.path == "" and derived["intents"].data.path == "somewhere"
    assert derived["intents"].rows == 128 and derived["world"].rows == 120


# ---- priors of a classifier ------------------------------------------------------------------------------


def test_the_seed_and_the_place_in_the_data_decide_what_lime_and_shap_draw():
    """Otherwise their spread over seeds would be that of training alone. Integrated gradients draw nothing."""
    settings = dataclasses.replace(SMOKE.priors, lime_samples=8, integration_steps=2)
    config = dataclasses.replace(SMOKE, compared=("ig", "lime", "shap"), priors=settings)
    student = cap.make_student(config)
    params = meta.unbox(student.initialize(jax.random.key(0)))
    task = open_intent_task(config.data, seed=0)
    rows = {name: value[:4] for name, value in task.rows(task.training).items()}
    attribute = jax.jit(lambda explained, rows: cap.attribute_rows(config, student, explained, rows))

    def made(seed, first):
        return attribute(cap.Explained(params, jnp.uint32(seed)), {**rows, "number": first + jnp.arange(4)})

    found, again, seeded, placed = made(0, 0), made(0, 0), made(1, 0), made(0, 4)
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])
        for other in (seeded, placed):
            assert bool(jnp.all(values == other[name])) is (name == "ig"), name


# ---- training on priors ----------------------------------------------------------------------------------

FIVE_SHOT = dataclasses.replace(
    cap.PRESETS["cpu"],
    num_steps=150,
    integration_steps=4,
    path_chunk=4,
    data=dataclasses.replace(cap.PRESETS["cpu"].data, shots=5, test_per_class=40),
)


@pytest.fixture(scope="module")
def five_shot():
    task = open_intent_task(FIVE_SHOT.data, seed=0)
    training = task.rows(task.training)
    return task, training, cap.teacher_priors(FIVE_SHOT, task, training["present"]).by_name


def trained(config, five_shot, prior, *, magnitudes=False):
    """Accuracy, and how often the top attribution is the class word, of a student; without a prior, of f0."""
    task, training, priors = five_shot
    student = cap.make_student(config)
    start = meta.unbox(student.initialize(jax.random.key(0)))
    rows = {name: training[name] for name in cap.TRAINED_ON}
    order = RowSampler(rows, batch_size=config.rows, seed=0).order(config.num_steps)
    params = cap.train_together(config, start, rows, None if prior is None else priors[prior][None], order)
    params = params if prior is None else jax.tree.map(lambda leaf: leaf[0], params)
    test = task.rows(task.test)

    @jax.jit
    def measured(params):
        predicted = jnp.argmax(student.classify(params, student.embed(params, test), test), axis=1)
        words = cap.word_attributions(student, params, test, test["labels"], num_steps=8, chunk_size=8)
        words = jnp.abs(words) if magnitudes else words
        top = jnp.argmax(jnp.where(test["present"], words, -jnp.inf), axis=1)
        found = jnp.take_along_axis(test["roles"] == CLASS, top[:, None], axis=1)
        return jnp.mean(predicted == test["labels"]), jnp.mean(found)

    return [float(value) for value in measured(params)]


def test_signed_attributions_teach_and_the_trap_only_looks_as_if(five_shot):
    """Magnitudes with a trainable reference pass a check of attributions and fail the check of accuracy."""
    plain_accuracy, plain_top = trained(FIVE_SHOT, five_shot, None, magnitudes=True)
    accuracy, _ = trained(FIVE_SHOT, five_shot, "cap")
    trap = dataclasses.replace(FIVE_SHOT, attribution="unsigned", reference="trainable")
    trapped, trapped_top = trained(trap, five_shot, "cap", magnitudes=True)
    assert accuracy > plain_accuracy + 0.3
    assert trapped_top > plain_top + 0.1
    assert trapped < plain_accuracy + 0.2 and trapped < accuracy - 0.2


def test_the_fixed_reference_never_moves_and_the_trainable_one_does(five_shot):
    config = dataclasses.replace(FIVE_SHOT, integration_steps=2, path_chunk=2)
    student = cap.make_student(config)
    start = meta.unbox(student.initialize(jax.random.key(0)))
    rows = {name: five_shot[1][name] for name in cap.TRAINED_ON} | {"prior": jnp.asarray(five_shot[2]["cap"])}
    for reference, moves in (("fixed", False), ("trainable", True)):
        given = dataclasses.replace(config, reference=reference)
        # Away from zero, where a derivative cannot hide.
        params = {**start, "reference": {"bias": jnp.full(32, 0.1)}}
        gradient = jax.jit(jax.grad(cap.make_loss(given, student)))(params, rows, jax.random.key(0))
        assert bool(jnp.any(gradient["reference"]["bias"] != 0)) is moves


def test_students_trained_together_are_those_trained_by_the_loop(finished):
    """The scan over arms from the same start on the same batches, against the run's main student."""
    path, results = finished
    steps = cap.make_steps(SMOKE)
    task = open_intent_task(SMOKE.data, seed=0)
    rows, test = task.rows(task.training), task.rows(task.test)
    prior = cap.given_priors(with_priors_of(path), task.training, rows["present"])["cap"]
    trained_on = {name: rows[name] for name in cap.TRAINED_ON}
    order = RowSampler(trained_on, batch_size=SMOKE.rows, seed=0).order(SMOKE.num_steps)
    start = cap.initial_params(SMOKE, steps, None)
    arms = cap.train_together(cap._trained_config(SMOKE), start, trained_on, np.stack([prior] * 3), order)
    params = jax.tree.map(lambda leaf: np.asarray(leaf[1]), arms)
    predicted = steps.predict(params, {name: test[name] for name in cap.TRAINED_ON})
    accuracy = float(np.mean(np.argmax(predicted, axis=1) == test["labels"]))
    assert accuracy == pytest.approx(results.metrics["accuracy/cap"], abs=0.011)  # one text in 96
    again = jax.tree.map(lambda leaf: np.asarray(leaf[2]), arms)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, again)


def test_the_transformer_student_reads_sub_words_and_keeps_special_tokens():
    """Its attribution is complete: words' attributions sum to the change of the score when all words go."""
    config = dataclasses.replace(
        SMOKE, student="transformer", model=dataclasses.replace(SMOKE.model, num_layers=1, hidden_size=16, num_heads=2)
    )
    student = cap.make_student(config)
    params = meta.unbox(student.initialize(jax.random.key(0)))
    task = open_intent_task(config.data, seed=0)
    rows = {name: value[:4] for name, value in task.rows(task.training, start_token=True).items()}
    rows["word_ids"] = np.where(rows["word_ids"] > 0, rows["word_ids"] - 1, rows["word_ids"])  # a word of two tokens
    larger = lambda path, x: 15 * x if "kernel" in str(path[-1]) else x  # noqa: E731
    params["student"] = jax.tree_util.tree_map_with_path(larger, params["student"])  # fresh weights say nothing

    @jax.jit
    def words_and_change(params):
        labels = rows["labels"]
        words = cap.word_attributions(student, params, rows, labels, num_steps=64, chunk_size=16)
        score = cap.presence_score(student, params, rows, labels)
        ones = jnp.ones((4, rows["present"].shape[1], 1))
        return words, jnp.log(score(ones)) - jnp.log(score(0 * ones))

    words, change = words_and_change(params)
    np.testing.assert_allclose(jnp.sum(words, axis=1), change, rtol=0.02, atol=1e-4)
    assert float(jnp.max(jnp.abs(change))) > 1e-3
    loss = cap.make_loss(config, student)
    batch = {name: rows[name] for name in cap.TRAINED_ON} | {"prior": jnp.full((4, 14), 1 / 14)}
    gradient = jax.jit(jax.grad(loss))(params, batch, jax.random.key(0))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    assert not bool(jnp.any(gradient["reference"]["bias"]))


def test_a_transformer_starts_from_published_weights_and_its_padding_vector(tmp_path):
    config = dataclasses.replace(SMOKE, student="transformer", model=dataclasses.replace(SMOKE.model, num_layers=1))
    sizes = dataclasses.replace(config.model, vocab_size=config.data.ids)
    encoder = Encoder(sizes)
    params = meta.unbox(encoder.init(jax.random.key(7), jnp.zeros((1, 4), jnp.int32))["params"])
    save_pretrained(tmp_path / "encoder", encoder, params)
    given = dataclasses.replace(config, pretrained=str(tmp_path / "encoder"))
    start = cap.initial_params(given, cap.make_steps(given), None)
    found, expected = start["student"]["encoder"], jax.device_get(params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(start["reference"]["bias"], expected["embeddings"]["word"][0])


def test_a_trained_transformer_is_explained_by_the_names_of_the_intents(tmp_path, capsys):
    texts = {
        "card_lost": ["i lost my card", "my card is gone"],
        "exchange_rate": ["what is the rate", "which rate do i get"],
        "top_up": ["how do i top up", "my top up failed"],
    }
    lines = [(text, name) for name in texts for text in texts[name]]
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for file, column in (("seq.in", 0), ("label", 1)):
            (tmp_path / "data" / split / file).write_text("".join(f"{line[column]}\n" for line in lines))
    train_tokenizer([text for text, _ in lines], vocab_size=60).save_pretrained(tmp_path / "tokenizer")
    config = dataclasses.replace(
        SMOKE,
        batch_size=8,
        student="transformer",
        model=dataclasses.replace(
            SMOKE.model, vocab_size=60, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16
        ),
        data=dataclasses.replace(
            SMOKE.data, path=str(tmp_path / "data"), tokenizer=str(tmp_path / "tokenizer"), shots=0, num_classes=3,
            max_words=8, max_tokens=16, min_keyword_count=1,
        ),
    )  # fmt: skip
    params = cap.initial_params(config, cap.make_steps(config), None)
    with contextlib.closing(open_run_directory(tmp_path / "run", config, resume=False)) as directory:
        cap.leave_model(config, open_intent_task(config.data, seed=0), params, directory)
    model = tmp_path / "run" / "model"
    settings = json.loads((model / "config.json").read_text())
    assert settings["id2label"] == {"0": "card lost", "1": "exchange rate", "2": "top up"}
    assert settings["label2id"] == {"card lost": 0, "exchange rate": 1, "top up": 2}
    written = tmp_path / "out.jsonl"
    named = ["--target", "top up", "--versus", "card lost", "--output", str(written)]
    assert attribute(["attribute", "--model", str(model), "--text", "my top up", "--method", "occlusion", *named]) == 0
    line = json.loads(written.read_text())
    assert (line["target"], line["versus"]) == ("top up", "card lost") and line["predicted"] in settings["label2id"]


def test_presets_mark_inferred_constants_and_the_papers_student():
    for preset in ("gpu", "pod"):
        model = cap.PRESETS[preset].model
        assert (model.num_layers, model.hidden_size, model.architecture) == (12, 768, "roberta")
    assert "inferred" in cap.Config.__doc__ and "inferred" in cap.PriorConfig.__doc__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "lucky"], "lucky"),
        (["--num-steps", "0"], "num_steps must be at least 1"),
        (["--compared", "cap"], "must name different priors"),
        (["--priors.keep-probability", "1"], "priors.keep_probability in"),
        (["--priors.file", "/does/not/exist"], "no file of priors at"),
        (["--data.path", "/does/not/exist", "--batch-size", "16"], "no folder at /does/not/exist"),
        (["--data.tokenizer", "x"], "data.tokenizer belongs to texts of files"),
        (["--pretrained", "x"], "belong to --student transformer"),
        (["--batch-size", "800"], "a batch of 800 different texts"),
        (["--data.world.num-groups", "1"], "at least 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "cap", "--preset", "smoke", *arguments]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown) and message in shown, shown
    assert not (tmp_path / "runs").exists(), "nothing may be written"
