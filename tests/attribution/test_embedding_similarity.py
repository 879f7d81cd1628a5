"""Token attributions of a similarity: completeness, linearity in the target, padding, and words that matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.attribution import attribute_similarity
from jaxcore.losses import unit_vectors
from jaxcore.models import BagOfWordsConfig, BagOfWordsEncoder, Encoder, EncoderConfig

ENCODER = Encoder(
    EncoderConfig(
        vocab_size=40, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=10, pooler="mean"
    )
)
BAG = BagOfWordsEncoder(BagOfWordsConfig(vocab_size=40, hidden_sizes=(16,), embedding_size=16))
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (3, 10)), jnp.int32)
MASK = jnp.ones((3, 10), jnp.int32).at[1, 6:].set(0)


@pytest.fixture(params=[ENCODER, BAG], ids=["encoder", "bag_of_words"])
def explained(request):
    model = request.param
    params = meta.unbox(model.init(jax.random.key(0), IDS)["params"])
    # Fresh weights hardly react to their input, and fresh biases give the empty text no direction at all.
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x + 1.0, params)
    explain = jax.jit(lambda ids, mask, target: attribute_similarity(model, params, ids, mask, target, num_steps=64))
    return model, params, explain


def targets(seed):
    return unit_vectors(jax.random.normal(jax.random.key(seed), (3, 16)))


def similarity(model, params, ids, mask, target):
    return jnp.sum(unit_vectors(model.apply({"params": params}, ids, mask).pooled) * target, axis=-1)


def test_attributions_add_up_to_what_the_text_adds_over_the_baseline(explained):
    model, params, explain = explained
    target = targets(1)
    result = explain(IDS, MASK, target)
    assert np.abs(result.completeness_error).max() < 5e-3
    if model is BAG:
        empty = similarity(model, params, IDS, jnp.zeros_like(MASK), target)
        total = similarity(model, params, IDS, MASK, target) - empty
        np.testing.assert_allclose(jnp.sum(result.attributions, axis=1), total, atol=5e-3)


def test_a_contrast_is_the_difference_of_two_attributions(explained):
    _, _, explain = explained
    first, second = explain(IDS, MASK, targets(1)), explain(IDS, MASK, targets(2))
    contrast = explain(IDS, MASK, targets(1) - targets(2))
    np.testing.assert_allclose(contrast.attributions, first.attributions - second.attributions, atol=1e-5)


def test_padding_gets_nothing_and_real_tokens_do(explained):
    _, _, explain = explained
    values = explain(IDS, MASK, targets(1)).attributions
    np.testing.assert_array_equal(values[1, 6:], 0)
    assert np.abs(values[1, :6]).max() > 1e-3


def test_occurrences_of_a_word_share_its_attribution_in_a_bag():
    params = meta.unbox(BAG.init(jax.random.key(0), IDS)["params"])
    ids = IDS.at[0, :4].set(7)
    values = attribute_similarity(BAG, params, ids, MASK, targets(1)).attributions
    np.testing.assert_allclose(values[0, :4], values[0, 0], rtol=1e-6)


def test_a_target_of_another_batch_is_named():
    params = meta.unbox(BAG.init(jax.random.key(0), IDS)["params"])
    with pytest.raises(ValueError, match=r"target must be \[3, dim\]"):
        attribute_similarity(BAG, params, IDS, MASK, targets(1)[:2])
