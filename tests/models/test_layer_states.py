"""States of a layer are those that the whole model has there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import Decoder, DecoderConfig, unstack_layers
from jaxcore.models.layer_states import first_layers, layer_states
from jaxcore.transforms import capture

CONFIG = DecoderConfig(
    vocab_size=20, num_layers=3, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4, intermediate_size=8,
    max_positions=16, attention_implementation="explicit",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(CONFIG)
    return decoder, jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]


def test_each_layer_is_that_of_the_whole_model(model):
    decoder, params = model
    ids, mask = jnp.arange(10).reshape(2, 5), jnp.ones((2, 5), int)
    names = ("layer_output", "attention_weights")
    run = jax.jit(capture(lambda p: decoder.apply({"params": p}, ids, mask), names))
    _, whole = run(jax.tree.map(lambda leaf: leaf, params))
    for layer, name in ((1, "layer_output"), (2, "attention_weights"), (3, "layer_output")):
        states = jax.jit(functools.partial(layer_states, decoder, layer=layer, name=name))(params, ids, mask)
        np.testing.assert_allclose(states, whole[name][layer - 1], atol=1e-5)
    assert first_layers(decoder, params, 2)[0].config.num_layers == 2


def test_layers_that_are_not_there_are_refused(model):
    decoder, params = model
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"layers 1 to 3: got {layer}"):
            first_layers(decoder, params, layer)
    with pytest.raises(ValueError, match="stacked"):
        first_layers(decoder, unstack_layers(params), 2)
