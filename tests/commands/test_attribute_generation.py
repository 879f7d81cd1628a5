"""`jaxcore attribute` of a decoder: lines, page, terminal; given and generated continuations; kills; bad input."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import attribute as command
from jaxcore.commands.attribute_options import AttributeOptions
from jaxcore.commands.line_file import LineFile
from jaxcore.data import load_tokenizer
from jaxcore.evaluation import Interrupted
from jaxcore.evaluation.generation_attribution import (
    ContinuationOptions,
    LanguageModel,
    by_segment,
    explain_continuations,
    given_continuation,
)
from jaxcore.models import Decoder, DecoderConfig, Encoder, EncoderConfig, load_pretrained, save_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

WORDS = ("<end>", "the", "a", "cat", "dog", "sees", "hears", "small", "large", "house", "\x1b[31mred")
TEXTS = ["the small cat", "a dog hears", "the house", "a large dog sees the"]


def drawn(model):
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny GPT-2 and an encoder, each with a tokenizer of one token per word, and the prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("attribute-generation")
    sizes = {"vocab_size": len(WORDS), "num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}
    decoder = Decoder(DecoderConfig(num_key_value_heads=2, head_size=4, max_positions=16, **sizes))
    encoder = Encoder(EncoderConfig(max_positions=16, pooler="mean", **sizes))
    table = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<end>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, eos_token="<end>", unk_token="<end>")
    for name, model in (("model", decoder), ("encoder", encoder)):
        save_pretrained(root / name, model, drawn(model))
        tokenizer.save_pretrained(str(root / name))
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return root


def arguments(folder, *more, **changes):
    given = {"model": folder / "model", "method": "occlusion", **changes}
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None)
    return ["attribute", *itertools.chain.from_iterable(named), *more]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder, output, *, tick=lambda step: False, **more):
    """In this process, on one device, windows of two texts."""
    given = {"method": "occlusion", "max_new_tokens": 3, "window": 32, "level": "word", **more}
    given = {"input": str(folder / "texts.jsonl"), **given} if "text" not in given else given
    options = AttributeOptions(model=str(folder / "model"), output=output, **given)
    command.attribute(options, tick=tick, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The file of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    run(folder, output)
    return output


def test_lines_explain_what_the_model_writes(folder, whole, capsys):
    lines = read(whole)
    assert [(line["index"], line["prompt"]) for line in lines] == list(enumerate(TEXTS))
    model, params = load_pretrained(folder / "model")
    explained = LanguageModel(model, params, load_tokenizer(folder / "model"))
    for line in (lines[0], lines[3]):
        assert line["generated"] and line["score"] == "log_probability" and line["versus"] is None
        ids = explained.tokenizer(line["prompt"])["input_ids"]
        for word, log_probability in zip(line["targets"], line["log_probabilities"], strict=True):
            logits = np.asarray(model.apply({"params": params}, np.asarray([ids])).logits[0, -1], np.float64)
            best = int(logits.argmax())
            assert WORDS[best] == word.strip()  # greedy
            assert log_probability == pytest.approx(logits[best] - np.logaddexp.reduce(logits), abs=1e-4)
            ids.append(best)
    item = given_continuation(explained, lines[3]["prompt"], lines[3]["continuation"])
    (expected,) = explain_continuations(explained, [item], ContinuationOptions(("occlusion",)))
    found = by_segment(expected, "word")
    np.testing.assert_allclose(lines[3]["attributions"], found.methods["occlusion"], atol=1e-5)
    assert tuple(lines[3]["sources"]) == found.sources


def test_an_interrupted_run_resumes_to_the_same_bytes(folder, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted, match="--resume"):
        run(folder, output, tick=lambda tick: tick == 0)
    assert not output.exists() and len(read(tmp_path / "out.jsonl.part.0-of-1")) == 2
    with pytest.raises(ValueError, match=r"another input, model or options \(max_new_tokens was 3, is 2\)"):
        run(folder, output, resume=True, max_new_tokens=2)
    run(folder, output, resume=True)
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_message_in_the_chat_template(folder, tmp_path):
    """Tokens of the template are special: none of the text, but attributed to like those of the whole as a prompt."""
    shutil.copytree(folder / "model", tmp_path / "model")
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.chat_template = "a {{ messages[0].content | trim }} dog"
    tokenizer.save_pretrained(str(tmp_path / "model"))
    run(tmp_path, tmp_path / "chat.jsonl", text=(" the small cat",), chat=True)
    run(tmp_path, tmp_path / "plain.jsonl", text=("a the small cat dog",))
    (chat,), (plain,) = read(tmp_path / "chat.jsonl"), read(tmp_path / "plain.jsonl")
    assert chat["prompt"] == " the small cat" and chat["continuation"] == plain["continuation"]
    assert chat["sources"][:5] == ["a", "the", "small", "cat", "dog"]
    assert chat["source_offsets"][:5] == [[1, 1], [1, 4], [5, 10], [11, 14], [14, 14]]
    assert chat["attributions"] == plain["attributions"]
    run(tmp_path, tmp_path / "given.jsonl", text=(" the small cat",), continuation=(chat["continuation"],), chat=True)
    (given,) = read(tmp_path / "given.jsonl")
    assert given["attributions"] == chat["attributions"]
    with pytest.raises(ValueError, match="text 0: the tokenizer has no chat template"):
        run(folder, tmp_path / "none.jsonl", text=("a dog",), continuation=(" a",), chat=True)


def test_a_given_continuation_and_its_contrast(folder, tmp_path, capsys):
    output = tmp_path / "page.html"
    given = {
        "text": ("the <b>cat</b>", "a dog"),
        "continuation": (" sees a", " hears"),
        "contrast": (" a a", " \x1b[31mred"),
    }
    run(folder, output, method="occlusion,attention", **given)
    page = output.read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;cat" in page and "rather than" in page and "continuation given" in page
    assert "2 texts x 2 methods" in capsys.readouterr().out
    run(folder, "terminal", method="occlusion", **given)
    shown = capsys.readouterr().out
    assert "strongest by occlusion" in shown and "rather than" in shown and "\x1b" not in shown


def test_barriers_are_named_after_the_command(tmp_path):
    names = []
    file = LineFile(
        tmp_path / "x.jsonl", num_rows=1, window=1, settings={}, resume=False, barrier=names.append, command="embed"
    )
    file.open()
    file.write([{"a": 1}], (1,))
    file.finish()
    assert names == ["embed begins", "embed windows done", "embed file named"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "\n"}, "--text is empty"),
        ({"method": "value_zeroin"}, "did you mean value_zeroing"),
        ({"continuation": " \n"}, "text 0: the continuation has no token"),
        ({"continuation": " sees the", "contrast": " hears"}, "text 0: the contrast ' hears' has 1 tokens"),
        ({"continuation": " sees" * 16}, "text 0: prompt and continuation have 2 + 16 tokens, but the model's context"),
        ({"strategy": "greedi"}, "did you mean greedy"),
        ({"strategy": "contrastive_decoding"}, "needs a second model"),
        ({"top_k": "3"}, "greedy has no option 'top_k'"),
        ({"max_new_tokens": "0"}, "--max-new-tokens must be at least 1"),
        ({"target": "good"}, "--target is for classifiers and encoders"),
        ({"similar_to": "a cat"}, "--similar-to is for classifiers and encoders"),
        ({"model": "{encoder}", "similar_to": "a cat", "level": "sentence"}, "--level sentence is for decoders"),
        ({"model": "{encoder}", "similar_to": "a cat", "contrast": "a"}, "--contrast is for decoders"),
        ({"text_pair": "a dog"}, "--text-pair is for classifiers and encoders"),
        ({"method": "dig"}, "discretised_integrated_gradients is for classifiers and encoders, but"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, changes, message):
    changes = {name: folder / "encoder" if value == "{encoder}" else value for name, value in changes.items()}
    assert main(arguments(folder, **{"text": "a cat", **changes})) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error


def test_an_encoder_has_no_chat(folder, capsys):
    given = {"model": folder / "encoder", "text": "a cat", "similar_to": "a dog"}
    assert main(arguments(folder, "--chat", **given)) == 2
    assert "--chat is for decoders" in capsys.readouterr().err


def test_one_continuation_for_each_text(folder, capsys):
    assert main(arguments(folder, "--text", "a cat", "a dog", "--continuation", " sees")) == 2
    assert "give one --continuation for each --text: got 1 for 2 texts" in capsys.readouterr().err
