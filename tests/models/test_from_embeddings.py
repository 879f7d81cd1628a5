"""A model run from token embeddings: its own change nothing, others stand for other words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.models import Decoder, DecoderConfig, Encoder, EncoderConfig, output_from_embeddings

SIZES = {"vocab_size": 9, "num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}
IDS = np.asarray([[1, 2, 3, 4], [5, 6, 7, 0]], np.int32)
MASK = np.asarray([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def drawn(request):
    model = (
        Encoder(EncoderConfig(max_positions=6, pooler="none", dropout=0.5, **SIZES))
        if request.param == "encoder"
        else Decoder(DecoderConfig(max_positions=6, num_key_value_heads=2, head_size=4, **SIZES))
    )
    return model, meta.unbox(model.init(jax.random.key(0), IDS)["params"])


def test_embeddings_stand_for_the_words_they_are_those_of(drawn):
    model, params = drawn
    words = jnp.asarray(params["embeddings"]["word"])
    others = (IDS + 1) % 9
    moved = output_from_embeddings(model, params, words[others], IDS, MASK).last_hidden_state
    expected = model.apply({"params": params}, others, MASK).last_hidden_state
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert np.abs(moved - model.apply({"params": params}, IDS, MASK).last_hidden_state).max() > 1e-3


def test_options_reach_the_model():
    model = Encoder(EncoderConfig(max_positions=6, pooler="none", dropout=0.5, **SIZES))
    params = meta.unbox(model.init(jax.random.key(0), IDS)["params"])
    options = {"deterministic": False, "rngs": {"dropout": jax.random.key(3)}}
    words = jnp.asarray(params["embeddings"]["word"])[IDS]
    dropped = output_from_embeddings(model, params, words, IDS, MASK, **options).last_hidden_state
    expected = model.apply({"params": params}, IDS, MASK, **options).last_hidden_state
    np.testing.assert_allclose(dropped, expected, atol=1e-6)
    assert np.abs(dropped - model.apply({"params": params}, IDS, MASK).last_hidden_state).max() > 1e-2


def test_embeddings_of_another_shape_are_refused(drawn):
    model, params = drawn
    with pytest.raises(ValueError, match="token_embeddings"):
        output_from_embeddings(model, params, jnp.zeros((2, 3, 8)), IDS, MASK)
