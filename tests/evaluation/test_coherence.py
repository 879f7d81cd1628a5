"""Coherence against the scorer's own log-softmax text by text, padding, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.coherence import continuation_log_probs
from jaxcore.models import Decoder, DecoderConfig

MODEL = Decoder(
    DecoderConfig(vocab_size=9, num_layers=1, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4,
                  intermediate_size=8, max_positions=8)
)  # fmt: skip
PREFIXES, CONTINUATIONS = [[1, 2], [3], [4, 5, 6]], [[7, 8, 1], [2, 3, 4, 5], [6, 7, 8, 1, 2]]


@pytest.fixture(scope="module")
def params():
    fresh = nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    return jax.tree.map(lambda leaf: 20 * leaf, fresh)


def test_it_is_the_mean_log_probability_of_the_continuation(params):
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    found = continuation_log_probs(MODEL, params, PREFIXES, CONTINUATIONS, batch_size=2, mesh=mesh, max_length=7)
    for value, prefix, continuation in zip(found, PREFIXES, CONTINUATIONS, strict=True):
        ids = [*prefix, *continuation][:7]
        log_probs = np.asarray(jax.nn.log_softmax(MODEL.apply({"params": params}, jnp.asarray([ids])).logits[0]))
        expected = np.mean([log_probs[t - 1, ids[t]] for t in range(len(prefix), len(ids))])
        assert value == pytest.approx(expected, abs=1e-4)
    assert np.ptp(found) > 0.1


@pytest.mark.parametrize(
    ("prefixes", "continuations", "message"),
    [
        ([[1]], [], "a continuation per prefix"),
        ([], [], "a continuation per prefix"),
        ([[1], []], [[1], [2]], "text 1: a prefix of 0"),
        ([[1]], [[]], "continuation of 0"),
        ([[1] * 7], [[1]], r"1\.\.6"),
    ],
)
def test_bad_input_is_refused(prefixes, continuations, message):
    with pytest.raises(ValueError, match=message):
        continuation_log_probs(MODEL, {}, prefixes, continuations, batch_size=1, mesh=None, max_length=7)
