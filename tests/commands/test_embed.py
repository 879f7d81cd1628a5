"""`jaxcore embed`: files in, vectors out, in order, whatever the batches, devices, kills and processes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import embed as command
from jaxcore.data import load_tokenizer, train_tokenizer
from jaxcore.evaluation import Interrupted
from jaxcore.evaluation.text_embedding import embed_texts
from jaxcore.models import Encoder, EncoderConfig, load_pretrained, save_pretrained

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
WORDS = tuple("the a cat dog sees hears small large house river and then of it runs".split(" "))  # noqa: SIM905
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "hears",
    "small",
    "large",
    "house",
    "river",
    "and",
    "then",
    "of",
    "it",
    "runs",
]
TEXTS = [" ".join(RNG.choice(WORDS, size=1 + number % 23)) for number in range(130)]


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


def arguments(folder, output, *more):
    return [
        "embed",
        "--model",
        str(folder / "model"),
        "--input",
        str(folder / "texts.jsonl"),
        "--output",
        output,
        *more,
    ]


@pytest.fixture(scope="module")
def expected(folder):
    """One text at a time: no padding, no batch."""
    model, params = load_pretrained(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids).pooled)
    rows = [tokenizer(text, truncation=True, max_length=20)["input_ids"] for text in TEXTS]
    return np.concatenate([apply(np.asarray([row], np.int32)) for row in rows])


@pytest.mark.parametrize("more", [(), ("--batch-tokens", "40"), ("--window", "16"), ("--batch-tokens", "4000")])
def test_vectors_are_those_of_each_text_alone(folder, expected, tmp_path, capsys, more):
    assert main(arguments(folder, str(tmp_path / "out.npy"), *more)) == 0
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert "130 texts x 16" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_any_number_of_devices_gives_the_same(folder, expected):
    from jaxcore.distributed import MeshConfig, make_mesh

    model, params = load_pretrained(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    for count in (1, 2, 4, 8):
        mesh = make_mesh(MeshConfig(data=count), jax.devices()[:count])
        np.testing.assert_allclose(embed_texts(model, params, tokenizer, TEXTS, mesh=mesh), expected, atol=1e-5)


def test_parquet_has_rows_in_order_and_unit_vectors_when_asked(folder, expected, tmp_path):
    assert main(arguments(folder, str(tmp_path / "out.parquet"), "--normalize", "--window", "50")) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["row"].to_pylist() == list(range(len(TEXTS)))
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), unit, atol=1e-5)


def options_of(folder, output, **more):
    return command.EmbedOptions(
        model=str(folder / "model"), input=str(folder / "texts.jsonl"), output=output, window=16, **more
    )


def test_an_interrupted_run_resumes_to_the_same_bytes(folder, tmp_path):
    command.embed(options_of(folder, tmp_path / "whole.npy"))
    output = tmp_path / "cut.npy"
    with pytest.raises(Interrupted, match="--resume"):
        command.embed(options_of(folder, output), tick=lambda step: step == 2)
    assert not output.exists()
    assert main(arguments(folder, str(output), "--window", "16")) == 2  # begun already: refuses without --resume
    embedded = []
    real = command.embed_windows
    command.embed_windows = lambda *a, **k: real(*a[:3], (embedded.append(w) or w for w in a[3]), **k)
    try:
        command.embed(options_of(folder, output, resume=True))
    finally:
        command.embed_windows = real
    assert sum(map(len, embedded)) == len(TEXTS) - 3 * 16  # finished windows are not embedded again
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npy", "whole.npy"]


def test_a_killed_process_resumes(folder, tmp_path, expected):
    """SIGKILL in the middle, from outside; then the same command with --resume."""
    script = (
        "import os, signal, sys\n"
        "from jaxcore.commands import embed\n"
        "write = embed._Writer.write\n"
        "def die(self, step, start, result):\n"
        "    write(self, step, start, result)\n"
        "    if step == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "embed._Writer.write = die\n"
        "embed.main(sys.argv[1:])\n"
    )
    given = arguments(folder, str(tmp_path / "out.npy"), "--window", "16")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", script, *given[1:]], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert main([*given, "--resume"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_resuming_another_run_is_refused(folder, tmp_path, capsys):
    output = tmp_path / "out.npy"
    with pytest.raises(Interrupted):
        command.embed(options_of(folder, output), tick=lambda step: True)
    with pytest.raises(ValueError, match="another input, model or options"):
        command.embed(options_of(folder, output, resume=True, normalize=True))


def test_lines_of_a_text_file(folder, tmp_path, expected):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    given = arguments(folder, str(tmp_path / "out.npy"))
    given[given.index("--input") + 1] = str(tmp_path / "texts.txt")
    assert main(given) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "x.txt"], "--output must end in .npy or .parquet"),
        (["--output", "/does/not/exist/x.npy"], "its folder does not exist"),
        (["--output", "{exists}"], "exists already"),
        (["--field", "body"], "missing field 'body'"),
        (["--input", "/does/not/exist.jsonl"], "no file or folder"),
        (["--input", "/does/not/exist.txt"], "no file at"),
        (["--input", "{empty}"], "empty"),
        (["--model", "/does/not/exist"], "/does/not/exist"),
        (["--max-length", "21"], "max_length is 21, but the model has 20 positions"),
        (["--window", "0"], "--window must be at least 1"),
        (["--pooling", "last"], "pooling"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys, more, message):
    (tmp_path / "exists.npy").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_text("")
    places = {"{exists}": str(tmp_path / "exists.npy"), "{empty}": str(tmp_path / "empty.jsonl")}
    more = [places.get(value, value) for value in more]
    given = arguments(folder, str(tmp_path / "out.npy"))
    for option, value in zip(more[::2], more[1::2], strict=True):
        if option in given:
            given[given.index(option) + 1] = value
        else:
            given += [option, value]
    assert main(given) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0]
