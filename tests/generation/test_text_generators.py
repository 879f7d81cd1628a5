"""Generators: batches answer as prompts by themselves, seeds matter, scripts and rules replay."""

import jax
import pytest

from jaxcore.data import train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.generation import Sampling, complete
from jaxcore.generation.text_generators import model_generator, rule_generator, scripted_generator
from jaxcore.models import Decoder, DecoderConfig

PROMPTS = ["a b c", "h", "d e f g h a b c d e f g h a b c d e", "c c", "b a"]


@pytest.fixture(scope="module")
def decoder():
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=300, kind="bpe")
    config = DecoderConfig(
        vocab_size=300, num_layers=1, hidden_size=8, num_heads=1, num_key_value_heads=1, head_size=8,
        intermediate_size=8, max_positions=64, initializer_range=0.5,
    )  # fmt: skip
    model = Decoder(config)
    params = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 2), int))["params"]
    return model, params, tokenizer


def test_scripts_answer_by_prompt_and_seed_and_name_what_they_lack():
    generate = scripted_generator({"one": "text", "two": ["first", "second"]})
    assert generate(["one", "two"], 0) == ["text", "first"] and generate(["two", "one"], 1) == ["second", "text"]
    with pytest.raises(ValueError, match="no answer was recorded for the prompt 'three'"):
        generate(["one", "three"], 0)
    assert rule_generator(lambda prompt, seed: f"{prompt}{seed}")(["a", "b"], 3) == ["a3", "b3"]


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, fsdp=2)])
def test_batches_answer_as_prompts_one_at_a_time(decoder, mesh):
    """Prompts of different length, three to a batch of one width, the last batch filled up."""
    on_mesh = None if mesh is None else make_mesh(mesh)
    alone = model_generator(*decoder, max_new_tokens=4, batch_size=1)
    together = model_generator(*decoder, max_new_tokens=4, batch_size=3, mesh=on_mesh)
    expected = [text for prompt in PROMPTS for text in alone([prompt], 0)]
    assert together(PROMPTS, 0) == expected and len(set(expected)) > 2
    assert together(PROMPTS[::-1], 0) == expected[::-1] and together([], 0) == []


def test_any_number_of_prompts_of_a_width_runs_one_program(decoder, monkeypatch):
    from jaxcore.generation import completions

    rows = []

    def counted(model, params, input_ids, *given, **options):
        rows.append(input_ids.shape)
        return generate(model, params, input_ids, *given, **options)

    generate = completions.generate
    monkeypatch.setattr(completions, "generate", counted)
    answer = model_generator(*decoder, max_new_tokens=4, batch_size=3)
    for count in (1, 2, 4):
        answer(["a b"] * count, 0)
    assert rows == [(3, 16)] * 4


def test_a_seed_is_a_key(decoder):
    model, params, tokenizer = decoder
    options = {"max_new_tokens": 4, "strategy": Sampling(temperature=1.0), "batch_size": 1}
    generate = model_generator(*decoder, **options)
    [[expected]] = complete(model, params, ["a b c"], tokenizer=tokenizer, key=jax.random.key(3), **options)
    assert generate(["a b c"], 3) == [expected.text] == generate(["a b c"], 3)
    assert len({generate(["a b c"], seed)[0] for seed in range(4)}) > 1


def test_one_text_in_place_of_a_list_and_empty_batches_are_refused(decoder):
    with pytest.raises(ValueError, match="got the one text 'a b'"):
        model_generator(*decoder)("a b", 0)
    with pytest.raises(ValueError, match="batch_size"):
        model_generator(*decoder, batch_size=0)
