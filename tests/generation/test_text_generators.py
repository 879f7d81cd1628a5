"""Generators: a model's text is that of `complete`, seeds matter, scripts replay."""

import jax
import pytest

from jaxcore.data import train_tokenizer
from jaxcore.generation import Sampling, complete
from jaxcore.generation.text_generators import model_generator, scripted_generator
from jaxcore.models import Decoder, DecoderConfig


def test_scripts_answer_by_prompt_and_seed_and_name_what_they_lack():
    generate = scripted_generator({"one": "text", "two": ["first", "second"]})
    assert [generate("one", 5), generate("two", 0), generate("two", 1), generate("two", 2)] == [
        "text", "first", "second", "first"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no answer was recorded for the prompt 'three'"):
        generate("three", 0)


def test_a_model_answers_as_complete_does_with_the_seed_s_key():
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=300, kind="bpe")
    config = DecoderConfig(
        vocab_size=300, num_layers=1, hidden_size=8, num_heads=1, num_key_value_heads=1, head_size=8,
        intermediate_size=8, max_positions=64,
    )  # fmt: skip
    model = Decoder(config)
    params = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 2), int))["params"]
    options = {"max_new_tokens": 4, "strategy": Sampling(temperature=1.0)}
    generate = model_generator(model, params, tokenizer, **options)
    [[expected]] = complete(model, params, ["a b c"], tokenizer=tokenizer, key=jax.random.key(3), **options)
    assert generate("a b c", 3) == expected.text == generate("a b c", 3)
    assert len({generate("a b c", seed) for seed in range(4)}) > 1
