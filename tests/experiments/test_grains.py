"""GrAInS end to end on the smoke preset, the task and the grid by hand, a pretrained model's program, bad input."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from experiments import grains
from experiments.__main__ import main
from jaxcore.models import Decoder, save_pretrained
from jaxcore.training import Preempted, read_metrics

SMOKE = grains.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("grains") / "run"
    return path, grains.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "grains" and written["metrics"] == results.metrics
    assert re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    html = (path / "report.html").read_text()
    for name in ("mean_difference", "tuned_gain", "Integrated gradients of the margin", "lora", "oracle"):
        assert name in html
    losses = [row["loss"] for row in read_metrics(path / "metrics.jsonl")]
    assert len(losses) == SMOKE.language_model.num_steps and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_every_claim_speaks_of_what_is_measured(finished):
    metrics = finished[1].metrics
    for claim in grains.CLAIMS.claims:
        for side in (claim.value, claim.against):
            assert side is None or side.metric in metrics, claim.name
    assert all(np.isfinite(value) for value in metrics.values())


def test_what_holds_of_any_model_holds_of_one_that_is_hardly_trained(finished):
    """Completeness, lengths, identity; baselines of every kind moved the margin."""
    metrics, samples = finished[1].metrics, finished[1].samples
    assert metrics["completeness"] > 0.95
    assert metrics["length_kept"] > 1 - 1e-5 and metrics["identity"] == 1
    methods = ("grains_mean", "grains_pca", "caa", "icv", "iti", "random_tokens", "mean_difference", "without_norm")
    assert all(abs(metrics[f"gain/{name}"]) > 1e-6 for name in methods)
    assert len({round(metrics[f"gain/{name}"], 7) for name in methods}) == len(methods)
    draws = samples["gain/random_tokens"]
    assert len(draws) == SMOKE.num_random and np.mean(draws) == pytest.approx(metrics["gain/random_tokens"], abs=1e-6)


def test_the_method_is_tuned_on_validation_and_judged_on_test(finished):
    metrics = finished[1].metrics
    assert {"tuned_gain/grains_mean", "tuned_gain/lora", "tuned_control/iti"} <= set(metrics)
    cell = grains.Cell("a", "0", 0.5, 2).judged({"margin": 2.0, "control": 0.9}, {"margin": 0.5})
    assert (cell.gain, cell.control) == (1.5, 0.9)


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_to_the_same_parameters(finished, tmp_path):
    with pytest.raises(Preempted):
        grains.run(SMOKE, tmp_path / "cut", tick=lambda step: step == 7)
    again = grains.run(SMOKE, tmp_path / "cut", resume=True)
    assert again.params_digest == finished[1].params_digest and again.metrics == finished[1].metrics


@pytest.fixture(scope="module")
def pairs_config(tmp_path_factory):
    """A random tiny model with a tokenizer, and pairs of a file, in the place of the trained one and its language."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("pretrained")
    words = ["<end>", *(f"w{number}" for number in range(47))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(str(folder))
    model = Decoder(dataclasses.replace(grains.TOY, hidden_size=16, num_heads=2, num_key_value_heads=2))
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    save_pretrained(folder, model, params)
    texts = rng.choice(words[1:], size=(30, 6))
    pairs = [{"prompt": " ".join(row[:4]), "chosen": row[4], "rejected": f"{row[5]} w0"} for row in texts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = grains.PreferenceDataConfig(str(folder / "pairs.jsonl"), 8, 6, 0, prompt_length=6, response_length=2)
    return dataclasses.replace(SMOKE, pretrained=str(folder), data=data)


def test_a_pretrained_models_steps_have_its_sizes(pairs_config):
    program = grains.build(pairs_config)
    state = program.steps["train"].arguments[0]
    assert set(state.params) == {"base", "adapters"}
    assert state.params["base"]["embeddings"]["word"].shape == (48, 16)
    for step in program.steps.values():
        jax.eval_shape(step.function, *step.arguments)


@pytest.mark.parametrize("preset", ("smoke", "cpu"))
def test_steps_of_the_generated_language_trace(preset):
    program = grains.build(grains.PRESETS[preset])
    for name in ("train", "attribute", "states", "effects", "evaluate"):
        jax.eval_shape(program.steps[name].function, *program.steps[name].arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "k, num_steps, num_random and batch_size must be at least 1"),
        (["--pretrained", "x"], "--pretrained and --data.path go together"),
        (["--strength", "-1"], "strengths must not be negative"),
        (["--layers", "2"], "layer 2 is outside the model"),
        (["--lora-training.batch-size", "11"], "exceeds the 10 pairs"),
        (["--mesh.data", "3"], "needs 3 devices"),
        (["--pretrained", "/does/not/exist", "--data.path", "x.jsonl"], "/does/not/exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = ["run", "grains", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
