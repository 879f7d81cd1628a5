"""The preference margin: whole responses, integrated gradients against captum, hidden states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import completeness_error, integrated_gradients
from jaxcore.attribution.preference_score import (
    ResponsePairs,
    last_states,
    mean_state_norms,
    preference_margin,
    preference_score,
    response_states,
    sequence_preference_score,
    sequence_vectors,
)
from jaxcore.models import load_pretrained

VOCABULARY = 11
PROMPTS = ((3, 1, 4), (1, 5, 9, 2, 6), (8,))
CHOSEN = ((2, 7), (4,), (1, 1, 3))
REJECTED = ((5, 5, 10), (6, 2), (9,))
STEPS = 20


def padded(rows, width, *, left):
    ids, mask = np.zeros((2, len(rows), width), np.int32)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


IDS, MASK = padded(PROMPTS, 6, left=True)
PAIRS = ResponsePairs(MASK, *padded(CHOSEN, 4, left=False), *padded(REJECTED, 4, left=False))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A tiny random GPT-2: transformers' model, and ours with its parameters and the prompts' vectors."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    ours, params = load_pretrained(folder)
    return model, ours, params, ours.apply({"params": params}, IDS, method="embed")


@pytest.fixture(scope="module")
def computed(both):
    """Margins, scores and states of prompts' vectors with pairs of the shapes above: one program."""
    _, ours, params, _ = both

    @jax.jit
    def compute(prompt, pairs):
        texts = sequence_vectors(ours, params, prompt, pairs)
        return {
            "margin": preference_margin(ours, params, prompt, pairs),
            "by_token": preference_margin(ours, params, prompt, pairs, reduction="mean"),
            "chosen": preference_score(ours, params, pairs, objective="chosen")(prompt),
            "whole": sequence_preference_score(ours, params, pairs)(texts),
            "states": response_states(ours, params, prompt, pairs),
            "lengths": mean_state_norms(ours, params, prompt, pairs.prompt_mask),
            "heads": last_states(ours, params, prompt, pairs.prompt_mask, name="attention_heads"),
        }

    return compute


@pytest.fixture(scope="module")
def attributed(both):
    """Integrated gradients of the prompts and of whole texts, with what they should add up to: one program."""
    _, ours, params, vectors = both

    def of(score, inputs):
        found = integrated_gradients(score, inputs, num_steps=STEPS, chunk_size=4)
        change = score(inputs) - score(jax.tree.map(jnp.zeros_like, inputs))
        return found, change, completeness_error(score, inputs, found)

    @jax.jit
    def compute(prompt):
        texts = sequence_vectors(ours, params, prompt, PAIRS)
        whole = of(sequence_preference_score(ours, params, PAIRS), texts)
        return {"prompt": of(preference_score(ours, params, PAIRS), prompt), "whole": whole}

    return jax.tree.map(np.asarray, compute(vectors))


def torch_log_prob(model, prompt_vectors, response, reduction=sum):
    """log p of one unpadded response after vectors (1, time, hidden), token by token."""
    import torch

    words = model.transformer.wte(torch.tensor([response]))
    logits = model(inputs_embeds=torch.cat([prompt_vectors, words.expand(len(prompt_vectors), -1, -1)], 1)).logits
    start = prompt_vectors.shape[1] - 1
    found = torch.log_softmax(logits, -1)
    return reduction(found[:, start + place, token] for place, token in enumerate(response))


def test_the_margin_is_that_of_each_response_token_by_token(both, computed):
    import torch

    model, _, _, vectors = both
    with torch.no_grad():
        words = [model.transformer.wte(torch.tensor([prompt])) for prompt in PROMPTS]
        found = np.array(
            [
                [float(torch_log_prob(model, own, side[row])) for side in (CHOSEN, REJECTED)]
                for row, own in enumerate(words)
            ]
        )
    ours = computed(vectors, PAIRS)
    assert np.abs(found[:, 0] - found[:, 1]).min() > 0.05
    np.testing.assert_allclose(ours["margin"], found[:, 0] - found[:, 1], atol=1e-4)
    lengths = [(len(chosen), len(rejected)) for chosen, rejected in zip(CHOSEN, REJECTED, strict=True)]
    means = found / np.array(lengths)
    np.testing.assert_allclose(ours["by_token"], means[:, 0] - means[:, 1], atol=1e-4)
    np.testing.assert_allclose(ours["chosen"], found[:, 0], atol=1e-4)
    np.testing.assert_allclose(ours["whole"], ours["margin"], atol=1e-4)


def test_swapped_responses_change_the_sign_and_padding_changes_nothing(both, computed):
    *_, vectors = both
    swapped = ResponsePairs(MASK, PAIRS.rejected, PAIRS.rejected_mask, PAIRS.chosen, PAIRS.chosen_mask)
    first = computed(vectors, PAIRS)["margin"]
    np.testing.assert_allclose(computed(vectors, swapped)["margin"], -first, atol=1e-5)
    noisy = vectors + 10 * (1 - MASK)[..., None]
    other = dataclasses.replace(PAIRS, chosen=np.where(PAIRS.chosen_mask, PAIRS.chosen, 7))
    np.testing.assert_allclose(computed(noisy, other)["margin"], first, atol=1e-5)


def test_integrated_gradients_are_captums(both, attributed):
    """(2) of the paper, 20 Gauss-Legendre nodes, baseline zero."""
    torch = pytest.importorskip("torch")
    captum = pytest.importorskip("captum.attr")
    model = both[0]
    found, change, error = attributed["prompt"]
    for row, prompt in enumerate(PROMPTS):
        words = model.transformer.wte(torch.tensor([prompt])).detach()

        def margin(vectors, row=row):
            return torch_log_prob(model, vectors, CHOSEN[row]) - torch_log_prob(model, vectors, REJECTED[row])

        theirs = captum.IntegratedGradients(margin).attribute(words, n_steps=STEPS, method="gausslegendre")
        tolerance = 2e-4 * np.abs(theirs.numpy()).max()
        np.testing.assert_allclose(found[row, -len(prompt) :], theirs[0].numpy(), atol=tolerance)
    assert np.all(found[MASK == 0] == 0)
    assert np.abs(error).max() < 0.02 * np.abs(change).max()


def test_whole_texts_have_a_share_for_responses_as_the_released_code_has_it(attributed):
    found, change, error = attributed["whole"]
    assert np.abs(error).max() < 0.03 * np.abs(change).max()
    # Only the first of the two tokens of the response (2, 7) is an input of what is scored.
    share = np.abs(found["chosen"]).sum(-1)[0]
    assert share[6] > 1e-4 and np.all(share[7:] == 0)


def test_states_are_those_behind_each_block_at_the_last_real_token(both, computed):
    torch = pytest.importorskip("torch")
    model, _, _, vectors = both
    ours = computed(vectors, PAIRS)
    assert ours["states"].shape == (3, 2, 2, 16) and ours["heads"].shape == (3, 2, 2, 8)
    lengths, blocks = np.zeros((3, 2)), [[], []]
    hooks = [
        block.register_forward_hook(
            lambda _, __, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for block, kept in zip(model.transformer.h, blocks, strict=True)
    ]
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            for side, responses in enumerate((CHOSEN, REJECTED)):
                model(torch.tensor([[*prompt, *responses[row]]]))
                for layer, kept in enumerate(blocks):  # before the last norm, in the last layer too
                    last = kept[-1].reshape(-1, 16)[-1]
                    np.testing.assert_allclose(ours["states"][row, side, layer], last, atol=1e-4)
            model(torch.tensor([prompt]))
            for layer, kept in enumerate(blocks):
                lengths[row, layer] = np.linalg.norm(kept[-1].reshape(-1, 16), axis=-1).mean()
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(ours["lengths"], lengths, rtol=1e-4)


def test_what_does_not_fit_is_refused(both):
    _, ours, params, vectors = both

    def margin(prompt=vectors, reduction="sum", **changes):
        return preference_margin(ours, params, prompt, dataclasses.replace(PAIRS, **changes), reduction=reduction)

    for call, message in (
        (lambda: margin(vectors[:, 1:]), r"prompt_mask \[batch, width\]: got \(3, 5, 16\) and \(3, 6\)"),
        (lambda: margin(chosen=PAIRS.chosen[:2]), r"responses must all be \[3, length\]"),
        (lambda: margin(prompt_mask=MASK[:, ::-1]), "padded on the left: row 0"),
        (lambda: margin(reduction="max"), "reduction must be sum or mean: got 'max'"),
        (lambda: preference_score(ours, params, PAIRS, objective="both"), "objective must be contrastive or chosen"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
