"""Sampling against the exact distribution of all sequences."""

import jax
import numpy as np
import pytest
from decoding_references import chi_square_p, joint_counts, joint_probabilities

from jaxcore.generation import Greedy, Sampling, generate, keep_min_p, keep_top_k, keep_top_p

SAMPLES, PROMPT = 6000, (3, 1, 4)


def sampled(decoder, strategy):
    """All samples of one prompt, (SAMPLES, 2)."""
    prompt = np.array([PROMPT])
    generated = generate(
        decoder.model, decoder.params, prompt,
        strategy=strategy, max_new_tokens=2, num_samples=SAMPLES, key=jax.random.key(3),
    )  # fmt: skip
    return np.asarray(generated.tokens[0])


def test_temperature_samples_are_exact(decoder):
    tokens = sampled(decoder, Sampling(temperature=0.7))

    def tempered(temperature):
        def distribution(log_probs):
            weights = np.exp(log_probs / temperature)
            return weights / weights.sum(-1, keepdims=True)

        return joint_probabilities(decoder, PROMPT, 2, distribution)

    assert chi_square_p(joint_counts(tokens), tempered(0.7)) > 1e-3
    assert chi_square_p(joint_counts(tokens), tempered(1.0)) < 1e-6


def test_filtered_samples_are_exact(decoder):
    """Filters in their stated order: top-k, then the nucleus of what is left, then min-p."""
    tokens = sampled(decoder, Sampling(temperature=1.3, top_k=7, top_p=0.9, min_p=0.05))

    def distribution(log_probs):
        scores = keep_min_p(keep_top_p(keep_top_k(log_probs / 1.3, 7), 0.9), 0.05)
        weights = np.exp(np.asarray(scores, np.float64))
        return weights / weights.sum(-1, keepdims=True)

    exact = joint_probabilities(decoder, PROMPT, 2, distribution)
    assert 0 < (exact == 0).sum() < exact.size - 10
    assert chi_square_p(joint_counts(tokens), exact) > 1e-3


def test_greedy_is_a_distribution_on_the_best_token():
    logits = np.array([[0.1, 2.0, 2.0], [5.0, 1.0, 0.0]])
    np.testing.assert_array_equal(Greedy().distribution(logits), [[-np.inf, 0, -np.inf], [0, -np.inf, -np.inf]])
    np.testing.assert_array_equal(Greedy().draw(logits, jax.random.key(0)), [1, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_k": 0}, "top_k must be a whole number of 1 or more, got 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p must be in"),
        ({"min_p": -0.1}, "min_p must be in"),
        ({"typical_p": 2}, "typical_p must be in"),
    ),
    ids=str,
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
