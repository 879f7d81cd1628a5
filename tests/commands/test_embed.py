"""`jaxcore embed`: files in, vectors out, in order, whatever the batches, devices, kills and processes."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import embed as command
from jaxcore.commands.vector_file import VectorFile
from jaxcore.data import load_tokenizer, train_tokenizer
from jaxcore.evaluation import Interrupted
from jaxcore.models import Encoder, EncoderConfig, load_pretrained, save_pretrained

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
WORDS = tuple("the a cat dog sees hears small large house river and then of it runs".split(" "))  # noqa: SIM905
TEXTS = [" ".join(RNG.choice(WORDS, size=(3, 9, 23)[number % 3])) for number in range(130)]
NUM_CUT = sum(number % 3 == 2 for number in range(130))
"""Texts of 23 words have more than the 20 tokens that the model reads."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny BERT with its tokenizer, and the texts as records."""
    root = tmp_path_factory.mktemp("embed")
    tokenizer = train_tokenizer(TEXTS, vocab_size=80)
    config = EncoderConfig(
        vocab_size=len(tokenizer), num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=20,
        pooler="mean",
    )  # fmt: skip
    model = Encoder(config)
    params = meta.unbox(model.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])
    save_pretrained(root / "model", model, params)
    tokenizer.save_pretrained(str(root / "model"))
    with open(root / "texts.jsonl", "w") as file:
        file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
    return root


def arguments(folder, output, *more, **changes):
    given = {"model": folder / "model", "input": folder / "texts.jsonl", "output": output, **changes}
    return ["embed", *(part for name, value in given.items() for part in (f"--{name}", str(value))), *more]


@pytest.fixture(scope="module")
def expected(folder):
    """One text at a time: no padding, no batch."""
    model, params = load_pretrained(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids).pooled)
    rows = [tokenizer(text, truncation=True, max_length=20)["input_ids"] for text in TEXTS]
    return np.concatenate([apply(np.asarray([row], np.int32)) for row in rows])


@pytest.mark.parametrize("more", [(), ("--batch-tokens", "40"), ("--window", "50", "--batch-tokens", "4000")])
def test_vectors_are_those_of_each_text_alone(folder, expected, tmp_path, capsys, more):
    assert main(arguments(folder, tmp_path / "out.npy", *more)) == 0
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    shown = capsys.readouterr()
    assert "130 texts x 16" in shown.out and f"{NUM_CUT} cut to 20 tokens" in shown.out
    assert shown.err == ""  # no terminal, no progress bar
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_sharded_parameters_give_the_same(folder, expected, tmp_path):
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert main(arguments(folder, tmp_path / "out.npy", *mesh)) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ("mean", "cls"))
def test_other_pooling_than_the_files_say(folder, tmp_path, pooling):
    assert main(arguments(folder, tmp_path / "out.npy", "--pooling", pooling)) == 0
    model, params = load_pretrained(folder / "model")
    ids = load_tokenizer(folder / "model")(TEXTS[0])["input_ids"]
    hidden = model.apply({"params": params}, np.asarray([ids], np.int32)).last_hidden_state[0]
    alone = hidden[0] if pooling == "cls" else hidden.mean(0)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[0], alone, atol=1e-5)


def test_parquet_has_rows_in_order_and_unit_vectors_when_asked(folder, expected, tmp_path):
    assert main(arguments(folder, tmp_path / "out.parquet", "--normalize", "--window", "50")) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["row"].to_pylist() == list(range(len(TEXTS)))
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), unit, atol=1e-5)


def options_of(folder, output, **more):
    return command.EmbedOptions(
        model=str(folder / "model"), input=str(folder / "texts.jsonl"), output=output, **{"window": 16, **more}
    )


@pytest.mark.parametrize("suffix", (".npy", ".parquet"))
def test_an_interrupted_run_resumes_to_the_same_bytes(folder, tmp_path, monkeypatch, suffix):
    command.embed(options_of(folder, tmp_path / f"whole{suffix}"))
    output = tmp_path / f"cut{suffix}"
    with pytest.raises(Interrupted, match="--resume"):  # in the middle of the fourth window
        command.embed(options_of(folder, output), tick=lambda tick: tick == 3 * 16 + 5)
    assert not output.exists()
    assert main(arguments(folder, output, "--window", "16")) == 2  # begun already: refuses without --resume
    embedded, write = [], VectorFile.write
    monkeypatch.setattr(
        VectorFile, "write", lambda self, window, result: embedded.append(window) or write(self, window, result)
    )
    command.embed(options_of(folder, output, resume=True))
    assert embedded == list(range(3, 9))  # finished windows are not embedded again
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cut{suffix}", f"whole{suffix}"]


def test_ticks_come_equally_often_in_every_window(folder, tmp_path):
    ticks = []
    command.embed(options_of(folder, tmp_path / "out.npy"), tick=lambda tick: ticks.append(tick) and False)
    assert ticks == list(range(9 * 16))


def launch(arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(folder, tmp_path):
    """SIGKILL right after a window; then the same command with --resume."""
    script = (
        "import os, signal, sys\n"
        "from jaxcore.__main__ import main\n"
        "from jaxcore.commands.vector_file import VectorFile\n"
        "write = VectorFile.write\n"
        "def die(self, window, result):\n"
        "    write(self, window, result)\n"
        "    if window == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "VectorFile.write = die\n"
        "main(sys.argv[1:])\n"
    )
    given = arguments(folder, tmp_path / "out.npy", "--window", "16")
    killed = launch(["-c", script, *given])
    errors = killed.communicate(timeout=120)[1]
    assert killed.returncode == -signal.SIGKILL, errors[-2000:]
    assert main([*given, "--resume"]) == 0
    command.embed(options_of(folder, tmp_path / "whole.npy"))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def wait_for(path, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)  # polling a child process


@pytest.mark.slow
def test_sigterm_ends_with_75_and_loses_nothing(folder, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(TEXTS * 400) + "\n")
    output = tmp_path / "out.npy"
    given = arguments(folder, output, "--window", "64", input=tmp_path / "many.txt")
    process = launch(["-m", "jaxcore", *given])
    progress = tmp_path / "out.npy.progress.0-of-1.json"
    wait_for(progress, process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75, errors[-2000:]
    assert "go on with --resume" in errors and not output.exists()
    assert 0 < len(json.loads(progress.read_text())["done"]) < 813
    assert json.loads(progress.read_text())["truncated"] > 0


@pytest.mark.slow
def test_two_processes_write_one_file(folder, expected, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    given = ["-m", "jaxcore", *arguments(folder, tmp_path / "out.npy", "--window", "30")]
    ranks = [
        {
            "JAXCORE_COORDINATOR": address,
            "JAXCORE_NUM_PROCESSES": "2",
            "JAXCORE_PROCESS_ID": str(rank),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=200) for process in [launch(given, **rank) for rank in ranks]]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    assert f"{NUM_CUT} cut to 20 tokens" in ended[0][0] and "texts" not in ended[1][0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_resuming_another_run_is_refused_and_says_what_differs(folder, tmp_path):
    output = tmp_path / "out.npy"
    with pytest.raises(Interrupted):
        command.embed(options_of(folder, output), tick=lambda tick: tick > 20)
    with pytest.raises(ValueError, match=r"another input, model or options \(normalize was False, is True\)"):
        command.embed(options_of(folder, output, resume=True, normalize=True))
    with pytest.raises(ValueError, match=r"\(window was 16, is 17\)"):
        command.embed(options_of(folder, output, resume=True, window=17))
    model, params = load_pretrained(folder / "model")
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    save_pretrained(tmp_path / "model", model, moved)
    with pytest.raises(ValueError, match=r"\(model was [0-9a-f]+, is [0-9a-f]+\)"):
        options = options_of(folder, output, resume=True, tokenizer=str(folder / "model"))
        command.embed(dataclasses.replace(options, model=str(tmp_path / "model")))


def test_resume_without_an_earlier_run_begins_one(folder, expected, tmp_path):
    assert main(arguments(folder, tmp_path / "out.npy", "--resume")) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_other_kinds_of_input(tmp_path):
    lines = ["one\u2028line", 'two, "quoted"', "three"]  # U+2028 ends a line for splitlines(), not in a file
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    with open(tmp_path / "c.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "body"], *enumerate(lines)])
    pq.write_table(pa.table({"body": lines}), tmp_path / "d.parquet")
    for name in ("a.txt", "b.txt", "c.csv", "d.parquet"):
        source = command.open_texts(str(tmp_path / name), "body", 0.0)
        assert [source[row]["text"] for row in range(len(source))] == lines, name


def test_records_without_a_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: field 'text' is blank"):
        command.open_texts(str(tmp_path / "a.txt"), "text", 0.0)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"title": "three"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl:3: missing field 'text'"):
        command.open_texts(str(tmp_path / "b.jsonl"), "text", 0.0)
    (tmp_path / "c.txt").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"c\.txt:2: field 'text' is not UTF-8 text"):
        command.open_texts(str(tmp_path / "c.txt"), "text", 0.0)


def test_models_without_a_tokenizer_or_a_pooler_are_named(folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(folder / "model", bare, ignore=shutil.ignore_patterns("*token*"))
    assert main(arguments(folder, tmp_path / "out.npy", model=bare)) == 2
    assert "no tokenizer at" in capsys.readouterr().err
    assert main(arguments(folder, tmp_path / "out.npy", "--tokenizer", str(folder / "model"), model=bare)) == 0
    (folder / "model" / "modules.json").rename(bare / "modules.json")
    try:
        assert main(arguments(folder, tmp_path / "other.npy")) == 2
    finally:
        (bare / "modules.json").rename(folder / "model" / "modules.json")
    assert "no pooler of its own; choose --pooling mean, cls or max" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("other*")] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "x.txt"}, "--output must end in .npy or .parquet"),
        ({"output": "/does/not/exist/x.npy"}, "its folder does not exist"),
        ({"output": "{exists}"}, "exists already"),
        ({"field": "body"}, "missing field 'body'"),
        ({"input": "/does/not/exist.jsonl"}, "no file or folder"),
        ({"input": "/does/not/exist.txt"}, "no file at"),
        ({"input": "{empty}"}, "empty"),
        ({"input": "/"}, "is a folder"),
        ({"input": "tfds:no_such_dataset/train"}, "no TFDS dataset"),
        ({"model": "/does/not/exist"}, "/does/not/exist"),
        ({"max-length": "21"}, "max_length is 21, but the model has 20 positions"),
        ({"window": "0"}, "--window must be at least 1"),
        ({"pooling": "last"}, "pooling"),
        ({"mesh.data": "3"}, "needs 3 devices, found 8"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys, changes, message):
    (tmp_path / "exists.npy").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_text("")
    places = {"{exists}": str(tmp_path / "exists.npy"), "{empty}": str(tmp_path / "empty.jsonl")}
    changes = {name: places.get(value, value) for name, value in changes.items()}
    assert main(arguments(folder, **{"output": tmp_path / "out.npy", **changes})) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.glob("out*"))
