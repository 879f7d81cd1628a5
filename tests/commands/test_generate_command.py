"""`jaxcore generate`: the continuations of `complete`, as lines and on the terminal; kills and bad input."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import generate as command
from jaxcore.commands.generate_options import GenerateOptions, StrategyOptions
from jaxcore.data import load_tokenizer
from jaxcore.evaluation import Interrupted
from jaxcore.generation import STRATEGIES, complete, strategy_from_name
from jaxcore.generation.steering import SteeringVectors, load_steering, save_steering, steering_edits
from jaxcore.models import Decoder, DecoderConfig, Encoder, EncoderConfig, load_pretrained, save_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

WORDS = ("<end>", "the", "a", "cat", "dog", "sees", "hears", "small", "large", "house", "river", "\x1b[31mred")
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS[1:-1], size=1 + number % 5)) for number in range(7)]
COUNT = 6


def drawn(model, scale=0.4):
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def save_tokenizer(folder, words=WORDS):
    """One token per word; <end> ends a text and, as GPT-2's, stands for what is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>").save_pretrained(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny GPT-2, an encoder, a model of NaN, each with a tokenizer, and the prompts as records."""
    root = tmp_path_factory.mktemp("generate")
    sizes = {"vocab_size": len(WORDS), "num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}
    decoder = Decoder(DecoderConfig(num_key_value_heads=2, head_size=4, max_positions=24, **sizes))
    encoder = Encoder(EncoderConfig(max_positions=24, pooler="none", **sizes))
    save_pretrained(root / "model", decoder, drawn(decoder))
    save_pretrained(root / "broken", decoder, drawn(decoder, np.nan))
    save_pretrained(root / "encoder", encoder, drawn(encoder))
    for name in ("model", "broken", "encoder"):
        save_tokenizer(root / name)
    save_tokenizer(root / "larger", (*WORDS, "more"))
    save_pretrained(root / "ending", decoder, drawn(decoder))
    save_tokenizer(root / "ending")
    (root / "ending" / "generation_config.json").write_text('{"eos_token_id": [3, 0, 5], "temperature": 0.1}')
    save_tokenizer(root / "swapped", (*WORDS[1:], WORDS[0]))
    for name, rows, words in (("padded", 16, WORDS), ("stranger", 12, sorted(WORDS)), ("bare", 16, ())):
        draft = Decoder(dataclasses.replace(decoder.config, vocab_size=rows))
        save_pretrained(root / name, draft, drawn(draft))
        if words:
            save_tokenizer(root / name, words)
    save_steering(root / "v.safetensors", SteeringVectors(3 * RNG.normal(size=(1, 8)), layers=(0,), num_layers=1))
    save_steering(root / "wide.safetensors", SteeringVectors(np.ones((1, 9)), layers=(0,), num_layers=1))
    records = [json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)]
    (root / "prompts.jsonl").write_text("".join(records))
    return root


def options_of(folder, output, **more):
    given = {"strategy": "sampling", "num_samples": 2, "batch_size": 3, "max_new_tokens": COUNT, "seed": 5, **more}
    return GenerateOptions(model=str(folder / "model"), input=str(folder / "prompts.jsonl"), output=output, **given)


def arguments(folder, *more, **changes):
    given = {"model": folder / "model", "max_new_tokens": COUNT, **changes}
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None)
    return ["generate", *itertools.chain.from_iterable(named), *more]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def completed(folder, texts, stop_tokens=(0,), **more):
    model, params = load_pretrained(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    options = {"tokenizer": tokenizer, "max_new_tokens": COUNT, "stop_tokens": stop_tokens, **more}
    return complete(model, params, texts, **options)


def check_lines(lines, texts, expected):
    pairs = [(text, number, item) for text, row in zip(texts, expected, strict=True) for number, item in enumerate(row)]
    for line, (text, number, item) in zip(lines, pairs, strict=True):
        assert list(line) == ["prompt", "sample", "text", "tokens", "log_prob", "stopped"]
        assert (line["prompt"], line["sample"], line["text"]) == (text, number, item.text)
        assert (line["tokens"], line["stopped"]) == (item.tokens, item.stopped)
        assert line["log_prob"] == pytest.approx(item.log_probs.sum(), abs=1e-4)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The file of an uninterrupted run: seven prompts of two samples, three prompts at a time."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    command.generate(options_of(folder, output))
    return output


def test_samples_are_those_of_complete_with_a_key_per_batch(folder, whole):
    lines, key, expected = read(whole), jax.random.key(5), []
    for start in (0, 3, 6):
        texts = TEXTS[start : start + 3]
        filled = [*texts, *texts[:1] * (3 - len(texts))]
        found = completed(
            folder, filled, strategy=strategy_from_name("sampling"), num_samples=2, key=jax.random.fold_in(key, start)
        )
        expected += found[: len(texts)]
    check_lines(lines, TEXTS, expected)
    assert {line["stopped"] for line in lines} == {True, False}
    assert all((line["tokens"][-1] == 0) == line["stopped"] for line in lines)
    assert any(first["tokens"] != second["tokens"] for first, second in zip(lines[::2], lines[1::2], strict=True))


def test_contrastive_search_with_options_and_other_stops(folder, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    given = ("--k", "3", "--alpha", "0.4", "--stop-text", "dog", "--stop-text", "<end>", "--stop-tokens", "9", "3")
    prompts = [word for text in TEXTS for word in ("--prompt", text)]
    assert main(arguments(folder, *given, *prompts, strategy="contrastive_search", output=output)) == 0
    expected = completed(folder, TEXTS, (9, 3, 4, 0), strategy=strategy_from_name("contrastive_search", k=3, alpha=0.4))
    check_lines(read(output), TEXTS, expected)
    assert {line["tokens"][-1] for line in read(output) if line["stopped"]} & {3, 4, 9}  # words, not the end alone
    assert capsys.readouterr().out == f"{output}: 7 lines, 7 prompts x 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_steered_lines_of_a_model_in_parts_are_those_of_complete(folder, tmp_path):
    """Weights over eight devices (fsdp), prompts too; another strength is another file."""
    output, vectors = tmp_path / "out.jsonl", folder / "v.safetensors"
    given = {"input": folder / "prompts.jsonl", "vectors": vectors, "strategy": "contrastive_search", "k": 3}
    split = ("--mesh.data", "1", "--mesh.fsdp", "-1")
    assert main(arguments(folder, *split, strength=2, output=output, **given)) == 0
    strategy = strategy_from_name("contrastive_search", k=3)
    edits = steering_edits(load_steering(vectors), 2.0)
    check_lines(read(output), TEXTS, completed(folder, TEXTS, strategy=strategy, edits=edits))
    plain = [row[0].tokens for row in completed(folder, TEXTS, strategy=strategy)]
    assert [line["tokens"] for line in read(output)] != plain
    again = options_of(folder, tmp_path / "again.jsonl", vectors=str(vectors), strength=2.0)
    with pytest.raises(Interrupted):
        command.generate(again, tick=lambda tick: tick == 0)
    with pytest.raises(ValueError, match=r"\(vectors was [0-9a-f]{64}, strength 2.0, is [0-9a-f]{64}, strength 1.0\)"):
        command.generate(dataclasses.replace(again, strength=1.0, resume=True))


def test_a_message_is_put_into_the_chat_template(folder, tmp_path, capsys):
    """The template's own special token, and no second one; a tokenizer without a template is refused."""
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.chat_template = "{% for turn in messages %}house {{ turn.content }} river{% endfor %}"
    tokenizer.save_pretrained(str(tmp_path / "chat"))
    output, given = tmp_path / "out.jsonl", ("--chat", "--prompt", "the cat")
    assert main(arguments(folder, *given, output=output, tokenizer=tmp_path / "chat")) == 0
    (line,) = read(output)
    assert line["prompt"] == "the cat"
    assert line["tokens"] == completed(folder, ["house the cat river"])[0][0].tokens
    assert line["tokens"] != completed(folder, ["the cat"])[0][0].tokens
    assert main(arguments(folder, *given)) == 2
    assert "the tokenizer has no chat template" in capsys.readouterr().err


def test_an_assistant_drafts_and_changes_nothing(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    given = {"input": folder / "prompts.jsonl", "assistant": folder / "model", "num_draft_tokens": 2}
    assert main(arguments(folder, strategy="speculative_decoding", output=output, **given)) == 0
    check_lines(read(output), TEXTS, completed(folder, TEXTS))


@pytest.mark.parametrize("name", ["padded", "bare"])
def test_an_assistant_whose_table_is_padded_otherwise(folder, tmp_path, name):
    """With the same tokenizer, or without one of its own."""
    output = tmp_path / "out.jsonl"
    given = {"input": folder / "prompts.jsonl", "assistant": folder / name, "num_draft_tokens": 2}
    assert main(arguments(folder, strategy="speculative_decoding", output=output, **given)) == 0
    check_lines(read(output), TEXTS, completed(folder, TEXTS))


def test_texts_end_as_generation_config_says(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    given = {"model": folder / "ending", "input": folder / "prompts.jsonl", "output": output}
    assert main(arguments(folder, **given)) == 0
    expected = completed(folder, TEXTS, (3, 0, 5))
    check_lines(read(output), TEXTS, expected)
    assert {row[0].tokens[-1] for row in expected if row[0].stopped} & {3, 5}


def test_the_terminal_shows_prompt_and_text_and_obeys_neither(folder, capsys):
    texts = ["the cat", "\x1b[31mred house"]
    assert main(arguments(folder, "--prompt", texts[0], "--prompt", texts[1], strategy="beam", num_samples=2)) == 0
    shown = "\n" + capsys.readouterr().out
    expected = completed(folder, texts, strategy=strategy_from_name("beam"), num_samples=2)
    assert "\x1b" not in shown
    for prompt, items in zip(texts, expected, strict=True):
        assert shown.count("\n" + prompt.replace("\x1b", "\ufffd") + "\n") == 1
        for number, item in enumerate(items):
            assert f"\n{item.text}\n".replace("\x1b", "\ufffd") in shown
            assert f"sample {number}: {len(item.tokens)} tokens, log probability {item.log_probs.sum():.2f}, " in shown


def test_an_interrupted_run_resumes_to_the_same_bytes(folder, whole, tmp_path):
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part.0-of-1"
    with pytest.raises(Interrupted, match="--resume"):  # behind the second of three batches
        command.generate(options_of(folder, output), tick=lambda tick: tick == 1)
    assert not output.exists() and len(part.read_text().splitlines()) == 2 * 3 * 2
    with open(part, "ab") as file:  # a kill while lines of the third are written: the file ends within one
        file.write(whole.read_bytes()[part.stat().st_size :][:20])
    with pytest.raises(ValueError, match="begun by an earlier run; go on with --resume"):
        command.generate(options_of(folder, output))
    with pytest.raises(ValueError, match=r"another input, model or options \(seed was 5, is 6\)"):
        command.generate(options_of(folder, output, resume=True, seed=6))
    with pytest.raises(ValueError, match=r"\(options was , is temperature=0.5\)"):
        command.generate(options_of(folder, output, resume=True, decoding=StrategyOptions(temperature=0.5)))
    command.generate(options_of(folder, output, resume=True))
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_resumed_run_does_only_what_is_left(folder, whole, tmp_path, monkeypatch):
    output, calls = tmp_path / "out.jsonl", []
    with pytest.raises(Interrupted):
        command.generate(options_of(folder, output), tick=lambda tick: tick == 0)
    monkeypatch.setattr(command, "complete", lambda *args, **more: calls.append(args) or complete(*args, **more))
    command.generate(options_of(folder, output, resume=True))
    assert len(calls) == 2 and output.read_bytes() == whole.read_bytes()


def test_strategies_are_listed_and_all_their_options_exist(capsys):
    assert main(["generate", "--strategies"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in STRATEGIES)
    taken = {option for named in STRATEGIES.values() for option in named.options}
    assert taken == set(StrategyOptions.__dataclass_fields__)


LONG = " ".join(["the"] * 19)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "give a prompt with --prompt, or a file of prompts with --input: got neither"),
        ({"input": "{prompts}"}, "got both"),
        ({"prompt": " \n"}, "empty prompt: --prompt 0"),
        ({"prompt": LONG}, "prompt 0 has 19 tokens, but with 6 new ones only 18 fit the model's context of 24"),
        ({"max_new_tokens": "24"}, "leaves no room for a prompt in the model's context of 24"),
        ({"max_new_tokens": "0"}, "--max-new-tokens must be at least 1: got 0"),
        ({"seed": "-1"}, "--seed must be in 0 to 4294967295: got -1"),
        ({"model": None}, "name its folder or hub id with --model"),
        ({"model": "/does/not/exist"}, "/does/not/exist"),
        ({"model": "{encoder}"}, "is no decoder but an encoder (bert)"),
        ({"model": "{broken}"}, "log probabilities of prompt 0 are not finite"),
        ({"tokenizer": "{larger}"}, "the tokenizer has 13 tokens, but the model's vocabulary 12"),
        ({"model": "{ending}", "tokenizer": "{swapped}"}, "ends texts with token 3, which is the ordinary 'dog' to"),
        (
            {"strategy": "speculative", "assistant": "{stranger}"},
            "must share one vocabulary, but token 1 is 'the' to the model's tokenizer and '<end>' to the assistant's",
        ),
        ({"strategy": "contrastive_serch"}, "did you mean contrastive_search"),
        ({"k": "4"}, "greedy has no option 'k'; its options are: none (jaxcore generate --strategies"),
        ({"temprature": "4"}, "unknown option --temprature: did you mean --temperature"),
        ({"qqqq": "4"}, "unknown option --qqqq: jaxcore generate --help lists all"),
        ({"k": "four"}, "Error parsing --k"),
        ({"strategy": "contrastive_search", "k": "0"}, "k must be a whole number of 1 or more, got 0"),
        ({"strategy": "contrastive_search", "k": "13"}, "k must be at most the 12 tokens of the vocabulary, got 13"),
        ({"strategy": "contrastive_search", "alpha": "1.5"}, "alpha must be in [0, 1], got 1.5"),
        ({"num_samples": "2"}, "Greedy gives the same text every time: num_samples must be 1, got 2"),
        ({"strategy": "speculative"}, "speculative needs a second model: name its folder or hub id with --assistant"),
        ({"assistant": "{encoder}"}, "greedy has no use for --assistant"),
        ({"strategy": "speculative", "assistant": "{encoder}"}, "is no decoder but an encoder"),
        ({"stop_text": "the cat"}, "--stop-text 'the cat' is 2 tokens to the tokenizer"),
        ({"stop_text": "whale"}, "--stop-text 'whale' is unknown to the tokenizer"),
        ({"stop_tokens": "12"}, "stop token 12 is outside the model's vocabulary, 0 to 11"),
        ({"output": "x.html"}, "--output must be terminal, or end in .jsonl: got x.html"),
        ({"output": "/does/not/exist/x.jsonl"}, "its folder does not exist"),
        ({"output": "{exists}"}, "exists already"),
        ({"resume": ""}, "--resume goes on with a .jsonl file"),
        ({"vectors": "{wide}"}, "vectors (9,) at layer_output of a model with 1 layers"),
        ({"vectors": "{absent}"}, "no such file"),
        ({"strength": "inf"}, "--strength must be a finite number: got inf"),
        ({"mesh.data": "3"}, "needs 3 devices, found 8"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys, changes, message):
    (tmp_path / "exists.jsonl").write_text("")
    names = ("encoder", "broken", "larger", "ending", "swapped", "stranger")
    places = {"{exists}": tmp_path / "exists.jsonl", "{prompts}": folder / "prompts.jsonl"}
    places |= {"{wide}": folder / "wide.safetensors", "{absent}": folder / "absent.safetensors"}
    places |= {f"{{{name}}}": folder / name for name in names}
    changes = {name: places.get(value, value) for name, value in changes.items()}
    given = [word for word in arguments(folder, **{"prompt": "a cat", **changes}) if word]
    assert main(given) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error


def test_a_prompt_too_long_is_found_before_anything_is_generated(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("a cat\n" * 3 + LONG + "\n")
    monkeypatch.setattr(command, "load_for_decoding", lambda *args, **more: pytest.fail("weights were read"))
    given = {"input": tmp_path / "prompts.txt", "output": tmp_path / "out.jsonl", "batch_size": 1}
    assert main(arguments(folder, **given)) == 2
    assert "prompt 3 has 19 tokens" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]
