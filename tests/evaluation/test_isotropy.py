"""Isotropy by layer against loops over tokens in float64, with padding; constant states have none."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.isotropy import layer_isotropy
from jaxcore.models import Decoder, DecoderConfig
from jaxcore.transforms import capture

MODEL = Decoder(
    DecoderConfig(vocab_size=9, num_layers=2, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4,
                  intermediate_size=8, max_positions=8)
)  # fmt: skip
RNG = np.random.default_rng(0)
ROWS = {
    "input_ids": RNG.integers(0, 9, (5, 6)).astype(np.int32),
    "attention_mask": (np.arange(6) < np.array([[6], [3], [2], [1], [5]])).astype(np.int32),
}


@pytest.fixture(scope="module")
def params():
    fresh = nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])
    return jax.tree.map(lambda leaf: 10 * leaf, fresh)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=4, tensor=2))


def isotropy_by_loops(states):
    total, pairs = 0.0, 0
    for vectors, real in zip(np.asarray(states, np.float64), ROWS["attention_mask"], strict=True):
        for i in np.flatnonzero(real):
            for j in np.flatnonzero(real):
                if i != j:
                    total += vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
                    pairs += 1
    return 1 - total / pairs


def test_every_place_is_its_equation(params, mesh):
    found = layer_isotropy(MODEL, params, ROWS, batch_size=4, mesh=mesh)

    def run(ids, mask):
        return MODEL.apply({"params": params}, ids, mask).last_hidden_state

    last, inside = capture(run, ("embeddings", "layer_output"))(ROWS["input_ids"], ROWS["attention_mask"])
    expected = [isotropy_by_loops(x) for x in (inside["embeddings"], *inside["layer_output"], last)]
    assert found.shape == (4,) and np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_states_that_share_a_large_constant_have_none(params, mesh):
    shifted = {**params, "final_norm": {**params["final_norm"], "bias": jnp.full(8, 1e3)}}
    before, after = (layer_isotropy(MODEL, tree, ROWS, batch_size=4, mesh=mesh) for tree in (params, shifted))
    assert before[-1] > 0.1 and after[-1] < 1e-3
    np.testing.assert_allclose(after[:-1], before[:-1], atol=1e-6)


def test_texts_of_one_token_are_refused(params, mesh):
    rows = {**ROWS, "attention_mask": (np.arange(6) < 1) * np.ones((5, 1), np.int32)}
    with pytest.raises(ValueError, match="two real tokens"):
        layer_isotropy(MODEL, params, rows, batch_size=4, mesh=mesh)
