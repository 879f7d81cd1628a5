"""Rollouts: drawn from the model's distribution, kept line by line, the same after a kill, on one device or eight."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from decoding_references import tiny

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.generation import Sampling
from jaxcore.generation.rollouts import RolloutsInterrupted, Sampler, rollout_program, sample_rollouts

PREFIXES = [[3], [3, 1], [3, 1, 4], [3, 1, 4, 1], [3, 1, 4, 1, 5]]
SAMPLER = Sampler(Sampling(top_p=0.9), num_samples=3, max_new_tokens=5, stop_tokens=(0,))


@pytest.fixture(scope="module")
def draw():
    """`sample_rollouts` of one compiled program."""
    model, params = (lambda made: (made.model, made.params))(tiny(0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = rollout_program(model, SAMPLER, mesh)

    def call(file, **changes):
        options = {"sampler": SAMPLER, "seed": 0, "mesh": mesh, "batch_size": 2, "width": 8, "program": program}
        return sample_rollouts(model, params, changes.pop("prefixes", PREFIXES), file=file, **{**options, **changes})

    return call


@pytest.fixture(scope="module")
def whole(draw, tmp_path_factory):
    file = tmp_path_factory.mktemp("rollouts") / "whole.jsonl"
    return draw(file), file


def test_every_prefix_has_its_samples_and_a_line(whole):
    results, file = whole
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prefix"] for line in lines[1:]] == [0, 1, 2, 3, 4]
    for line, samples in zip(lines[1:], results, strict=True):
        assert line["samples"] == [rollout.tokens for rollout in samples] and len(samples) == 3
        for rollout in samples:
            assert rollout.stopped == (rollout.tokens[-1] == 0) and 0 not in rollout.tokens[:-1]
            assert rollout.stopped or len(rollout.tokens) == 5
    assert len({str(rollout) for samples in results for rollout in samples}) > 8


def test_a_finished_file_is_read_and_nothing_is_drawn(draw, whole):
    def refuse(*arguments):
        raise AssertionError("nothing is left to draw")

    results, file = whole
    before = file.read_bytes()
    assert draw(file, program=refuse) == results and file.read_bytes() == before


@pytest.mark.parametrize("cut", [0, 1, 40, 0.5, 0.8, 0.99])
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(draw, whole, tmp_path, cut):
    """As a kill leaves it: in the settings, in a line, between the two lines of a batch."""
    results, file = whole
    content = file.read_bytes()
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(content[: cut if isinstance(cut, int) else int(cut * len(content))])
    assert draw(torn) == results and torn.read_bytes() == content


def test_a_notice_between_batches_stops_and_the_next_call_goes_on(draw, whole, tmp_path):
    results, file = whole
    cut = tmp_path / "cut.jsonl"
    with pytest.raises(RolloutsInterrupted, match="after 2 of 5 prefixes"):
        draw(cut, tick=lambda batch: True)
    assert cut.read_bytes() == b"".join(file.read_bytes().splitlines(keepends=True)[:3])
    assert draw(cut) == results and cut.read_bytes() == file.read_bytes()


def test_a_killed_process_is_continued_to_the_same_file(whole, tmp_path):
    """Another process draws the same, is killed for good behind its first batch, and is started again."""
    file = tmp_path / "killed.jsonl"
    script = f"""
        import os, pathlib, signal, sys
        sys.path[:0] = {[*sys.path]!r}
        import jax
        from decoding_references import tiny
        from test_rollouts import PREFIXES, SAMPLER
        from jaxcore.distributed import MeshConfig, make_mesh
        from jaxcore.generation.rollouts import sample_rollouts
        made = tiny(0)
        kill = lambda batch: os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "kill" else False
        sample_rollouts(
            made.model, made.params, PREFIXES, sampler=SAMPLER, file=pathlib.Path({str(file)!r}), seed=0,
            mesh=make_mesh(MeshConfig(), jax.devices()[:1]), batch_size=2, width=8, tick=kill,
        )
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([*command, "kill"], env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    expected = whole[1].read_bytes()
    assert file.read_bytes() == b"".join(expected.splitlines(keepends=True)[:3])
    finished = subprocess.run([*command, "finish"], env=environment, capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr.decode()
    assert file.read_bytes() == expected


def test_eight_devices_draw_what_one_does(tmp_path):
    made = tiny(0)
    results = []
    for count in (1, 8):
        mesh = make_mesh(MeshConfig(), jax.devices()[:count])
        file = tmp_path / f"{count}.jsonl"
        options = {"sampler": SAMPLER, "seed": 0, "mesh": mesh, "batch_size": 8, "width": 8}
        results.append(sample_rollouts(made.model, made.params, PREFIXES, file=file, **options))
    assert results[0] == results[1]


def test_rollouts_follow_the_models_distribution(tmp_path):
    """First tokens of many samples against the exact probabilities of a full forward pass (chi-square)."""
    from scipy import stats

    made = tiny(0)
    sampler = Sampler(Sampling(), num_samples=2000, max_new_tokens=1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    drawn = sample_rollouts(
        made.model, made.params, [PREFIXES[3]], sampler=sampler, file=tmp_path / "r.jsonl", seed=3, mesh=mesh, width=8
    )
    counts = np.bincount([rollout.tokens[0] for rollout in drawn[0]], minlength=11)
    expected = 2000 * np.exp(made.log_probs(PREFIXES[3]))
    kept = expected > 5
    assert stats.chisquare(counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()).pvalue > 1e-3


def test_files_of_something_else_and_damaged_ones_are_refused(draw, whole, tmp_path):
    with pytest.raises(ValueError, match=r"is of something else .*seed was 0, is 1"):
        draw(whole[1], seed=1)
    with pytest.raises(ValueError, match=r"something else .*prefixes was"):
        draw(whole[1], prefixes=PREFIXES[:4])
    with pytest.raises(ValueError, match="identity was , is other"):
        draw(whole[1], identity="other")
    lines = whole[1].read_bytes().splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join([lines[0], lines[2], *lines[1:]]))
    with pytest.raises(ValueError, match="line 2, is damaged"):
        draw(damaged)
    (tmp_path / "other.jsonl").write_text("text\n")
    with pytest.raises(ValueError, match="holds no lines of a run"):
        draw(tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": []}, "at least one prefix"),
        ({"prefixes": [[1], []]}, "prefix 1 has 0 tokens"),
        ({"prefixes": [[1] * 36]}, "prefix 0 has 36 tokens: expected 1 to 35"),
        ({"sampler": SAMPLER._replace(num_samples=0)}, "num_samples"),
    ],
)
def test_bad_requests_are_refused_and_leave_no_file(draw, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "none.jsonl", **changes)
    assert not (tmp_path / "none.jsonl").exists()
