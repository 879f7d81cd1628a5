"""Contrastive search against a loop over the paper's equation, which recomputes everything in every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_references import PROMPTS, greedy_loop, loop

from jaxcore.generation import ContrastiveSearch, complete, contrastive_scores, largest_cosine

COUNT = 10


def reference(decoder, prompt, count, k, alpha, penalised_from=0):
    """x_t = argmax (1 - alpha) p(v) - alpha max_j cos(h_v, h_j), every candidate through the whole model."""

    def choose(tokens):
        log_probs = decoder.log_probs(tokens)
        candidates = np.argsort(-log_probs, kind="stable")[:k]
        _, hidden = decoder.full(np.array([[*tokens, candidate] for candidate in candidates]))
        directions = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
        context = directions[:, penalised_from:-1]
        penalty = np.einsum("ctd,cd->ct", context, directions[:, -1]).max(1, initial=-1.0)
        return candidates[np.argmax((1 - alpha) * np.exp(log_probs[candidates]) - alpha * penalty)]

    return loop(prompt, count, choose)


def searched(decoder, strategy, **options):
    results = complete(
        decoder.model, decoder.params, PROMPTS, strategy=strategy, max_new_tokens=COUNT, stop_tokens=(), **options
    )
    return [[sample.tokens for sample in samples] for samples in results]


def test_a_padded_batch_equals_the_equation_for_each_prompt(decoder):
    greedy = [[greedy_loop(decoder, prompt, COUNT)] for prompt in PROMPTS]
    for alpha in (0.6, 0.3):
        expected = [[reference(decoder, prompt, COUNT, 4, alpha)] for prompt in PROMPTS]
        assert searched(decoder, ContrastiveSearch(k=4, alpha=alpha)) == expected != greedy
    assert searched(decoder, ContrastiveSearch(k=4, alpha=0.0)) == greedy


def test_one_candidate_is_greedy(decoder):
    greedy = [[greedy_loop(decoder, prompt, COUNT)] for prompt in PROMPTS]
    assert searched(decoder, ContrastiveSearch(k=1, alpha=0.9)) == greedy


def test_the_prompt_can_be_spared(decoder):
    expected = [[reference(decoder, prompt, COUNT, 4, 0.6, penalised_from=len(prompt))] for prompt in PROMPTS]
    with_prompt = [[reference(decoder, prompt, COUNT, 4, 0.6)] for prompt in PROMPTS]
    assert searched(decoder, ContrastiveSearch(k=4, alpha=0.6, penalise_prompt=False)) == expected != with_prompt


def test_diverse_search_samples_first_and_searches_then(decoder):
    """Of one prompt's samples, which share what was read of it, each goes on as the search from its first tokens."""
    strategy = ContrastiveSearch(k=4, alpha=0.6, num_sampled=2, top_p=0.9)
    results = searched(decoder, strategy, num_samples=3, key=jax.random.key(5))
    beginnings = {tuple(tokens[:2]) for samples in results for tokens in samples}
    assert len(beginnings) > 4
    for prompt, samples in zip(PROMPTS, results, strict=True):
        for tokens in samples:
            assert tokens[2:] == reference(decoder, (*prompt, *tokens[:2]), COUNT - 2, 4, 0.6)


def test_scores_by_hand():
    np.testing.assert_allclose(
        contrastive_scores(jnp.array([[0.5, 0.3]]), jnp.array([[0.9, -0.2]]), 0.6), [[0.2 - 0.54, 0.12 + 0.12]]
    )


def test_largest_cosine_counts_valid_positions_only():
    context = jnp.array([[[1.0, 0], [0, 1], [-1, 0]], [[0, -1], [0, 1], [1, 0]]])
    candidates = jnp.array([[[1.0, 0]], [[0, 1]], [[0, 1]], [[-1, 0]]])  # two of each context
    valid = jnp.array([[False, True, True], [True, False, True]])
    np.testing.assert_array_equal(largest_cosine(candidates, context, valid), [[0], [1], [0], [0]])
    np.testing.assert_array_equal(largest_cosine(candidates, context, jnp.array([False, False, True]))[:2], [[-1], [0]])
    np.testing.assert_array_equal(largest_cosine(candidates, context, jnp.zeros(3, bool)), -np.ones((4, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"k": 0}, "k must be a whole number of 1 or more, got 0"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
        ({"alpha": 1.5}, "alpha must be in"),
        ({"alpha": float("nan")}, "alpha must be in"),
        ({"num_sampled": -1}, "num_sampled must be"),
        ({"top_p": 0}, "top_p must be in"),
    ),
    ids=str,
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveSearch(**options)


def test_requests_that_do_not_fit(decoder):
    with pytest.raises(ValueError, match="k must be at most the 11 tokens"):
        searched(decoder, ContrastiveSearch(k=12))
    with pytest.raises(ValueError, match="gives the same text every time"):
        searched(decoder, ContrastiveSearch(), num_samples=2)
    with pytest.raises(ValueError, match="draws tokens and needs a key"):
        searched(decoder, ContrastiveSearch(num_sampled=2))
