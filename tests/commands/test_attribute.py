"""`jaxcore attribute`: lines, reports, the terminal; words, contrasts, similarities; kills, devices, bad input."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.attribution import method_names
from jaxcore.commands import attribute as command
from jaxcore.commands.attribute_options import AttributeOptions
from jaxcore.commands.line_file import LineFile
from jaxcore.data import load_tokenizer, train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation import Interrupted
from jaxcore.evaluation.text_attribution import TextModel, explain_windows
from jaxcore.evaluation.text_explanation import AttributionOptions
from jaxcore.models import Encoder, EncoderConfig, load_pretrained, save_pretrained
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier, load_classifier, save_classifier
from jaxcore.transforms import intervene

pytestmark = pytest.mark.usefixtures("quick_compilation")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
WORDS = ("the", "a", "cat", "dog", "sees", "hears", "small", "large", "house", "river")
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=(3, 6, 11)[number % 3])) for number in range(24)]
LABELS = ("bad", "good", "neither")
SIZES = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12, "max_positions": 64}


def drawn(model):
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny DistilBERT classifier and a BERT encoder with one tokenizer, and the texts as records."""
    root = tmp_path_factory.mktemp("attribute")
    tokenizer = train_tokenizer([*TEXTS, "s c r i p t"], vocab_size=44)
    config = EncoderConfig(
        vocab_size=len(tokenizer), architecture="distilbert", pooler="none", num_token_types=0, **SIZES
    )
    classifier = EncoderClassifier(ClassifierConfig(config, num_classes=3))
    save_classifier(root / "model", classifier, drawn(classifier), LABELS)
    encoder = Encoder(EncoderConfig(vocab_size=len(tokenizer), pooler="mean", **SIZES))
    save_pretrained(root / "encoder", encoder, drawn(encoder))
    for name in ("model", "encoder"):
        tokenizer.save_pretrained(str(root / name))
    with open(root / "texts.jsonl", "w") as file:
        file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
    return root


def arguments(folder, *more, **changes):
    given = {"model": folder / "model", "method": "occlusion", **changes}
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None)
    return ["attribute", *itertools.chain.from_iterable(named), *more]


def options_of(folder, output, **more):
    given = {"method": "occlusion,attention", "window": 8, "batch_tokens": 60, **more}
    return AttributeOptions(model=str(folder / "model"), input=str(folder / "texts.jsonl"), output=output, **given)


def run(options, **more):
    command.attribute(options, devices=jax.devices()[:1], **more)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The file of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    run(options_of(folder, output))
    return output


def left_out_one_by_one(folder, text):
    """Logits [1 + tokens, classes]: of the text, and of the text with each token's embedding that of padding."""
    model, params, _ = load_classifier(folder / "model")
    tokenizer = train_tokenizer([*TEXTS, "s c r i p t"], vocab_size=44)
    ids = np.asarray([tokenizer(text)["input_ids"]], np.int32)
    words = params["encoder"]["embeddings"]["word"]
    count = ids.shape[1]
    rows = np.array(np.repeat(words[ids], 1 + count, axis=0))
    rows[1 + np.arange(count), np.arange(count)] = words[tokenizer.pad_token_id]
    many = np.repeat(ids, 1 + count, axis=0)
    edited = intervene(lambda: model.apply({"params": params}, many), {"token_embeddings": jnp.asarray(rows)})
    return np.asarray(edited().logits), tokenizer.convert_ids_to_tokens(ids[0])


def test_lines_are_those_of_each_text_alone(folder, whole):
    lines = read(whole)
    assert [(line["index"], line["method"]) for line in lines] == [
        (number, name) for number in range(len(TEXTS)) for name in ("occlusion", "attention")
    ]
    for number in (0, 1, 2):  # of three lengths, in batches with others
        line, attention = lines[2 * number : 2 * number + 2]
        logits, tokens = left_out_one_by_one(folder, TEXTS[number])
        target = int(logits[0].argmax())
        assert line["text"] == TEXTS[number] and line["tokens"] == tokens and line["target"] == LABELS[target]
        assert line["predicted"] == line["target"] and line["versus"] is None and not line["truncated"]
        np.testing.assert_allclose(line["scores"], logits[0, target] - logits[1:, target], atol=2e-5)
        odds = np.exp(logits[0] - logits[0].max())
        assert line["probability"] == pytest.approx(odds[target] / odds.sum(), abs=1e-5)
        assert line["score"] == pytest.approx(logits[0, target], abs=1e-5)
        assert line["special"] == [True, *[False] * (len(tokens) - 2), True]
        assert [TEXTS[number][start:end] for start, end in line["offsets"][1:-1]] == [
            token.removeprefix("##") for token in tokens[1:-1]
        ]
        assert sum(attention["scores"]) == pytest.approx(1, abs=1e-5)


def test_eight_devices_give_the_same(folder, whole, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    given = arguments(folder, input=folder / "texts.jsonl", output=output, method="occlusion,attention")
    assert main(given) == 0
    for sharded, alone in zip(read(output), read(whole), strict=True):
        assert {**sharded, "scores": 0, "probability": 0, "score": 0, "baseline_score": 0} == {
            **alone, "scores": 0, "probability": 0, "score": 0, "baseline_score": 0
        }  # fmt: skip
        np.testing.assert_allclose(sharded["scores"], alone["scores"], atol=1e-5)
    assert "48 lines, 24 texts x 2 methods" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_method_is_traced_once_per_width_and_not_per_text(folder, whole, tmp_path, monkeypatch):
    found, widths = method_names.TOKEN_METHODS["occlusion"], []

    def counted(task):
        widths.append(task.mask.shape)
        return found.compute(task)

    monkeypatch.setitem(method_names.TOKEN_METHODS, "occlusion", dataclasses.replace(found, compute=counted))
    run(options_of(folder, tmp_path / "out.jsonl"))
    assert len(widths) == len(set(widths)) <= 3
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()


def test_words_are_sums_of_their_tokens_and_keep_special_tokens(folder, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    run(options_of(folder, output, level="word"))
    for words, tokens in zip(read(output), read(whole), strict=True):
        assert words["tokens"] == ["[CLS]", *words["text"].split(), "[SEP]"]
        assert words["special"] == [True, *[False] * len(words["text"].split()), True]
        assert sum(words["scores"]) == pytest.approx(sum(tokens["scores"]), abs=1e-5)
        first = len([offset for offset in tokens["offsets"] if 0 < offset[1] <= len(words["tokens"][1])])
        assert words["scores"][1] == pytest.approx(sum(tokens["scores"][1 : 1 + first]), abs=1e-6)


def test_a_contrast_is_a_difference_of_logits(folder, tmp_path):
    for target, versus in (("good", "bad"), ("bad", "good")):
        given = arguments(folder, text=TEXTS[1], target=target, versus=versus, output=tmp_path / f"{target}.jsonl")
        assert main(given) == 0
    (line,), (other,) = (read(tmp_path / f"{name}.jsonl") for name in ("good", "bad"))
    logits, _ = left_out_one_by_one(folder, TEXTS[1])
    gap = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(line["scores"], gap[0] - gap[1:], atol=2e-5)
    np.testing.assert_allclose(line["scores"], -np.asarray(other["scores"]), atol=1e-6)
    assert (line["target"], line["versus"]) == ("good", "bad")


def test_an_encoders_similarity_to_another_text(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    given = arguments(folder, text="a small cat", similar_to="the large dog", output=output, model=folder / "encoder")
    assert main(given) == 0
    (line,) = read(output)
    model, params = load_pretrained(folder / "encoder")
    tokenizer = train_tokenizer([*TEXTS, "s c r i p t"], vocab_size=44)
    first, second = (
        model.apply({"params": params}, np.asarray([tokenizer(text)["input_ids"]], np.int32)).pooled[0]
        for text in ("a small cat", "the large dog")
    )
    cosine = first @ second / jnp.linalg.norm(first) / jnp.linalg.norm(second)
    assert line["score"] == pytest.approx(float(cosine), abs=1e-5)
    assert line["target"] is None and line["probability"] is None and np.ptp(line["scores"]) > 1e-4


def test_a_report_shows_text_as_text_and_the_methods_agreement(folder, tmp_path):
    output = tmp_path / "report.html"
    text = "the <script>alert('x')</script> cat"
    given = ("--text", text, TEXTS[0], "--level", "word", "--target", "good", "--truncate")
    assert main(arguments(folder, *given, method="occlusion,attention,deeplift", output=output)) == 0
    page = output.read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert page.count("why good (probability") == 2 and "Kendall tau-b" in page
    assert "deeplift, completeness error" in page and "special token" in page
    assert method_names.TOKEN_METHODS["deeplift"].description.split(",")[0] in page.replace("&#39;", "'")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_terminal_shows_words_and_the_strongest(folder, capsys):
    given = arguments(folder, "--text", "the \x1b[31mcat", TEXTS[0], "--level", "word", method="occlusion,attention")
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "text 0: why" in shown and "text 1: why" in shown and "\x1b" not in shown
    assert "[CLS]" in shown and shown.count("strongest by occlusion: ") == 2 and "Kendall tau-b" in shown


def test_methods_are_listed_without_a_model(capsys):
    assert main(["attribute", "--methods"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}  " in shown for name in method_names.TOKEN_METHODS)


def test_an_interrupted_run_resumes_to_the_same_bytes(folder, whole, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted, match="--resume"):  # in the middle of the third window
        run(options_of(folder, output), tick=lambda tick: tick == 2 * 16 + 5)
    assert not output.exists()
    with pytest.raises(ValueError, match="begun by an earlier run; go on with --resume"):
        run(options_of(folder, output))
    part = tmp_path / "out.jsonl.part.0-of-1"
    assert len(part.read_text().splitlines()) == 2 * 8 * 2
    with open(part, "a") as file:  # a kill while lines of the next window are written
        file.write('{"method": "occlu')
    with pytest.raises(ValueError, match=r"another input, model or options \(level was token, is word\)"):
        run(options_of(folder, output, resume=True, level="word"))
    run(options_of(folder, output, resume=True))
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    part.write_text("")
    (tmp_path / "out.jsonl").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="begun by an earlier run"):
        run(options_of(folder, output))


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(folder, tmp_path):
    """SIGKILL right after a window; then the same command with --resume."""
    script = (
        "import os, signal, sys\n"
        "from jaxcore.__main__ import main\n"
        "from jaxcore.commands.line_file import LineFile\n"
        "write = LineFile.write\n"
        "def die(self, lines, widths):\n"
        "    write(self, lines, widths)\n"
        "    if self._done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LineFile.write = die\n"
        "main(sys.argv[1:])\n"
    )
    given = {"input": folder / "texts.jsonl", "window": 8, "method": "lime", "num_samples": 5}
    killed = subprocess.run(
        [sys.executable, "-c", script, *arguments(folder, output=tmp_path / "out.jsonl", **given)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for output, more in (("out.jsonl", ["--resume"]), ("whole.jsonl", [])):
        subprocess.run(
            [sys.executable, "-m", "jaxcore", *arguments(folder, *more, output=tmp_path / output, **given)],
            env=environment, check=True, timeout=200,
        )  # fmt: skip
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_processes_share_the_windows_of_one_file(tmp_path):
    path = tmp_path / "out.jsonl"
    both = [LineFile(path, num_rows=5, window=1, settings={}, resume=False, process=(index, 2)) for index in range(2)]
    assert [file.windows for file in both] == [[0, 1, 2], [3, 4]] and both[1].num_windows == 3
    for file in both:
        file.open()
        for window in file.windows:
            file.write([{"row": row} for row in file.rows(window)], (7,))
    with pytest.raises(ValueError, match="another number of processes"):
        LineFile(path, num_rows=5, window=1, settings={}, resume=True)
    again = LineFile(path, num_rows=5, window=1, settings={}, resume=True, process=(1, 2))
    assert again.windows == [] and again.widths == (7,)
    for file in reversed(both):
        file.finish()
    assert [line["row"] for line in read(path)] == [0, 1, 2, 3, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_weights_that_hold_nan_are_named(folder, tmp_path, capsys):
    model, params, labels = load_classifier(folder / "model")
    broken = {**params, "output": jax.tree.map(lambda leaf: leaf * jnp.nan, params["output"])}
    save_classifier(tmp_path / "model", model, broken, labels)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, tmp_path / "model" / name)
    assert main(arguments(folder, model=tmp_path / "model", text="a cat")) == 2
    assert "the score of text 0 is not finite" in capsys.readouterr().err


LONG = " ".join(["the"] * 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "--text is empty"),
        ({"text": " \n"}, "--text is empty"),
        ({"text": LONG}, "text 0 has 82 tokens, but the model reads 64: split it, or have it cut (--truncate)"),
        ({"text": None}, "give the text with --text, or a file of texts with --input: got neither"),
        ({"input": "{texts}"}, "got both"),
        ({"input": "{blank}", "text": None}, "blank.jsonl:2: field 'text' is blank"),
        ({"input": "/does/not/exist.txt", "text": None}, "no file at"),
        ({"model": None}, "name its folder or hub id with --model"),
        ({"model": "/does/not/exist"}, "/does/not/exist"),
        ({"model": "{encoder}"}, "is no sequence classifier"),
        ({"model": "{encoder}", "similar_to": LONG}, "--similar-to has 82 tokens"),
        ({"method": "occlusoin"}, "did you mean occlusion"),
        ({"method": ","}, "no attribution method given"),
        ({"target": "happy"}, "--target 'happy' is no label of the model: it has 3, bad, good, neither"),
        ({"target": "good", "versus": "evil"}, "--versus 'evil' is no label of the model"),
        ({"versus": "good"}, "needs --target"),
        ({"target": "good", "versus": "good"}, "name two different labels"),
        ({"target": "good", "similar_to": "a cat"}, "which has no classes"),
        ({"score": "loss"}, "score"),
        ({"num_steps": "-1"}, "--num-steps must not be negative"),
        ({"window": "0"}, "--window must be at least 1"),
        ({"output": "x.pdf"}, "--output must be terminal, or end in .html or .jsonl"),
        ({"output": "/does/not/exist/x.html"}, "its folder does not exist"),
        ({"output": "{exists}"}, "exists already"),
        ({"mesh.data": "3"}, "needs 3 devices, found 8"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys, changes, message):
    (tmp_path / "exists.html").write_text("")
    (tmp_path / "blank.jsonl").write_text('{"text": "a"}\n{"text": " "}\n')
    places = {
        "{exists}": tmp_path / "exists.html", "{blank}": tmp_path / "blank.jsonl", "{encoder}": folder / "encoder",
        "{texts}": folder / "texts.jsonl",
    }  # fmt: skip
    changes = {name: places.get(value, value) for name, value in changes.items()}
    assert main(arguments(folder, **{"text": "a cat", **changes})) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error


def test_a_text_without_a_token_of_its_own_is_named(folder):
    model, params, labels = load_classifier(folder / "model")
    explained = TextModel(model, params, load_tokenizer(folder / "model"), labels)
    windows = explain_windows(
        explained, [(7, ["a cat", ""])], options=AttributionOptions(("attention",)), mesh=make_mesh(MeshConfig())
    )
    with pytest.raises(ValueError, match="text 8 is empty: it has no token"):
        next(windows)


def test_resume_is_for_lines(folder, capsys):
    assert main(arguments(folder, "--resume", text="a cat")) == 2
    assert "--resume goes on with a .jsonl file" in capsys.readouterr().err


def test_texts_that_are_cut_say_so(folder, tmp_path):
    assert main(arguments(folder, "--truncate", text=LONG, method="attention", output=tmp_path / "x.jsonl")) == 0
    (line,) = read(tmp_path / "x.jsonl")
    assert line["truncated"] and len(line["tokens"]) == 64
