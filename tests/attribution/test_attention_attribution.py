"""Attention scores against the product written out, finite differences, and the encoder's own weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution.attention import (
    attention_rollout,
    attention_weights,
    gradient_x_attention,
    norm_weighted_attention,
    positive_gradient_x_attention,
    raw_attention,
    receiver_scores,
    rollout_matrix,
)
from jaxcore.models import Encoder, EncoderConfig
from jaxcore.transforms import intervene

BATCH, LAYERS, HEADS, TIME = 2, 3, 2, 5


@functools.cache
def random_weights():
    logits = np.random.default_rng(0).normal(size=(BATCH, LAYERS, HEADS, TIME, TIME)) * 2
    return np.asarray(jax.nn.softmax(logits, axis=-1))


def rollout_by_products(weights, add_identity=True):
    result = np.broadcast_to(np.eye(TIME), (BATCH, TIME, TIME))
    for layer in range(LAYERS):
        mixing = weights[:, layer].astype(np.float64).mean(axis=1) + np.eye(TIME) * add_identity
        result = (mixing / mixing.sum(axis=-1, keepdims=True)) @ result
    return result


@functools.cache
def encoder():
    sizes = dict(vocab_size=11, num_layers=LAYERS, hidden_size=8, num_heads=HEADS, intermediate_size=16)
    model = Encoder(EncoderConfig(**sizes, max_positions=16, attention_implementation="explicit"))
    ids = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids, mask))
    params = jax.tree.map(lambda p: p * 4, params)  # far from uniform attention
    return model, params, ids, mask


def head(pooled):
    return pooled @ jnp.arange(1.0, 9.0)


def test_weights_are_batch_first_and_their_rows_sum_to_one():
    model, params, ids, mask = encoder()
    weights = jax.jit(attention_weights(model.apply))(params, ids, mask)
    assert weights.shape == (BATCH, LAYERS, HEADS, TIME, TIME)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), 1, atol=1e-5)
    assert np.all(weights[1, ..., 3:] == 0) and np.all(weights[0] > 0)
    alone = attention_weights(model.apply)(params, ids[1:], mask[1:])
    np.testing.assert_allclose(weights[1:], alone, atol=1e-5)


def test_weights_of_a_python_loop_and_of_a_single_layer():
    maps = jnp.asarray(random_weights())

    def looped(maps):
        return sum(jnp.sum(checkpoint_name(maps[:, layer], "attention_weights")) for layer in range(LAYERS))

    np.testing.assert_array_equal(attention_weights(looped)(maps), maps)
    single = attention_weights(lambda m: checkpoint_name(m, "mine"), "mine")
    np.testing.assert_array_equal(single(maps[:, 1]), maps[:, 1:2])


def test_raw_attention_is_a_row_of_the_mean_over_heads():
    weights = random_weights()
    np.testing.assert_allclose(raw_attention(weights), weights[:, -1].mean(axis=1)[:, 0], rtol=1e-6)
    chosen = raw_attention(weights, layer=1, query=jnp.array([3, -1]))
    np.testing.assert_allclose(chosen[0], weights[0, 1].mean(axis=0)[3], rtol=1e-6)
    np.testing.assert_allclose(chosen[1], weights[1, 1].mean(axis=0)[4], rtol=1e-6)


def test_rollout_is_the_product_from_the_last_layer_to_the_first():
    weights = random_weights()
    expected = rollout_by_products(weights)
    np.testing.assert_allclose(rollout_matrix(weights), expected, atol=1e-6)
    for query in range(TIME):
        np.testing.assert_allclose(attention_rollout(weights, query=query), expected[:, query], atol=1e-6)
    np.testing.assert_allclose(jnp.sum(attention_rollout(weights), axis=-1), 1, rtol=1e-6)
    for wrong in (rollout_by_products(weights[:, ::-1]), rollout_by_products(weights, add_identity=False)):
        assert np.abs(attention_rollout(weights) - wrong[:, 0]).max() > 0.01
    assert np.abs(attention_rollout(weights) - expected[:, :, 0]).max() > 0.01


def test_rollout_of_an_encoder_ignores_padding():
    model, params, ids, mask = encoder()
    weights = attention_weights(model.apply)(params, ids, mask)
    scores = attention_rollout(weights, mask.astype(bool))
    short = attention_rollout(attention_weights(model.apply)(params, ids[1:, :3], mask[1:, :3]))
    np.testing.assert_allclose(scores[1, :3], short[0], atol=1e-5)
    np.testing.assert_array_equal(scores[1, 3:], 0)
    np.testing.assert_allclose(jnp.sum(scores, axis=-1), 1, atol=1e-5)


def test_gradient_x_attention_is_the_effect_of_scaling_a_weight():
    """A * dS/dA is the derivative of the score as one weight of one head is multiplied by 1 + e."""
    model, params, ids, mask = encoder()
    embeddings = params["params"]["embeddings"]["word"][ids]

    def score(inputs):
        run = intervene(lambda: model.apply(params, ids, mask), {"token_embeddings": inputs})
        return head(run().pooled)

    values = jax.jit(lambda x: gradient_x_attention(score, x))(embeddings)
    assert values.shape == (BATCH, LAYERS, HEADS, TIME, TIME)
    for layer in range(LAYERS):  # the weight of largest effect in each
        example, *place = np.unravel_index(jnp.argmax(jnp.abs(values[:, layer])), values[:, layer].shape)

        def scaled(size, layer=layer, example=example, place=tuple(place)):
            change = jnp.ones((BATCH, HEADS, TIME, TIME)).at[example, *place].add(size)
            edit = lambda w, *, step: jnp.where(step == layer, w * change, w)  # noqa: E731
            return intervene(score, {"attention_weights": edit})(embeddings)[example]

        expected = jax.jvp(scaled, (0.0,), (1.0,))[1]
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(values[example, layer, *place], expected, rtol=1e-3)


def test_gradient_x_attention_of_a_python_loop_by_hand():
    """S = sum_l c_l sum A_l . V, so A * dS/dA = c_l A_l . V, layer by layer."""
    maps, coefficients = jnp.asarray(random_weights()), (1.0, -2.0, 3.0)
    values = jax.random.normal(jax.random.key(1), (BATCH, TIME, 4))

    def score(inputs):
        total = 0
        for layer, coefficient in enumerate(coefficients):
            weights = checkpoint_name(maps[:, layer], "attention_weights")
            total += coefficient * jnp.sum(jnp.einsum("bhts,bsd->bhtd", weights, inputs), axis=(1, 2, 3))
        return total

    effects = maps * jnp.sum(values, axis=-1)[:, None, None, None] * jnp.array(coefficients)[:, None, None, None]
    np.testing.assert_allclose(gradient_x_attention(score, values), effects, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        positive_gradient_x_attention(score, values), np.maximum(effects, 0), rtol=1e-4, atol=1e-6
    )


def test_receiver_scores_are_column_means_below_the_diagonal():
    weights, mask = random_weights(), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
    scores = np.asarray(receiver_scores(weights, mask, proximity=2))
    for example, length in enumerate(mask.sum(axis=1)):
        for source in range(TIME):
            rows = weights[example, :, :, source + 2 : length, source]
            expected = rows.mean(axis=-1) if rows.shape[-1] else np.full((LAYERS, HEADS), np.nan)
            np.testing.assert_allclose(scores[example, :, :, source], expected, rtol=1e-5)
    planted = np.full((1, 1, 2, TIME, TIME), 0.1, np.float32)
    planted[0, 0, 1, :, 2] = 0.9
    assert np.nanargmax(receiver_scores(planted)[0, 0, 1]) == 2


def test_norm_weighted_attention_is_the_norm_of_the_summed_heads():
    weights = random_weights()
    values = np.random.default_rng(1).normal(size=(BATCH, LAYERS, HEADS, TIME, 4)).astype(np.float32)
    expected = np.linalg.norm(np.einsum("blhts,blhsd->bltsd", weights, values), axis=-1)
    np.testing.assert_allclose(norm_weighted_attention(weights, values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: attention_weights(jnp.sin)(w), "attention_implementation='explicit'"),
        (lambda w: attention_weights(lambda x: checkpoint_name(x, "attention_weights"))(w[0, 0, 0]), "must be .*batch"),
        (lambda w: raw_attention(w[0]), r"\[batch, layers, heads, time, time\]"),
        (lambda w: raw_attention(w, layer=3), "layer 3 is out of range"),
        (lambda w: raw_attention(w, query=5), "query 5 is out of range"),
        (lambda w: attention_rollout(w, np.ones((2, 4), bool)), r"mask must be \[2, 5\]"),
        (lambda w: receiver_scores(w, proximity=0), "proximity"),
        (lambda w: norm_weighted_attention(w, w[..., 0]), "values must be"),
        (lambda w: gradient_x_attention(lambda x: jnp.sum(x, axis=1), jnp.ones((2, 3))), "no attention weights"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(random_weights()))
