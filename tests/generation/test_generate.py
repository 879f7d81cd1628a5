"""The loop: padding, stop tokens, prefixes, edits, embeddings, programs, transformers, meshes, refusals."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_references import PROMPTS, VOCABULARY, greedy_loop, loop

from jaxcore.distributed import MeshConfig, jit_on_mesh, make_mesh, tree_shardings
from jaxcore.generation import BeamSearch, Sampling, SpeculativeDecoding, generate, pad_left
from jaxcore.generation.generate import _program
from jaxcore.models import unstack_layers
from jaxcore.transforms import intervene

COUNT, WIDTH = 7, 8
IDS, MASK = pad_left(PROMPTS, WIDTH)


def greedy(decoder, ids=IDS, mask=MASK, *, stops=(0, 0), params=None, **options):
    return generate(
        decoder.model, params or decoder.params, ids, mask, max_new_tokens=COUNT, stop_tokens=stops, **options
    )


def test_a_padded_batch_equals_each_prompt_alone_with_its_own_end(decoder):
    free = [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]
    ends = {len(greedy_loop(decoder, prompt, COUNT, (free[0][3],))) for prompt in PROMPTS}
    assert len(ends) > 1, "rows must end at different times"
    for stops in ((free[0][3],) * 2, (free[1][0], free[0][3])):
        generated = greedy(decoder, stops=stops, pad_token=77)
        for row, prompt in enumerate(PROMPTS):
            expected = greedy_loop(decoder, prompt, COUNT, stops)
            length = len(expected)
            assert generated.tokens[row, 0].tolist() == expected + [77] * (COUNT - length)
            assert int(generated.lengths[row, 0]) == length
            assert bool(generated.stopped[row, 0]) == (expected[-1] in stops)
            tokens = [*prompt, *expected]
            terms = [decoder.log_probs(tokens[:end])[tokens[end]] for end in range(len(prompt), len(tokens))]
            np.testing.assert_allclose(generated.log_probs[row, 0][:length], terms, atol=1e-4)
            np.testing.assert_allclose(generated.scores[row, 0], sum(terms), atol=1e-3)


def test_the_loop_ends_with_its_last_row(decoder):
    free = [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]
    longest = {stop: max(len(greedy_loop(decoder, p, COUNT, (stop,))) for p in PROMPTS) for stop in free[0]}
    stop = min(longest, key=longest.get)
    assert int(greedy(decoder, stops=(stop, stop)).steps) == longest[stop]
    alone = greedy(decoder, stops=(free[0][0],) * 2, ids=np.repeat(IDS[:1], 3, 0), mask=np.repeat(MASK[:1], 3, 0))
    assert int(alone.steps) == 1


def test_one_program_for_all_prompts_parameters_and_tokens(decoder, other):
    greedy(decoder)
    before = _program._cache_size()
    shorter = pad_left([[1], [2, 3], [4] * WIDTH], WIDTH)
    results = [greedy(decoder, *shorter), greedy(decoder, stops=(5, 9), pad_token=3), greedy(other)]
    assert _program._cache_size() == before
    assert results[2].tokens[0, 0].tolist() == greedy_loop(other, PROMPTS[0], COUNT, (0,)) + [0] * (
        COUNT - int(results[2].lengths[0, 0])
    )


def test_numbers_of_a_strategy_are_arguments_and_unstacked_parameters_the_same(decoder):
    def run(params, temperature):
        strategy, key = Sampling(temperature=temperature, top_p=0.9), jax.random.key(0)
        return greedy(decoder, params=params, strategy=strategy, key=key, num_samples=2).tokens

    separate = unstack_layers(decoder.params)
    first = run(separate, 0.5)
    before = _program._cache_size()
    assert (run(separate, 3.0) != first).any()
    assert _program._cache_size() == before
    np.testing.assert_array_equal(run(decoder.params, 0.5), first)


def test_embeddings_stand_for_prompts(decoder):
    vectors = np.asarray(decoder.params["embeddings"]["word"])[IDS] * MASK[:, :, None]
    np.testing.assert_array_equal(greedy(decoder, None, embeddings=jnp.asarray(vectors)).tokens, greedy(decoder).tokens)


def steer(direction, hidden, *, step):
    """Added behind block 0."""
    return jnp.where(step == 0, hidden + direction, hidden)


def hide(columns, scores):
    """Nobody looks at these slots of the prompt."""
    return scores.at[..., columns].set(-1e9)


def test_edits_hold_in_prefill_and_in_every_step(decoder):
    """Against an edited full forward pass per token. Vectors and slots are arguments of the program."""
    model, params = decoder.model, decoder.params
    full = jax.jit(
        lambda edits, ids: intervene(lambda ids: model.apply({"params": params}, ids).logits, edits)(ids),
    )
    plain = [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]
    before, sizes = None, set()
    for seed, hidden_back in ((0, 1), (1, 1), (2, 3)):
        direction = jnp.asarray(np.random.default_rng(seed).normal(size=32), jnp.float32)
        # Slots are counted from the right end of the prompts, where their last tokens are.
        slot = WIDTH - hidden_back
        edits = {
            "layer_output": jax.tree_util.Partial(steer, direction),
            "attention_scores": jax.tree_util.Partial(hide, jnp.array([slot])),
        }
        row = 1  # the prompt of five tokens: each of those slots holds one of its own
        generated = greedy(decoder, edits=edits)
        before = before or _program._cache_size()

        def choose(tokens, direction=direction, hidden_back=hidden_back):
            place = jnp.array([len(PROMPTS[1]) - hidden_back])
            ids = np.zeros((1, 24), np.int32)
            ids[0, : len(tokens)] = tokens
            reference = {
                "layer_output": jax.tree_util.Partial(steer, direction),
                "attention_scores": jax.tree_util.Partial(hide, place),
            }
            return np.asarray(full(reference, ids))[0, len(tokens) - 1].argmax()

        expected = loop(PROMPTS[row], COUNT, choose, (0,))
        assert generated.tokens[row, 0, : len(expected)].tolist() == expected
        sizes.add(tuple(expected))
    assert _program._cache_size() == before
    assert len(sizes) > 1 and plain[1] not in map(list, sizes)


@pytest.mark.parametrize("family", ("torch_gpt2", "torch_llama"))
def test_greedy_tokens_are_those_of_transformers(family, request):
    torch = pytest.importorskip("torch")
    torch_model, model, params = request.getfixturevalue(family)
    result = torch_model.generate(
        torch.tensor(IDS), attention_mask=torch.tensor(MASK), max_new_tokens=COUNT, do_sample=False, eos_token_id=4,
        pad_token_id=4,
    )  # fmt: skip
    ours = generate(model, params, IDS, MASK, max_new_tokens=COUNT, stop_tokens=(4,), pad_token=4)
    theirs = result[:, WIDTH:].numpy()
    np.testing.assert_array_equal(np.asarray(ours.tokens[:, 0])[:, : theirs.shape[1]], theirs)
    assert len({tuple(row) for row in theirs.tolist()}) == 3


def test_on_a_mesh_as_on_one_device(decoder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(decoder.model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    placed = jax.device_put(decoder.params, tree_shardings(boxed, mesh))
    ids, mask = (np.concatenate([array, array[:1]]) for array in (IDS, MASK))

    def run(params, ids, mask):
        return generate(decoder.model, params, ids, mask, max_new_tokens=COUNT).tokens

    got = jit_on_mesh(run, mesh)(placed, ids, mask)
    assert got[:3, 0].tolist() == [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]


def test_boxed_parameters_are_unboxed(decoder):
    boxed = jax.tree.map(lambda leaf: nn.LogicallyPartitioned(leaf, (None,) * leaf.ndim), decoder.params)
    np.testing.assert_array_equal(greedy(decoder, params=boxed).tokens, greedy(decoder).tokens)


def test_wrong_requests_are_refused(decoder, other):
    params, model = decoder.params, decoder.model
    larger = type(model)(dataclasses.replace(model.config, vocab_size=VOCABULARY + 128))
    assistant = (other.model, other.params)
    short = type(model)(dataclasses.replace(model.config, max_positions=12))
    broken, wide = MASK.copy(), np.ones((1, 34), np.int32)
    broken[0, 7] = 0

    def run(ids=IDS, mask=None, count=COUNT, model=model, **options):
        return generate(model, params, ids, mask, max_new_tokens=count, **options)

    for call, message in (
        (lambda: run(wide), "a prompt of 34 tokens and 7 new ones do not fit the model's context of 40 tokens"),
        (lambda: run(np.ones((1, 41), np.int32), np.arange(41)[None] > 38), "padded to 41 tokens, but the model's"),
        (lambda: run(np.zeros((1, 0), np.int32)), r"empty prompt: .* got shape \(1, 0\)"),
        (lambda: run(mask=np.zeros_like(MASK)), "empty prompt: row 0 has no token"),
        (lambda: run(mask=broken), "padded on the left: row 0 has padding behind a token"),
        (lambda: run(mask=MASK[:, 1:]), "attention_mask must have the shape of the prompts"),
        (lambda: run(IDS[0]), r"prompts must be an array \(batch, width\)"),
        (lambda: run(np.full((1, 2), 11)), "prompt 0 has token 11 at 0, but the model's vocabulary has ids 0 to 10"),
        (lambda: run(None), "either as input_ids or as embeddings"),
        (lambda: run(count=0), "max_new_tokens must be a whole number of 1 or more, got 0"),
        (lambda: run(num_samples=0), "num_samples must be a whole number of 1 or more"),
        (lambda: run(num_samples=2), "Greedy gives the same text every time: num_samples must be 1, got 2"),
        (lambda: run(stop_tokens=(11,)), "stop token 11 is outside the model's vocabulary, 0 to 10"),
        (lambda: run(strategy="greedy"), "strategy must be a strategy such as Greedy"),
        (lambda: run(strategy=Sampling()), "Sampling draws tokens and needs a key"),
        (lambda: run(assistant=assistant), "Greedy has no use for an assistant"),
        (lambda: run(strategy=BeamSearch(), num_samples=5), "at most the 4 beams, got 5"),
        (lambda: run(strategy=SpeculativeDecoding()), "SpeculativeDecoding needs a second model"),
        (
            lambda: run(strategy=SpeculativeDecoding(), assistant=(larger, params)),
            "must share one vocabulary, got 11 and 139 tokens, which differ by more than a table's padding",
        ),
        (
            lambda: run(strategy=SpeculativeDecoding(), assistant=(short, params)),
            "for drafts do not fit the assistant's context of 12",
        ),
        (
            lambda: run(None, embeddings=np.zeros((1, 2, 32)), strategy=SpeculativeDecoding(), assistant=assistant),
            "needs prompts as token ids",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
