"""The run directory: nothing overwritten, one writer, exact comparison of configurations, digests."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, batch_sharding, make_mesh
from jaxcore.training import RunDirectoryInUse, open_run_directory, params_digest, read_metrics
from jaxcore.training.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_new_directory_gets_the_configuration(tmp_path):
    run = open_run_directory(tmp_path / "a" / "b", Config(), resume=False)
    assert json.loads((run.path / "config.json").read_text()) == {"seed": 0, "inner": {"width": 3}}
    assert not run.resumed
    run.close()


def test_a_directory_with_a_run_needs_resume(tmp_path):
    open_run_directory(tmp_path / "run", Config(), resume=False).close()
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run: add --resume"):
        open_run_directory(tmp_path / "run", Config(seed=1), resume=False)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_resuming_with_another_configuration_names_every_field(tmp_path):
    open_run_directory(tmp_path / "run", Config(), resume=False).close()
    with pytest.raises(ValueError, match=r"inner\.width was 3, now 4; seed was 0, now 5"):
        open_run_directory(tmp_path / "run", Config(seed=5, inner=Inner(4)), resume=True)


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        open_run_directory(tmp_path, Config(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        open_run_directory(tmp_path / "file", Config(), resume=False)
    with pytest.raises(ValueError, match="cannot write the run directory"):
        open_run_directory(tmp_path / "file" / "run", Config(), resume=False)


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    holder = (
        "import sys, jaxcore.training.run_directory as r, pathlib, time\n"
        "lease = r._take_lease(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert process.stdout.readline().strip() == "held"
        with pytest.raises(RunDirectoryInUse, match=f"process {process.pid}"):
            open_run_directory(tmp_path, Config(), resume=False)
    finally:
        process.kill()
        process.wait()
    open_run_directory(tmp_path, Config(), resume=False).close()


def test_equal_parameters_have_equal_digests_on_any_mesh():
    params = {"b": jnp.arange(8.0), "a": {"kernel": jnp.ones((4, 4))}}
    digest = params_digest(params)
    sharded = jax.device_put(params, batch_sharding(make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))))
    assert params_digest(sharded) == digest
    assert params_digest({"a": params["a"], "b": params["b"]}) == digest


@pytest.mark.parametrize(
    "other",
    [
        {"b": jnp.arange(8.0).at[3].add(1e-6), "a": {"kernel": jnp.ones((4, 4))}},
        {"b": jnp.arange(8.0), "a": {"kernel": jnp.ones((2, 8))}},
        {"b": jnp.arange(8.0), "c": {"kernel": jnp.ones((4, 4))}},
        {"b": jnp.arange(8), "a": {"kernel": jnp.ones((4, 4))}},
    ],
)
def test_any_difference_shows_in_the_digest(other):
    assert params_digest(other) != params_digest({"b": jnp.arange(8.0), "a": {"kernel": jnp.ones((4, 4))}})


def test_resumed_metrics_have_each_step_once_and_survive_a_torn_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(4):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricsWriter(tmp_path, start_step=2)
    writer.write(2, {"loss": 20.0})
    writer.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    assert np.isfinite(rows[-1]["loss"])
