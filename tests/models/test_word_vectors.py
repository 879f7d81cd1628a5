"""The encoder on frozen word vectors: a mean, an identity at first, no gradient to the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.models.word_vectors import WordVectorConfig, WordVectorEncoder

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.standard_normal((20, 6)), jnp.float32).at[0].set(0.0).at[7].set(0.0)
IDS = jnp.array([[1, 2, 7, 3], [4, 5, 0, 0], [7, 0, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
MODEL = WordVectorEncoder(WordVectorConfig(vocab_size=20, embedding_size=6, dropout=0.5))
PARAMS = meta.unbox(MODEL.init(jax.random.key(0), IDS, table=TABLE)["params"])


def test_starts_as_the_mean_of_the_words_that_have_a_vector():
    pooled = MODEL.apply({"params": PARAMS}, IDS, MASK, table=TABLE).pooled
    expected = np.stack([np.mean(TABLE[jnp.array([1, 2, 3])], axis=0), np.mean(TABLE[4:6], axis=0), np.zeros(6)])
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_padding_does_not_count_even_with_a_vector():
    padded = MODEL.apply({"params": PARAMS}, IDS.at[1, 2].set(9), MASK, table=TABLE).pooled
    np.testing.assert_array_equal(padded, MODEL.apply({"params": PARAMS}, IDS, MASK, table=TABLE).pooled)


def test_the_table_gets_no_gradient_and_the_map_does():
    def loss(params, table):
        return jnp.sum(MODEL.apply({"params": params}, IDS, MASK, table=table).pooled ** 2)

    of_params, of_table = jax.grad(loss, (0, 1))(PARAMS, TABLE)
    np.testing.assert_array_equal(of_table, 0)
    assert np.abs(of_params["kernel"]).max() > 0


def test_dropout_makes_views_that_differ_and_is_off_in_evaluation():
    def view(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return MODEL.apply({"params": PARAMS}, IDS, MASK, table=TABLE, deterministic=False, rngs=rngs).pooled

    assert np.any(view(0) != view(1))
    np.testing.assert_array_equal(view(0), view(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODEL.apply({"params": PARAMS}, IDS, MASK, table=TABLE[:5]), r"\[20, 6\], got \(5, 6\)"),
        (lambda: WordVectorConfig(vocab_size=0), "must be positive"),
        (lambda: WordVectorConfig(dropout=1.0), "dropout must be in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
