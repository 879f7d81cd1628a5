"""Draws by inversion against the distribution they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcore.generation import draw_categorical


@pytest.mark.parametrize("size", (5, 600))
def test_frequencies_are_the_probabilities(size):
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=size) * 1.5
    log_weights[rng.random(size) < 0.3] = -np.inf
    probabilities = np.exp(log_weights) / np.exp(log_weights).sum()
    rows = 60000
    tiled = jnp.tile(jnp.asarray(log_weights, jnp.float32), (rows, 1))
    drawn = np.asarray(jax.jit(draw_categorical)(tiled, jax.random.key(0)))
    counts = np.bincount(drawn, minlength=size)
    assert counts[probabilities == 0].sum() == 0
    kept = probabilities > 0
    assert stats.chisquare(counts[kept], rows * probabilities[kept]).pvalue > 1e-3
    assert stats.chisquare(counts[kept], np.full(kept.sum(), rows / kept.sum())).pvalue < 1e-9


def test_rows_draw_from_their_own_weights():
    certain = jnp.full((4, 300), -jnp.inf).at[jnp.arange(4), jnp.array([0, 255, 256, 299])].set(3.0)
    np.testing.assert_array_equal(draw_categorical(certain, jax.random.key(1)), [0, 255, 256, 299])
