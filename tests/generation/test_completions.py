"""From lists or texts to lists or texts."""

from typing import Any

import jax
import numpy as np
import pytest
from decoding_references import PROMPTS, VOCABULARY, greedy_loop

from jaxcore.distributed import MeshConfig, make_mesh, tree_shardings
from jaxcore.generation import Sampling, complete, generate
from jaxcore.generation.generate import _program
from jaxcore.models import load_pretrained, unstack_layers

COUNT = 6
LENGTHS = (4, 1, 7, 16, 3, 5, 2)


class Letters:
    """A tokenizer of single letters with the calls that are used of transformers' own."""

    eos_token_id = None

    def __init__(self, size=VOCABULARY):
        self.size = size

    def __len__(self):
        return self.size

    def __call__(self, text):
        return {"input_ids": ["abcdefghijk".index(letter) for letter in text]}

    def convert_ids_to_tokens(self, token):
        return "abcdefghijk"[token]

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return "".join("abcdefghijk"[token] for token in tokens)


def completed(decoder, prompts, **options):
    return complete(decoder.model, decoder.params, prompts, max_new_tokens=COUNT, batch_size=3, **options)


def test_prompts_of_many_lengths_come_back_in_order_from_one_program(decoder):
    """Seven prompts in batches of three; a stop token that some of them meet; texts for good measure."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in LENGTHS]
    stop = greedy_loop(decoder, prompts[2], COUNT)[2]
    before = _program._cache_size()
    results = completed(decoder, prompts, stop_tokens=(stop,), tokenizer=Letters())
    assert _program._cache_size() == before + 1
    expected = [greedy_loop(decoder, prompt, COUNT, (stop,)) for prompt in prompts]
    assert [samples[0].tokens for samples in results] == expected
    assert {len(tokens) for tokens in expected} > {COUNT}
    for samples, tokens in zip(results, expected, strict=True):
        (completion,) = samples
        assert completion.text == Letters().decode(tokens, skip_special_tokens=True)
        assert completion.stopped == (tokens[-1] == stop) and completion.log_probs.shape == (len(tokens),)
        assert completion.score == pytest.approx(completion.log_probs.sum(), abs=1e-5)
    texts = [Letters().decode(prompt, skip_special_tokens=True) for prompt in prompts]
    again = completed(decoder, texts, stop_tokens=(stop,), tokenizer=Letters())
    assert [samples[0].tokens for samples in again] == expected
    assert _program._cache_size() == before + 1


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_mesh_changes_nothing(decoder, sizes):
    """Batches of three on 8 and on 4 shards; drawn samples; weights in parts on their devices."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in LENGTHS]
    mesh = make_mesh(MeshConfig(**sizes))
    params = on_mesh(decoder, mesh)
    kernel = params["layers"]["1"]["attention"]["output"]["kernel_by_outputs"]
    assert kernel.is_fully_replicated == (sizes == {"data": 8})
    options = {"strategy": Sampling(), "num_samples": 2, "key": jax.random.key(3)}
    expected = completed(decoder, prompts, **options)
    before = _program._cache_size()
    found = complete(decoder.model, params, prompts, max_new_tokens=COUNT, batch_size=3, mesh=mesh, **options)
    assert _program._cache_size() == before + 1
    assert tokens_of(found) == tokens_of(expected)
    assert len({tuple(tokens) for row in tokens_of(found) for tokens in row}) > len(prompts)


def test_the_samples_of_one_prompt_are_split_where_prompts_are_too_few(decoder):
    mesh = make_mesh(MeshConfig(data=8))
    options = {"strategy": Sampling(), "num_samples": 4, "key": jax.random.key(3), "max_new_tokens": COUNT}
    prompts = [[3, 1, 4]]
    expected = complete(decoder.model, decoder.params, prompts, **options)
    found = complete(decoder.model, on_mesh(decoder, mesh), prompts, mesh=mesh, **options)
    assert tokens_of(found) == tokens_of(expected)
    with pytest.raises(ValueError, match="global batch 4 does not divide over 8 batch shards"):
        generate(decoder.model, decoder.params, np.asarray(prompts), mesh=mesh, **options)


def on_mesh(decoder, mesh):
    """As the command holds them: parts on their devices, a tree per block."""
    boxed = jax.eval_shape(decoder.model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    return unstack_layers(jax.device_put(decoder.params, tree_shardings(boxed, mesh)))


def tokens_of(results):
    return [[sample.tokens for sample in row] for row in results]


def test_texts_end_as_the_model_s_directory_says(tmp_path):
    """As transformers' `generate`: several ends in generation_config.json, another one in config.json; the tokenizer's
    end comes last."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs: Any = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=None, eos_token_id=None,
            initializer_range=0.6,
        )
    ).eval()  # fmt: skip

    def free(prompt):
        ids = torch.tensor([prompt])
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False)
        return whole[0, len(prompt) :].tolist()

    first, second = (free(prompt) for prompt in PROMPTS[:2])
    theirs.config.eos_token_id = first[0]
    theirs.generation_config.eos_token_id = [first[3], second[1]]
    theirs.generation_config.pad_token_id = 0
    theirs.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model, params = load_pretrained(tmp_path)

    def ours():
        found = complete(model, params, PROMPTS[:2], max_new_tokens=COUNT, tokenizer=Letters())
        return [samples[0].tokens for samples in found]

    expected = [free(prompt) for prompt in PROMPTS[:2]]
    assert ours() == expected != [first, second]
    (tmp_path / "generation_config.json").unlink()
    model, _ = load_pretrained(tmp_path)
    assert ours()[0] == first[:1]
    model, _ = load_pretrained(tmp_path, config_overrides={"eos_token_ids": ()})
    Letters.eos_token_id = second[2]
    try:
        assert ours()[1] == second[: second.index(second[2]) + 1]
    finally:
        Letters.eos_token_id = None


def test_wrong_prompts_are_refused(decoder):
    for prompts, options, message in (
        ([], {}, "at least one prompt"),
        ("abc", {}, "a sequence of at least one prompt, got 'abc'"),
        ([[1], []], {}, "empty prompt: prompt 1 has no token"),
        (["ab", ""], {"tokenizer": Letters()}, "empty prompt: prompt 1"),
        (["ab"], {}, "prompts are texts: give a tokenizer"),
        (["ab"], {"tokenizer": Letters(12)}, "tokenizer has 12 tokens, but the model's vocabulary 11"),
        ([[1, 2], np.ones((2, 32))], {}, "must all be token ids"),
        ([[1.5, 2.0]], {}, "prompt 0 must be integer ids"),
        ([[1, 11]], {}, "has token 11 at 15, but the model's vocabulary has ids 0 to 10"),
        ([[1] * 35], {}, "a prompt has 35 tokens, but only 34 fit"),
    ):
        with pytest.raises(ValueError, match=message):
            completed(decoder, prompts, **options)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        complete(decoder.model, decoder.params, PROMPTS, max_new_tokens=2, batch_size=0)
