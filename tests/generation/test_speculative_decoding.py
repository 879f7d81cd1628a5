"""Speculative decoding gives what its chooser gives: the same tokens, or the same distribution."""

import dataclasses

import jax
import numpy as np
import pytest
from decoding_references import (
    PROMPTS,
    VOCABULARY,
    chi_square_p,
    greedy_loop,
    joint_counts,
    joint_probabilities,
    tiny,
)

from jaxcore.generation import BeamSearch, Sampling, SpeculativeDecoding, complete, generate, pad_left
from jaxcore.models import Decoder

COUNT = 13


def speculated(decoder, draft, **options):
    results = complete(
        decoder.model, decoder.params, PROMPTS, max_new_tokens=COUNT, strategy=SpeculativeDecoding(num_draft_tokens=3),
        assistant=(draft.model, draft.params), **options,
    )  # fmt: skip
    return [samples[0] for samples in results]


def seldom(decoder):
    """A token that greedy decoding never gives."""
    given = {token for prompt in PROMPTS for token in greedy_loop(decoder, prompt, COUNT)}
    return next(token for token in range(VOCABULARY) if token not in given)


def test_greedy_tokens_whatever_the_draft(decoder, other):
    """Rows accept different numbers of drafts, end at different times, and stay what they are alone."""
    expected = [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]
    for stops in ((seldom(decoder),), (expected[0][4],)):
        results = speculated(decoder, other, stop_tokens=stops)
        for prompt, result in zip(PROMPTS, results, strict=True):
            assert result.tokens == greedy_loop(decoder, prompt, COUNT, stops)
            assert result.stopped == (result.tokens[-1] in stops)
            tokens = [*prompt, *result.tokens]
            terms = [decoder.log_probs(tokens[:end])[tokens[end]] for end in range(len(prompt), len(tokens))]
            np.testing.assert_allclose(result.log_probs, terms, atol=1e-4)


@pytest.mark.parametrize("spare", [0, 5])
def test_a_draft_that_is_the_model_is_always_accepted(decoder, spare):
    """13 tokens: one from the prompt, then rounds of 3 drafts and one more. Padding of the draft's table counts not."""
    ids, mask = pad_left(PROMPTS, 16)
    table = np.asarray(decoder.params["embeddings"]["word"])
    padding = 9 * table[:spare]  # whose scores often exceed all others
    embeddings = {**decoder.params["embeddings"], "word": np.concatenate([table, padding])}
    draft = Decoder(dataclasses.replace(decoder.model.config, vocab_size=VOCABULARY + spare))
    generated = generate(
        decoder.model, decoder.params, ids, mask, max_new_tokens=COUNT, stop_tokens=(seldom(decoder),),
        strategy=SpeculativeDecoding(num_draft_tokens=3),
        assistant=(draft, {**decoder.params, "embeddings": embeddings}),
    )  # fmt: skip
    for prompt, tokens in zip(PROMPTS, generated.tokens[:, 0].tolist(), strict=True):
        assert tokens == greedy_loop(decoder, prompt, COUNT)
    assert int(generated.steps) == 1 + 3


@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 5, VOCABULARY - 4])
def test_samples_are_distributed_as_those_of_the_model(decoder, rows):
    """Three tokens of one prompt: the second and third come from drafts, accepted or not.

    The draft's table has as many rows as the model's, or more, or fewer: then some tokens are never drafted, and read
    by the draft as another."""
    narrow, prompt = tiny(1, hidden_size=16, num_heads=2, num_key_value_heads=2, vocab_size=rows), (3, 9, 4)
    generated = generate(
        decoder.model, decoder.params, np.array([prompt]), max_new_tokens=3, num_samples=8000,
        key=jax.random.key(2), assistant=(narrow.model, narrow.params),
        strategy=SpeculativeDecoding(chooser=Sampling(temperature=0.8), num_draft_tokens=2),
    )  # fmt: skip
    counts = joint_counts(np.asarray(generated.tokens[0]))

    def tempered(log_probs):
        weights = np.exp(log_probs / 0.8)
        return weights / weights.sum(-1, keepdims=True)

    exact = joint_probabilities(decoder, prompt, 3, tempered)
    assert chi_square_p(counts, exact) > 1e-3
    for axis in (0, 1, 2):
        others = tuple(a for a in range(3) if a != axis)
        assert chi_square_p(counts.sum(others), exact.sum(others)) > 1e-3
    if rows == VOCABULARY:
        draft = joint_probabilities(narrow, prompt, 3, tempered)
        assert chi_square_p(counts.sum((0, 2)), draft.sum((0, 2))) < 1e-6


def test_requests_that_do_not_fit(decoder, other):
    with pytest.raises(ValueError, match="num_draft_tokens must be a whole number"):
        SpeculativeDecoding(num_draft_tokens=0)
    with pytest.raises(ValueError, match="chooser of SpeculativeDecoding must be Greedy or Sampling, got BeamSearch"):
        complete(
            decoder.model, decoder.params, PROMPTS, max_new_tokens=2, assistant=(other.model, other.params),
            strategy=SpeculativeDecoding(chooser=BeamSearch()),
        )  # fmt: skip
    with pytest.raises(ValueError, match="36 new ones and 3 for drafts do not fit the model's context of 40"):
        generate(
            decoder.model, decoder.params, np.array([PROMPTS[0]]), max_new_tokens=36,
            strategy=SpeculativeDecoding(num_draft_tokens=3), assistant=(other.model, other.params),
        )  # fmt: skip
