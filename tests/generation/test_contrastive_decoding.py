"""Contrastive decoding against its equation, with both models run in full for every token."""

import jax
import numpy as np
import pytest
from decoding_references import PROMPTS, VOCABULARY, greedy_loop, log_softmax, loop, tiny

from jaxcore.generation import ContrastiveDecoding, ContrastiveSearch, Sampling, complete

COUNT = 8


def reference(expert, amateur, prompt, alpha, beta, temperature):
    def choose(tokens):
        log_p = expert.log_probs(tokens)
        shared = min(len(log_p), amateur.model.config.vocab_size)
        log_p, log_q = log_p[:shared], log_softmax(amateur.full(tokens)[0][-1] / temperature)[:shared]
        scores = (1 + beta) * log_p - beta * log_q
        return np.where(np.exp(log_p) >= alpha * np.exp(log_p).max(), scores, -np.inf).argmax()

    return loop(prompt, COUNT, choose)


def decoded(decoder, other, strategy, **options):
    results = complete(
        decoder.model, decoder.params, PROMPTS, strategy=strategy, max_new_tokens=COUNT, stop_tokens=(),
        assistant=(other.model, other.params), **options,
    )  # fmt: skip
    return [samples[0].tokens for samples in results]


def test_a_padded_batch_equals_the_equation_for_each_prompt(decoder, other):
    greedy = [greedy_loop(decoder, prompt, COUNT) for prompt in PROMPTS]
    for alpha, beta, temperature in ((0.1, 0.5, 1.0), (0.3, 3.0, 0.5)):
        expected = [reference(decoder, other, prompt, alpha, beta, temperature) for prompt in PROMPTS]
        strategy = ContrastiveDecoding(alpha=alpha, beta=beta, amateur_temperature=temperature)
        assert decoded(decoder, other, strategy) == expected != greedy
    assert decoded(decoder, other, ContrastiveDecoding(alpha=0.1, beta=0.0)) == greedy
    assert decoded(decoder, other, ContrastiveDecoding(alpha=1.0, beta=5.0)) == greedy


@pytest.mark.parametrize("rows", [VOCABULARY + 5, VOCABULARY - 4])
def test_tokens_that_one_table_lacks_are_never_chosen(decoder, rows):
    """Prompts may hold them: the amateur reads its last row."""
    amateur = tiny(1, vocab_size=rows)
    found = decoded(decoder, amateur, ContrastiveDecoding(alpha=0.3, beta=3.0))
    assert found == [reference(decoder, amateur, prompt, 0.3, 3.0, 1.0) for prompt in PROMPTS]
    assert max(map(max, found)) < rows


def test_scores_are_drawn_from(decoder, other):
    """At a low temperature draws are the best token; at a high one they are not."""
    strategies = [ContrastiveDecoding(chooser=Sampling(temperature=t)) for t in (1e-4, 5.0)]
    cold, hot = (decoded(decoder, other, strategy, key=jax.random.key(0)) for strategy in strategies)
    assert cold == [reference(decoder, other, prompt, 0.1, 0.5, 1.0) for prompt in PROMPTS] != hot


def test_options_and_requests_that_do_not_fit(decoder, other):
    for options, message in (
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\]"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"beta": float("inf")}, "beta must be a finite number"),
        ({"amateur_temperature": 0}, "amateur_temperature must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ContrastiveDecoding(**options)
    with pytest.raises(ValueError, match="chooser of ContrastiveDecoding must be Greedy or Sampling, got Contrastive"):
        decoded(decoder, other, ContrastiveDecoding(chooser=ContrastiveSearch()))
    with pytest.raises(ValueError, match="num_samples must be 1"):
        decoded(decoder, other, ContrastiveDecoding(), num_samples=2)
