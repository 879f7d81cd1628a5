"""BagOfWordsEncoder against a numpy version, and its invariances."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxcore.models import BagOfWordsConfig, BagOfWordsEncoder, count_parameters, count_tokens

CONFIG = BagOfWordsConfig(vocab_size=11, hidden_sizes=(8, 6), embedding_size=5)


@pytest.fixture(scope="module")
def params():
    variables = BagOfWordsEncoder(CONFIG).init(jax.random.key(0), jnp.ones((1, 3), jnp.int32))
    return jax.tree.map(lambda leaf: leaf + 0.1, nn.meta.unbox(variables["params"]))


def texts(seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 11, (4, 20)).astype(np.int32), (rng.random((4, 20)) < 0.7).astype(np.int32)


def test_counts():
    ids, mask = texts()
    expected = np.stack([np.bincount(row[kept == 1], minlength=11) for row, kept in zip(ids, mask, strict=True)])
    np.testing.assert_array_equal(count_tokens(ids, mask.astype(bool), vocab_size=11), expected)
    np.testing.assert_array_equal(count_tokens(ids, None, vocab_size=11).sum(1), 20)
    np.testing.assert_array_equal(count_tokens(ids, None, vocab_size=3).sum(1), (ids < 3).sum(1))
    np.testing.assert_array_equal(count_tokens(ids - 5, None, vocab_size=11).sum(1), (ids >= 5).sum(1))


def test_against_numpy(params):
    ids, mask = texts(1)
    x = np.stack([np.bincount(row[kept == 1], minlength=11) for row, kept in zip(ids, mask, strict=True)]) ** 0.5
    for name in ("hidden_0", "hidden_1", "output"):
        x = x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)
        x = x * special.ndtr(x) if name != "output" else x
    output = BagOfWordsEncoder(CONFIG).apply({"params": params}, ids, mask)
    assert output.last_hidden_state is None
    np.testing.assert_allclose(output.pooled, x, atol=1e-5)


def test_order_of_tokens_plays_no_part(params):
    ids, _ = texts(2)
    shuffled = np.random.default_rng(0).permuted(ids, axis=1)
    model = BagOfWordsEncoder(CONFIG)
    np.testing.assert_allclose(
        model.apply({"params": params}, ids).pooled,
        model.apply({"params": params}, shuffled).pooled,
        atol=1e-6,
    )


def test_the_default_is_stars_perceptron():
    variables = jax.eval_shape(
        BagOfWordsEncoder(BagOfWordsConfig()).init, jax.random.key(0), jnp.ones((1, 3), jnp.int32)
    )
    assert count_parameters(variables) == 248 * 256 + 256 + 256 * 64 + 64


def test_dropout_in_training(params):
    model = BagOfWordsEncoder(BagOfWordsConfig(**{**CONFIG.__dict__, "dropout": 0.5}))
    ids, _ = texts(3)
    plain = model.apply({"params": params}, ids).pooled
    one, two = (
        model.apply({"params": params}, ids, deterministic=False, rngs={"dropout": jax.random.key(seed)}).pooled
        for seed in (0, 1)
    )
    assert not np.allclose(one, plain) and not np.allclose(one, two)


def test_token_features_take_gradients(params):
    """The square-rooted counts are the named place where attributions start; counts of 0 give no NaN."""
    ids, _ = texts(4)
    gradient = jax.grad(lambda p: BagOfWordsEncoder(CONFIG).apply({"params": p}, ids).pooled.sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    jaxpr = str(jax.make_jaxpr(lambda p: BagOfWordsEncoder(CONFIG).apply({"params": p}, ids))(params))
    assert "name=token_features" in jaxpr


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"hidden_sizes": (4, 0)}, r"hidden_sizes must be positive, got \(4, 0\)"),
        ({"dropout": -0.1}, "dropout must be in"),
    ),
)
def test_invalid_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        BagOfWordsConfig(**fields)


def test_mask_of_another_shape(params):
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        BagOfWordsEncoder(CONFIG).apply({"params": params}, jnp.ones((1, 3), jnp.int32), jnp.ones((1, 4)))
