"""Contrastive search end to end on the smoke preset: what is written and shown, the shifted model, what is refused."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import contrastive_search
from experiments.__main__ import main
from jaxcore.__main__ import main as library_main
from jaxcore.data import load_tokenizer
from jaxcore.data.language_model_corpus import open_language_model_corpus
from jaxcore.evaluation.text_diversity import diversity
from jaxcore.generation import ContrastiveSearch, generate
from jaxcore.models import Decoder, load_pretrained
from jaxcore.training import params_digest, read_metrics

SMOKE = contrastive_search.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("contrastive_search") / "run"
    return path, contrastive_search.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "contrastive_search" and written["metrics"] == results.metrics
    for name in ("human", *SMOKE.decoders):
        for metric in ("diversity", "rep_2", "coherence", "mauve", "length"):
            assert np.isfinite(results.metrics[f"{name}/{metric}"])
        assert len(results.samples[f"{name}/coherence"]) == SMOKE.data.num_prompts
    for name in ("isotropy/last", "isotropy/layer_1", "validation/nll", "arms/simctg/isotropy/last"):
        assert np.isfinite(results.metrics[name])
    html = (path / "report.html").read_text()
    for shown in ("Continuations", "Isotropy by layer", "shifted", "simctg", "more_diverse_than_greedy"):
        assert shown in html


def test_metrics_are_of_what_was_written(finished):
    metrics, samples = finished[1].metrics, finished[1].samples
    corpus = open_language_model_corpus(SMOKE.data)
    human = [corpus.tokenizer.decode(ids) for ids in corpus.references]
    assert metrics["human/diversity"] == pytest.approx(diversity(human))
    assert metrics["human/mauve"] == pytest.approx(100)
    for name in ("greedy", "contrastive"):
        assert metrics[f"{name}/coherence"] == pytest.approx(np.mean(samples[f"{name}/coherence"]), rel=1e-5)
    assert metrics["greedy/coherence"] > metrics["nucleus/coherence"]
    assert metrics["contrastive/over_greedy"] == metrics["contrastive/diversity"] - metrics["greedy/diversity"]
    assert metrics["shifted/greedy_gap"] == -abs(metrics["shifted/diversity"] - metrics["greedy/diversity"])


def test_training_lowers_the_loss_and_the_judge_is_another_model(finished):
    path = finished[0]
    losses = {
        part: [row["loss"] for row in read_metrics(path / part / "metrics.jsonl")]
        for part in ("", "judge", "arms/simctg")
    }
    assert all(len(rows) == SMOKE.num_steps and rows[-1] < rows[0] for rows in losses.values())
    assert losses[""] != losses["judge"]
    assert losses["arms/simctg"][0] > losses[""][0]  # the same model and batch, the token contrast added


def test_the_trained_model_is_one_that_jaxcore_generate_takes(finished, capsys):
    """Of the run, of its judge and of the arms; with the run's own tokenizer."""
    path, results = finished
    models = [load_pretrained(path / part / "model") for part in ("", "judge", "arms/simctg")]
    digests = [params_digest(params) for _, params in models]
    assert digests[0] == results.params_digest and len(set(digests)) == 3
    given = ["generate", "--model", str(path / "model"), "--prompt", "The value", "--max-new-tokens", "4"]
    assert library_main([*given, "--strategy", "contrastive_search"]) == 0
    assert "The value\nsample 0: 4 tokens" in capsys.readouterr().out
    tokenizer, own = load_tokenizer(path / "model"), open_language_model_corpus(SMOKE.data).tokenizer
    assert tokenizer("The value of an expression")["input_ids"] == own("The value of an expression")["input_ids"]


def test_derived_differences_need_their_parts():
    metrics = {"human/diversity": 90.0, "contrastive/diversity": 80.0, "greedy/diversity": 10.0}
    assert contrastive_search.derived(metrics) == {"contrastive/human_gap": -10.0, "contrastive/over_greedy": 70.0}
    whole = contrastive_search.derived(
        {**metrics, "low_alpha/diversity": 60.0, "high_k/diversity": 79.0, "shifted/diversity": 13.0}
    )
    assert whole["contrastive/smallest_rise"] == -1 and whole["shifted/greedy_gap"] == -3


def test_shifting_all_states_leaves_probabilities_and_makes_contrastive_search_greedy():
    config = dataclasses.replace(SMOKE.model, vocab_size=50)
    plain, shifted = Decoder(config), contrastive_search.ShiftedDecoder(config)
    params = nn.meta.unbox(jax.jit(plain.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    params = {**jax.tree.map(lambda leaf: 12 * leaf, params), "final_norm": params["final_norm"]}
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 50, (4, 8)), jnp.int32)
    one, other = (model.apply({"params": params}, ids) for model in (plain, shifted))
    np.testing.assert_allclose(other.logits, one.logits, atol=2e-2)
    moved = np.asarray(other.last_hidden_state - one.last_hidden_state)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0, 0], moved.shape), atol=1e-3)
    assert np.linalg.norm(moved[0, 0]) == pytest.approx(10 * np.sqrt(16), rel=1e-3)
    larger = {**params, "final_norm": jax.tree.map(lambda leaf: 3 * leaf + 1, params["final_norm"])}
    one, other = (model.apply({"params": larger}, ids).last_hidden_state for model in (plain, shifted))
    lengths = np.linalg.norm(np.asarray(one), axis=-1)
    assert np.linalg.norm(np.asarray(other - one)[0, 0]) == pytest.approx(10 * np.sqrt(np.mean(lengths**2)), rel=0.1)
    search = ContrastiveSearch(k=5, alpha=0.6)
    greedy = generate(plain, params, ids, max_new_tokens=10).tokens
    diverse = generate(plain, params, ids, strategy=search, max_new_tokens=10).tokens
    assert np.mean(diverse != greedy) > 0.2

    same = generate(shifted, params, ids, strategy=ContrastiveSearch(k=5, alpha=0.0), max_new_tokens=10).tokens
    np.testing.assert_array_equal(same, greedy)


def test_a_large_bias_makes_the_model_anisotropic_and_arms_differ_in_that_alone():
    model = contrastive_search.make_model(SMOKE)
    for arm, change in contrastive_search.ARMS.items():
        config = dataclasses.replace(SMOKE, **change)
        params = nn.meta.unbox(contrastive_search._initialize(config, model)(jax.random.key(0)))
        bias = np.asarray(params["final_norm"]["bias"])
        assert (np.std(bias) > 0.5) == arm.startswith("anisotropic")
        assert (config.objective.margin_weight == 1) == arm.endswith("simctg")


@pytest.mark.parametrize("preset", contrastive_search.PRESETS)
def test_presets_keep_the_decoders_that_the_claims_need(preset):
    config = contrastive_search.PRESETS[preset]
    assert {"greedy", "nucleus", "contrastive", "low_alpha", "high_k", "shifted"} <= set(config.decoders)
    alone = contrastive_search.CLAIMS.variants["anisotropic_simctg"](config)
    assert alone.judge == "" and alone.compared == () and alone.objective.margin_weight == 1


def test_isotropy_of_another_language_needs_its_file(tmp_path):
    config = dataclasses.replace(SMOKE, languages=(f"de=model={tmp_path / 'nothing.txt'}",))
    with pytest.raises(ValueError, match="for the language de"):
        contrastive_search.language_isotropy(config, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "batch_size and num_samples"),
        (["--compared", "nothing"], "unknown arms"),
        (["--decoders", "nothing"], "decoders must be some of"),
        (["--num-steps", "0"], "give --pretrained"),
        (["--pretrained", "x"], "give --data.tokenizer"),
        (["--alpha", "1.5"], "alpha must be in [0, 1]"),
        (["--data.new-tokens", "60"], "the model reads 24"),
        (["--languages", "de"], "NAME=MODEL=FILE"),
        (["--data.path", "/does/not/exist"], "/does/not/exist"),
        (["--mesh.data", "3"], "needs 3 devices"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = ["run", "contrastive_search", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
