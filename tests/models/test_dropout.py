"""Dropout: rate, scale, independence of entries, reproducibility."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import dropout


@pytest.mark.parametrize("rate", (0.05, 0.1, 0.5, 0.9))
def test_rate_and_scale(rate):
    got = np.asarray(dropout(jnp.ones((1000, 1003)), rate=rate, key=jax.random.key(0)))
    kept = got > 0
    deviation = np.sqrt(rate * (1 - rate) / got.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    np.testing.assert_allclose(got[kept], 1 / (1 - rate), rtol=1e-6)
    for axis in (0, 1):  # no row or column is special
        means = kept.mean(axis)
        assert abs(means.std() / np.sqrt(rate * (1 - rate) / kept.shape[axis]) - 1) < 0.15


@pytest.mark.parametrize("lag", (1, 2, 3, 4, 8, 16))
def test_neighbours_are_uncorrelated(lag):
    kept = np.asarray(dropout(jnp.ones(10**6), rate=0.1, key=jax.random.key(1))) > 0
    assert abs(np.corrcoef(kept[:-lag], kept[lag:])[0, 1]) < 5e-3


def test_reproducible_and_key_dependent():
    x = jnp.ones((7, 33))
    one, two = (dropout(x, rate=0.3, key=jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one, dropout(x, rate=0.3, key=jax.random.key(0)))
    assert (np.asarray(one) != np.asarray(two)).mean() > 0.2


@pytest.mark.parametrize("shape", ((), (1,), (3, 5, 7), (2, 0)))
def test_any_shape_and_dtype(shape):
    for dtype in (jnp.float32, jnp.bfloat16):
        got = dropout(jnp.ones(shape, dtype), rate=0.25, key=jax.random.key(0))
        assert got.shape == shape and got.dtype == dtype


def test_zero_rate_is_identity_and_bad_rates_are_refused():
    x = jnp.arange(4.0)
    assert dropout(x, rate=0.0, key=jax.random.key(0)) is x
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1.0"):
        dropout(x, rate=1.0, key=jax.random.key(0))
