"""Thought Anchors end to end on the smoke preset, resumed after a stop, and what it refuses."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import thought_anchors
from experiments.__main__ import main
from jaxcore.data.published_traces import read_published_traces
from jaxcore.evaluation import Interrupted
from jaxcore.models import Decoder, save_pretrained

SMOKE = thought_anchors.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("thought_anchors") / "run"
    return path, thought_anchors.run(SMOKE, path)


def test_a_run_writes_what_the_protocol_says_and_the_page(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    assert written["experiment"] == "thought_anchors" and written["metrics"] == results.metrics
    assert re.fullmatch("[0-9a-f]{64}", written["params_digest"])
    for name in ("suppression/auc", "distance/auc", "model/computation_accuracy", "reasoner/plan_over_computation"):
        assert math.isfinite(results.metrics[name])
    assert any(name.startswith("rollouts/counterfactual/laplace/") for name in results.metrics)
    report, page = ((path / name).read_text() for name in ("report.html", "reasoning.html"))
    assert 'href="reasoning.html"' in report and "programmatic reasoner" in report
    assert page.count("data-graph=") == SMOKE.rollouts.num_traces and "We are given a =" in page
    traces = thought_anchors.language_traces(SMOKE)[: SMOKE.rollouts.num_traces]
    lines = (path / "rollouts.jsonl").read_text().splitlines()
    assert len(lines) - 1 == sum(len(trace) + 1 for trace in traces)


def test_a_run_stopped_between_batches_of_rollouts_ends_as_one_that_was_not(finished, tmp_path):
    begun = tmp_path / "run" / "rollouts.jsonl"
    with pytest.raises(Interrupted, match="stopped on notice after 8 of"):
        thought_anchors.run(SMOKE, tmp_path / "run", tick=lambda step: begun.exists())
    first = begun.read_bytes()
    again = thought_anchors.run(SMOKE, tmp_path / "run", resume=True)
    assert begun.read_bytes() == (finished[0] / "rollouts.jsonl").read_bytes() and begun.read_bytes().startswith(first)
    assert again.params_digest == finished[1].params_digest and again.metrics == finished[1].metrics


def test_the_reasoner_shows_what_the_specification_asks_for():
    """Half the specified size, one seed; the claims are judged at full size over seeds."""
    config = dataclasses.replace(SMOKE, reasoner=thought_anchors.ReasonerConfig(num_traces=6, num_samples=60))
    metrics = thought_anchors.measure_reasoner(config)
    assert metrics["reasoner/plan_over_computation"] > 10
    assert metrics["reasoner/forced_computation_over_plan"] > 5
    assert metrics["reasoner/counterfactual_over_resampling"] > 1.5
    blind = dataclasses.replace(config, rollouts=dataclasses.replace(config.rollouts, threshold=1.1))
    assert thought_anchors.measure_reasoner(blind)["reasoner/counterfactual_over_resampling"] < 1.5, "the filter did it"


def test_published_scores_are_reproduced(shared_data):
    file = shared_data / "reasoning" / "thought_anchors" / "traces.tar.gz"
    if not file.is_file():
        pytest.skip(f"no published traces at {file}")
    traces = read_published_traces(file)
    metrics = thought_anchors.measure_published(traces).metrics
    assert metrics["published/traces"] == 40 and metrics["published/identity_pairs"] == 5774
    assert metrics["published/identity_error"] <= 1e-9
    assert sum(map(len, thought_anchors.PUBLISHED.values())) == 24 and metrics["published/cells_reproduced"] == 1
    assert metrics["published/plan_over_computation/share"] == pytest.approx(0.82, abs=0.005)
    assert metrics["published/forced_computation_over_plan/share"] == pytest.approx(0.84, abs=0.005)
    assert (
        min(metrics[f"published/{n}/evidence"] for n in ("plan_over_computation", "forced_computation_over_plan")) > 4
    )
    assert metrics["published/plan_over_facts/evidence"] == pytest.approx(-np.log10(0.14), abs=0.05)
    assert metrics["published/agreement/all"] == pytest.approx(0.024, abs=0.0006)
    assert metrics["published/agreement/near"] == pytest.approx(0.11, abs=0.006)


def test_traces_of_the_language_carry_their_dependencies():
    for trace in thought_anchors.language_traces(SMOKE):
        assert trace.edges.shape == (len(trace), len(trace)) and trace.edges.any()
        assert trace.answer == trace.truth in "01234"


def test_suppression_is_scored_on_computations_and_answers_alone():
    traces = thought_anchors.language_traces(SMOKE)
    perfect = [trace.edges.astype(float) for trace in traces]
    metrics = thought_anchors.measure_edges(traces, perfect)
    assert metrics["suppression/auc"] == metrics["suppression/auc_far"] == 1
    assert 0.4 < metrics["distance/auc"] < 0.8
    backwards = thought_anchors.measure_edges(traces, [matrix.T for matrix in perfect])
    assert backwards["suppression/auc"] == 0.5


def test_claims_about_files_are_asked_only_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCORE_SHARED", str(tmp_path))
    assert thought_anchors.published_file(SMOKE) is None
    asked = thought_anchors.CLAIMS.asked_of(SMOKE)
    assert not any(claim.value.metric.startswith("published/") for claim in asked.claims) and len(asked.claims) == 7
    given = dataclasses.replace(SMOKE, traces_path=str(tmp_path / "some.tar.gz"))
    assert len(thought_anchors.CLAIMS.asked_of(given).claims) == 11


def test_the_pod_s_programs_fit_their_chips_and_hosts_and_split_heads():
    """Sizes alone, as `compile` has them before it compiles: rows by groups of eight chips, weights by heads."""
    pytest.importorskip("libtpu")
    from jaxcore.distributed import describe_topology

    config = thought_anchors.PRESETS["pod"]
    program = thought_anchors.build(config, describe_topology("v5e:16x16").devices)
    assert set(program.steps) == {"rollouts", "forced", "suppress", "attend"}
    assert program.mesh.size == 256 and program.mesh.shape["tensor"] == config.model.num_key_value_heads == 8
    params, ids, *_ = program.steps["rollouts"].arguments
    assert ids.shape == (64, 8192) and ids.sharding.shard_shape(ids.shape) == (2, 8192)
    total, held = (
        sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        for shape in (lambda leaf: leaf.shape, lambda leaf: leaf.sharding.shard_shape(leaf.shape))
    )
    assert total > 27e9 and held < 1.01 * total / 8, "each chip holds an eighth of the weights"


@pytest.mark.slow
def test_a_stored_model_is_sampled_cut_and_explained_by_the_same_code(tmp_path):
    """A random Llama that writes sentences and boxes of a small vocabulary, read from a folder with its tokenizer."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = [
        "[UNK]", "[END]", "</think>", "\\boxed{5}", "\\boxed{6}", "multiplication.", "subtraction.", "calculation.",
        "verification.", "consolidation.", "interpretation.", "we", "then", "also",
    ]  # fmt: skip
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model = dataclasses.replace(SMOKE.model, vocab_size=len(words), max_positions=160, initializer_range=0.03)
    params = Decoder(model).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    save_pretrained(tmp_path / "model", model, params)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]", model_max_length=160
    )
    tokenizer.save_pretrained(tmp_path / "model")
    problems = [{"problem_idx": f"problem_{i}", "problem": "calculation.", "gt_answer": "5"} for i in range(2)]
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    config = dataclasses.replace(
        SMOKE,
        model=model,
        pretrained=str(tmp_path / "model"),
        problems_path=str(tmp_path / "problems.json"),
        training=dataclasses.replace(SMOKE.training, num_steps=0),
        rollouts=dataclasses.replace(
            SMOKE.rollouts, attempts=32, max_new_tokens=40, width=96, samples_per_row=2, temperature=1.5, top_p=1.0
        ),
        attention=dataclasses.replace(SMOKE.attention, max_tokens=96, proximity=1),
    )
    results = thought_anchors.run(config, tmp_path / "run")
    assert results.steps == 0 and 0 <= results.metrics["rollouts/accuracy"] <= 1
    page = (tmp_path / "run" / "reasoning.html").read_text()
    assert "problem_0_" in page and "calculation." in page
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()[1:]]
    assert {len(line["samples"]) for line in lines} == {2} and len(lines) % 2 == 0, "two rows of two for each prefix"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollouts.samples-per-row", "3"], "multiple of rollouts.samples_per_row"),
        (["--num-traces", "1"], "num_traces must be at least 2"),
        (["--pretrained", "x"], "rollouts.attempts >= 1"),
        (["--rollouts.max-new-tokens", "100"], "exceed the model's context"),
        (["--attention.top-heads", "0"], "attention.top_heads"),
        (["--traces-path", "/does/not/exist"], "cannot read published traces"),
        (["--mesh.data", "3"], "needs 3 devices"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    given = ["run", "thought_anchors", "--preset", "smoke", "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
