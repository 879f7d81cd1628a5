"""STAR end to end on the smoke preset: what it writes, that it repeats, resumes, and refuses bad input."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import star
from experiments.__main__ import main
from jaxcore.data import AuthorBatchConfig
from jaxcore.distributed import MeshConfig
from jaxcore.evaluation import Measured, RunValues, judge
from jaxcore.models import load_pretrained
from jaxcore.training import Preempted, read_metrics

SMOKE = star.PRESETS["smoke"]
TINY = dataclasses.replace(
    SMOKE,
    num_steps=6,
    data=dataclasses.replace(
        SMOKE.data,
        world=dataclasses.replace(SMOKE.data.world, num_training_authors=16, num_test_authors=12),
        batches=AuthorBatchConfig(authors_per_batch=8, views_per_author=4),
    ),
    loop=dataclasses.replace(SMOKE.loop, checkpoint_every=2),
    evaluation=dataclasses.replace(
        SMOKE.evaluation,
        batch_size=64,
        candidates=(4, 12),
        draws=4,
        pairs=60,
        explained=8,
        clustered_authors=4,
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("star") / "run"
    return path, star.run(TINY, path)


def test_the_run_directory_holds_what_the_protocol_says(finished):
    path, results = finished
    written = json.loads((path / "results.json").read_text())
    for key in (
        "experiment",
        "preset",
        "seed",
        "steps",
        "seconds",
        "device",
        "versions",
        "metrics",
        "params_digest",
    ):
        assert key in written
    assert written["params_digest"] == results.params_digest and re.fullmatch("[0-9a-f]{64}", results.params_digest)
    assert written["metrics"] == results.metrics
    assert json.loads((path / "config.json").read_text())["num_steps"] == 6
    assert len(read_metrics(path / "metrics.jsonl")) == 6
    assert list((path / "events").glob("events.out.tfevents.*"))
    assert (path / "checkpoints" / "6").is_dir()


def test_the_report_shows_configuration_claims_and_heatmaps(finished):
    path, results = finished
    page = (path / "report.html").read_text()
    for text in ("model.num_layers", "Training loss", "Which words give an author away", "true style marker"):
        assert text in page
    assert f"{results.metrics['verification/auc']:.3f}" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_the_trained_model_is_read_back_by_load_pretrained(finished):
    path, _ = finished
    model, params = load_pretrained(path / "model")
    ids = np.full((2, 128), 7, np.int32)
    assert model.apply({"params": params}, ids).pooled.shape == (2, TINY.model.hidden_size)


def test_the_same_configuration_gives_the_same_bits(finished, tmp_path):
    _, results = finished
    again = star.run(TINY, tmp_path / "again")
    assert again.params_digest == results.params_digest
    assert again.metrics == results.metrics
    other = star.run(dataclasses.replace(TINY, seed=1), tmp_path / "other")
    assert other.params_digest != results.params_digest


def test_a_resumed_run_ends_like_an_uninterrupted_one(finished, tmp_path):
    _, results = finished
    with pytest.raises(Preempted):
        star.run(TINY, tmp_path / "run", tick=ticks_until(training_tick=3))
    resumed = star.run(TINY, tmp_path / "run", resume=True)
    assert resumed.params_digest == results.params_digest
    assert resumed.metrics == results.metrics


def ticks_until(*, training_tick):
    """True when training step `training_tick` is done; evaluation before training ticks with smaller counts too."""
    seen = []

    def tick(step):
        seen.append(step)
        return len(seen) > 5 and step == training_tick

    return tick


def test_eight_devices_give_the_losses_of_one_over_twenty_steps(tmp_path):
    evaluation = dataclasses.replace(TINY.evaluation, explained=0)
    config = dataclasses.replace(TINY, num_steps=20, evaluation=evaluation)
    losses = {}
    for name, mesh in {"eight": MeshConfig(data=4, fsdp=2), "one": MeshConfig(data=1, tensor=-1)}.items():
        star.run(dataclasses.replace(config, mesh=mesh), tmp_path / name)
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert len(losses["eight"]) == 20
    np.testing.assert_allclose(losses["eight"], losses["one"], rtol=1e-5)


def test_numbers_gone_bad_end_with_77(tmp_path, capsys):
    fields = ["--optimizer.learning-rate", "1e38", "--run-dir", str(tmp_path / "run")]
    assert main(["run", "star", "--preset", "smoke", *fields]) == 77
    assert re.search(r"not finite at step \d+ .*batch ids \[", capsys.readouterr().err)
    assert (tmp_path / "run" / "nonfinite" / "state").is_dir()
    assert not (tmp_path / "run" / "results.json").exists()


def test_claims_that_fail_end_verify_with_1_and_every_value_is_written(tmp_path, capsys):
    """Without any training step the claims cannot hold."""
    file = tmp_path / "verdicts.json"
    assert main(["verify", "star", "--seeds", "1", "--num-steps", "0", "--json", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "learns_style" in shown and "FAILS" in shown
    record = json.loads(file.read_text())
    failed = {verdict["name"] for verdict in record["verdicts"] if not verdict["passed"]}
    assert {"learns_style", "beats_raw_counts", "many_views", "labels_matter"} <= failed
    assert set(record["values"]) == set(star.CLAIMS.variants)
    assert record["values"]["supcon"][0]["metrics"][star._AT_8] < 0.2


def test_gradient_caching_does_not_change_the_losses(finished, tmp_path):
    path, _ = finished
    star.run(dataclasses.replace(TINY, micro_batch=16), tmp_path / "cached")
    losses = [[row["loss"] for row in read_metrics(p / "metrics.jsonl")] for p in (path, tmp_path / "cached")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_only_the_last_layers_train_when_asked(tmp_path):
    model = dataclasses.replace(TINY.model, num_layers=3)
    config = dataclasses.replace(TINY, model=model, train_last_layers=1)
    steps = star.make_steps(config)
    before = star.initial_state(config, steps)
    kept = jax.tree.map(np.asarray, before.params)
    task = star.open_task(config)
    batch = task.batches(num_steps=1).global_batch(0)
    batch = {name: value for name, value in batch.items() if name != "example_ids"}
    after, _ = steps.train(before, jax.device_put(batch, star.batch_sharding(steps.mesh)))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b), after.params, kept)
    np.testing.assert_array_equal(moved["embeddings"]["word"], 0)
    mlp = moved["layers"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(mlp[:2], 0)
    assert mlp[2].max() > 0


def test_claims_fail_when_training_does_not_help():
    """The judgement is of numbers: equal accuracies fail every claim of superiority."""
    flat = RunValues(
        {claim.value.metric: 0.3 for claim in star.CLAIMS.claims}
        | {c.against.metric: 0.3 for c in star.CLAIMS.claims if c.against},
        {star._AT_8: [0.3, 0.3]},
    )
    runs = {variant: [flat, flat, flat] for variant in star.CLAIMS.variants}
    compared = [claim for claim in star.CLAIMS.claims if isinstance(claim.against, Measured)]
    assert len(compared) >= 5
    assert not any(judge(claim, runs).passed for claim in compared)


@pytest.mark.parametrize(("trained", "passed"), [(0.30, True), (0.18, False)])
def test_the_control_is_judged_by_its_own_top_1_accuracies(finished, trained, passed):
    _, results = finished
    metrics = {
        "control/accuracy/n11_s1": 0.9,
        "control/accuracy/n11_s8": trained,
        "control/accuracy_top5/n11_s8": 0.9,
        "control/untrained/accuracy/n11_s8": 0.16,
        "control/untrained/accuracy_top5/n11_s8": 0.1,
        "control/raw_counts/accuracy/n11_s8": 0.4,
    }
    verdicts = star.single_run_verdicts(dataclasses.replace(results, metrics={**results.metrics, **metrics}))
    control = next(verdict for verdict in verdicts if verdict.name == "beats_untrained")
    assert control.passed is passed and control.effect == pytest.approx(trained - 0.16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], None),
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["run"], "run needs the name of an experiment"),
        (
            ["run", "nope"],
            "unknown experiment 'nope': expected one of cap, contrastive_primer, contrastive_search, debcse, grains",
        ),
        (["run", "star", "--preset", "huge"], "unknown preset 'huge': expected one of smoke, cpu, gpu, pod"),
        (["run", "star", "--nope", "3"], "Unrecognized options: --nope"),
        (["run", "star", "--num-steps", "many"], "invalid literal for int"),
        (["run", "star", "--temperature", "0"], "temperature > 0"),
        (["run", "star", "--resume"], "--resume needs --run-dir"),
        (["run", "star", "--preset", "smoke", "--mesh.data", "3"], "needs 3 devices, found 8"),
        (
            ["run", "star", "--preset", "smoke", "--data.batches.views-per-author", "1"],
            "a positive pair needs",
        ),
        (["run", "star", "--data.path", "/does/not/exist"], "no file or folder at /does/not/exist"),
        (["run", "star", "--data.path", "{empty}"], "{empty}"),
        (["run", "star", "--preset", "smoke", "--run-dir", "{file}"], "is a file"),
        (["run", "star", "--preset", "smoke", "--data.batches.authors-per-batch", "17"], "divi"),
        (["verify", "star", "--seeds", "0"], "--seeds must be at least 1"),
        (["verify", "star", "--json", "/does/not/exist.json"], "its folder does not exist"),
        (["compile", "star", "--topology", "v9:2x2"], "v9"),
        (["list", "star"], "list takes no arguments"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    fill = lambda text: text.format(empty=tmp_path / "empty", file=tmp_path / "file")  # noqa: E731
    code = main([fill(argument) for argument in arguments])
    shown = capsys.readouterr()
    if message is None:
        assert code == 0 and "verify star" in shown.out
        return
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", shown.err)
    assert fill(message) in shown.err
    assert not (tmp_path / "runs").exists(), "nothing may be written"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"A_one.txt": "word " * 400}, "two"),
        ({"A_one.txt": "word " * 10, "B_one.txt": "other " * 10}, "two"),
        ({"A_one.txt": b"caf\xe9 " * 400, "A_two.txt": b"caf\xe9 " * 400}, "UTF-8"),
    ],
)
def test_texts_that_cannot_be_used_are_named(files, message, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    run_dir = tmp_path / "run"
    code = main(["run", "star", "--preset", "smoke", "--data.path", str(folder), "--run-dir", str(run_dir)])
    shown = capsys.readouterr()
    assert code == 2 and re.search(message, shown.err), shown.err
    assert not run_dir.exists()
