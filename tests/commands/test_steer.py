"""`jaxcore steer`: vectors of every method from pairs, texts under them beside the model's own, bad input."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.__main__ import main
from jaxcore.commands import steer as command
from jaxcore.commands.steer_options import SteerOptions
from jaxcore.data import load_tokenizer
from jaxcore.data.preference_pairs import encode_pairs, read_preference_pairs
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.steering_bench import SteeringBench, steering_programs, steering_vectors
from jaxcore.generation import complete
from jaxcore.generation.steering import SteeringVectors, load_steering, save_steering, steering_edits
from jaxcore.models import Decoder, DecoderConfig, Encoder, EncoderConfig, load_pretrained, save_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

WORDS = ("<end>", "the", "a", "cat", "dog", "sees", "hears", "small", "large", "house", "river", "\x1b[31mred")
RNG = np.random.default_rng(0)
COUNT = 6
SIZES = {"vocab_size": len(WORDS), "num_layers": 2, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}
ONE = MeshConfig(data=1, fsdp=1)


def drawn(model, scale=0.4):
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def save_tokenizer(folder, words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>").save_pretrained(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny GPT-2, an encoder, each with a tokenizer; seven pairs; vectors of either width."""
    root = tmp_path_factory.mktemp("steer")
    decoder = Decoder(DecoderConfig(num_key_value_heads=2, head_size=4, max_positions=24, **SIZES))
    encoder = Encoder(EncoderConfig(max_positions=24, pooler="none", **SIZES))
    save_pretrained(root / "model", decoder, drawn(decoder))
    save_pretrained(root / "encoder", encoder, drawn(encoder))
    for name in ("model", "encoder"):
        save_tokenizer(root / name)
    save_tokenizer(root / "larger", (*WORDS, "more"))
    texts = [" ".join(RNG.choice(WORDS[1:-1], size=2 + number % 3)) for number in range(7)]
    answers = [("house", "river"), ("small dog", "large"), ("cat", "dog sees a")]
    pairs = [
        {"prompt": text, "chosen": chosen, "rejected": rejected}
        for text, (chosen, rejected) in zip(texts, itertools.cycle(answers), strict=False)
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (root / "equal.jsonl").write_text(json.dumps({**pairs[0], "rejected": pairs[0]["chosen"]}) + "\n")
    (root / "lacking.jsonl").write_text(json.dumps(pairs[0]) + "\n" + json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
    (root / "long.jsonl").write_text(json.dumps({**pairs[0], "prompt": " ".join(["the"] * 24)}) + "\n")
    (root / "prompts.txt").write_text("the cat\na large dog\nriver\n")
    shifts = RNG.normal(size=(2, 8))
    save_steering(root / "v.safetensors", SteeringVectors(3 * shifts, layers=(0, 1), num_layers=2))
    save_steering(root / "wide.safetensors", SteeringVectors(np.ones((1, 9)), layers=(0,), num_layers=2))
    return root


def arguments(folder, *more, **changes):
    given = {"model": folder / "model", **changes}
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None)
    return ["steer", *itertools.chain.from_iterable(named), *more]


@pytest.fixture(scope="module")
def bench(folder):
    model, params = load_pretrained(folder / "model", config_overrides={"remat": "full"})
    programs = steering_programs(model, make_mesh(ONE, jax.devices()[:1]), num_steps=3)
    rows = encode_pairs(read_preference_pairs(folder / "pairs.jsonl"), load_tokenizer(folder / "model"))
    return SteeringBench(programs, params, batch_size=4, fill=0), rows


def test_vectors_are_those_of_the_library_and_steer_towards_the_chosen_responses(folder, bench, tmp_path, capsys):
    """On eight devices as on one."""
    output = tmp_path / "g.safetensors"
    given = {"pairs": folder / "pairs.jsonl", "output": output, "num_steps": 3, "k": 2, "layers": "all"}
    assert main(arguments(folder, "--aggregate", "mean", **given)) == 0
    assert capsys.readouterr().out == f"{output}: grains from 7 pairs, layers 0, 1\n"
    found = load_steering(output, bench[0].config)
    expected = steering_vectors(*bench, layers=(0, 1), k=2, aggregate="mean")
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=2e-3)
    lengths = np.linalg.norm(found.vectors, axis=1)
    np.testing.assert_allclose(lengths, bench[0].mean_lengths(bench[1]), rtol=1e-3)
    assert (
        found.method == "grains"
        and found.norm_preserving
        and [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]
    )


def completed(folder, texts, strength):
    model, params = load_pretrained(folder / "model")
    steering = load_steering(folder / "v.safetensors")
    options = {"tokenizer": load_tokenizer(folder / "model"), "max_new_tokens": COUNT, "stop_tokens": (0,)}
    return [row[0] for row in complete(model, params, texts, edits=steering_edits(steering, strength), **options)]


def test_texts_under_vectors_stand_beside_the_models_own(folder, tmp_path, capsys):
    output, texts = tmp_path / "out.jsonl", ["the cat", "a large dog", "river"]
    given = {"vectors": folder / "v.safetensors", "strength": 2, "max_new_tokens": COUNT}
    assert main(arguments(folder, input=folder / "prompts.txt", output=output, **given)) == 0
    assert capsys.readouterr().out == f"{output}: 3 lines\n"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    model, params = load_pretrained(folder / "model")
    options = {"tokenizer": load_tokenizer(folder / "model"), "max_new_tokens": COUNT, "stop_tokens": (0,)}
    plain = [row[0] for row in complete(model, params, texts, **options)]  # no edit at all
    steered = completed(folder, texts, 2.0)
    assert [line["prompt"] for line in lines] == texts
    assert [line["unsteered"] for line in lines] == [item.text for item in plain]
    assert [(line["text"], line["tokens"]) for line in lines] == [(item.text, item.tokens) for item in steered]
    assert any(before.text != after.text for before, after in zip(plain, steered, strict=True))
    assert list(lines[0]) == ["prompt", "text", "unsteered", "strength", "tokens"] and lines[0]["strength"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_terminal_shows_both_and_obeys_neither(folder, capsys):
    given = {"vectors": folder / "v.safetensors", "strength": 2, "max_new_tokens": COUNT}
    assert main(arguments(folder, prompt="\x1b[31mred cat", **given)) == 0
    shown = capsys.readouterr().out
    before, after = (completed(folder, ["\x1b[31mred cat"], strength)[0].text for strength in (0.0, 2.0))
    assert "\x1b" not in shown
    expected = f"unsteered:\n{before}\nsteered, strength 2:\n{after}\n".replace("\x1b", "\ufffd")
    assert shown.startswith("\ufffd[31mred cat\n") and expected in shown


PAIRS = {"pairs": "{pairs}", "output": "{new}"}
APPLY = {"vectors": "{v}", "prompt": "a cat"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give --pairs to build vectors, or --vectors to generate under them: got neither"),
        ({**PAIRS, "vectors": "{v}"}, "got both"),
        ({**PAIRS, "model": None}, "name its folder or hub id with --model"),
        ({**PAIRS, "model": "{encoder}"}, "is no decoder but an encoder (bert)"),
        ({**PAIRS, "output": "x.npz"}, "ending in .safetensors: got x.npz"),
        ({**PAIRS, "output": "{v}"}, "exists already"),
        ({**PAIRS, "layers": "2"}, "layer 2 is outside the model, whose layers are 0 to 1"),
        ({**PAIRS, "prompt": "a"}, "prompts are for --vectors"),
        ({**PAIRS, "k": "0"}, "--k must be at least 1: got 0"),
        ({**PAIRS, "num_pairs": "-1"}, "--num-pairs must not be negative"),
        ({**PAIRS, "batch_size": "3"}, "global batch 3 does not divide over 8"),
        ({**PAIRS, "pairs": "{equal}"}, "record 1: chosen and rejected are equal ('small dog')"),
        ({**PAIRS, "pairs": "{lacking}"}, "lacking.jsonl:2: missing field 'rejected'"),
        ({**PAIRS, "pairs": "{long}"}, "do not fit the model's context of 24"),
        ({**PAIRS, "tokenizer": "{larger}"}, "the tokenizer has 13 tokens, but the model's vocabulary 12"),
        ({**PAIRS, "method": "steer"}, "steer"),
        ({**APPLY, "vectors": "{wide}"}, "vectors (9,) at layer_output of a model with 2 layers"),
        ({**APPLY, "vectors": "{pairs}"}, "not a readable file of steering vectors"),
        ({**APPLY, "prompt": None}, "give a prompt with --prompt, or a file of prompts with --input: got neither"),
        ({**APPLY, "prompt": " "}, "empty prompt: --prompt 0"),
        ({**APPLY, "output": "x.html"}, "--output must be terminal, or end in .jsonl: got x.html"),
        ({**APPLY, "temperature": "-1"}, "--temperature must not be negative"),
        ({**APPLY, "strength": "inf"}, "--strength must be a finite number"),
        ({**APPLY, "max_new_tokens": "24"}, "only"),
        ({**APPLY, "strenght": "1"}, "unknown option --strenght: did you mean --strength"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys, changes, message):
    places = {f"{{{name}}}": folder / name for name in ("encoder", "larger")}
    places |= {f"{{{name}}}": folder / f"{name}.jsonl" for name in ("pairs", "equal", "lacking", "long")}
    places |= {f"{{{name}}}": folder / f"{name}.safetensors" for name in ("v", "wide")}
    places["{new}"] = tmp_path / "new.safetensors"
    given = {name: places.get(value, value) for name, value in changes.items()}
    if changes.get("pairs") == "{equal}":
        message = message.replace("'small dog'", repr(json.loads((folder / "equal.jsonl").read_text())["chosen"]))
    assert main(arguments(folder, **given)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error
    assert not list(tmp_path.iterdir())


def test_pairs_are_drawn_by_the_seed_and_kept_in_order(folder):
    def drawn_pairs(**more):
        return command._read_pairs(SteerOptions(pairs=str(folder / "pairs.jsonl"), **more))

    everything = drawn_pairs(num_pairs=0)
    assert len(everything) == 7 and drawn_pairs() == everything
    some = drawn_pairs(num_pairs=3, seed=1)
    assert some == drawn_pairs(num_pairs=3, seed=1) != drawn_pairs(num_pairs=3, seed=2)
    places = [everything.index(pair) for pair in some]
    assert len(places) == 3 and places == sorted(places)
