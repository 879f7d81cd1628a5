"""A generation read again gives what decoding went through."""

import jax
import numpy as np
import pytest
from decoding_references import PROMPTS, SIZES, VOCABULARY, log_softmax

from jaxcore.generation import Sampling, generate, pad_left, replay

COUNT = 5


@pytest.fixture(scope="module")
def sampled(decoder):
    ids, mask = pad_left(PROMPTS, 8)
    generated = generate(
        decoder.model, decoder.params, ids, mask,
        strategy=Sampling(), max_new_tokens=COUNT, num_samples=2, key=jax.random.key(0), stop_tokens=(4,), pad_token=99,
    )  # fmt: skip
    return ids, mask, generated


def test_replayed_scores_and_states_are_those_of_the_run(decoder, sampled):
    ids, mask, generated = sampled
    result = replay(decoder.model, decoder.params, ids, mask, generated, ("layer_output", "attention_weights"))
    assert result.logits.shape == (3, 2, COUNT, VOCABULARY)
    log_probs = log_softmax(np.asarray(result.logits, np.float64))
    lengths = np.asarray(generated.lengths)
    assert lengths.min() < COUNT, "some sample must stop early"
    rows, tokens = 6, 8 + COUNT
    layers, heads = SIZES["num_layers"], SIZES["num_heads"]
    assert result.captured["layer_output"].shape == (layers, rows, tokens, SIZES["hidden_size"])
    assert result.captured["attention_weights"].shape == (layers, rows, heads, tokens, tokens)
    for row, prompt in enumerate(PROMPTS):
        for sample in range(2):
            length = lengths[row, sample]
            continuation = np.asarray(generated.tokens[row, sample])
            assert (continuation[length:] == 99).all()
            terms = log_probs[row, sample][np.arange(length), continuation[:length]]
            np.testing.assert_allclose(generated.log_probs[row, sample][:length], terms, atol=1e-4)
            np.testing.assert_array_equal(generated.log_probs[row, sample][length:], 0)
            _, hidden = decoder.full([*prompt, *continuation[:length]])
            got = result.hidden[2 * row + sample, 8 - len(prompt) : 8 + length]
            np.testing.assert_allclose(got, hidden, atol=1e-4)


def test_a_name_that_does_not_occur(decoder, sampled):
    with pytest.raises(ValueError, match="cannot capture 'attention'"):
        replay(decoder.model, decoder.params, *sampled, "attention")
