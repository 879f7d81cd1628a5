"""RISE against its closed form for linear scores, and what its masks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.rise import rise, rise_over_groups, smooth_mask


def test_masks_are_smooth_in_range_and_keep_every_pixel_equally_often():
    keys = jax.random.split(jax.random.key(0), 4000)
    masks = np.asarray(jax.jit(jax.vmap(lambda k: smooth_mask(k, (10, 9), (3, 4), 0.3)))(keys))
    assert masks.shape == (4000, 10, 9) and masks.min() >= 0 and masks.max() <= 1
    standard_error = masks.std(axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(masks.mean(axis=0) - 0.3) < 4.5 * standard_error)
    cell = np.array([4, 3])  # ceil of the size over the grid: between centres of cells a mask is linear
    assert np.abs(np.diff(masks, axis=1)).max() <= 1 / cell[0] + 1e-6
    assert np.abs(np.diff(masks, axis=2)).max() <= 1 / cell[1] + 1e-6
    neighbours = np.corrcoef(masks[:, 5, 4], masks[:, 5, 5])[0, 1]
    distant = np.corrcoef(masks[:, 0, 0], masks[:, 9, 8])[0, 1]
    assert neighbours > 0.7 and abs(distant) < 0.1


def test_of_a_linear_score_is_the_covariance_of_the_masks():
    """score = sum of w (x' + m d): E[score m_i] / p, with the masks' moments taken from other masks."""
    rng = np.random.default_rng(0)
    inputs, weights = rng.standard_normal((2, 6, 5, 2)), rng.standard_normal((6, 5, 2))
    inputs, weights = jnp.asarray(inputs, jnp.float32), jnp.asarray(weights, jnp.float32)
    score = lambda x: jnp.sum(x * weights, axis=(1, 2, 3))  # noqa: E731
    options = {"grid": (2, 3), "keep_probability": 0.4, "num_samples": 4000, "chunk_size": 1000, "baseline": 0.5}
    values = np.asarray(jax.jit(lambda x: rise(score, x, jax.random.key(1), **options))(inputs))
    keys = jax.random.split(jax.random.key(99), 20_000)
    masks = np.asarray(jax.jit(jax.vmap(lambda k: smooth_mask(k, (6, 5), (2, 3), 0.4)))(keys)).reshape(20_000, -1)
    slopes = np.sum(np.asarray(weights * (inputs - 0.5)), axis=-1).reshape(2, -1)
    scores = masks @ slopes.T + 0.5 * float(jnp.sum(weights))
    products = scores[:, :, None] * masks[:, None, :] / 0.4
    expected, spread = products.mean(axis=0).reshape(2, 6, 5), products.std(axis=0).reshape(2, 6, 5)
    assert np.all(np.abs(values[..., 0] - expected) < 5 * spread * np.sqrt(1 / 4000 + 1 / 20_000))
    np.testing.assert_array_equal(values[..., 0], values[..., 1])  # one map for all channels


def test_layouts_agree_and_the_chunk_does_not_matter():
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 6, 5))
    options = {"grid": (2, 2), "num_samples": 20}
    first = rise(
        lambda x: jnp.sum(x**2, axis=(1, 2, 3)),
        inputs,
        jax.random.key(1),
        spatial_axes=(2, 3),
        chunk_size=20,
        **options,
    )
    for chunk_size in (3, None):
        last = rise(
            lambda x: jnp.sum(x["image"] ** 2, axis=(1, 2, 3)),
            {"image": jnp.moveaxis(inputs, 1, 3)},
            jax.random.key(1),
            chunk_size=chunk_size,
            **options,
        )
        np.testing.assert_allclose(jnp.moveaxis(last["image"], 3, 1), first, rtol=1e-4, atol=1e-5)


def test_over_groups_of_a_linear_score():
    """E[score z_f] / p = c + w_f + p * sum of the other w; padding gets exactly 0."""
    mask = jnp.array([[1, 1, 1], [0, 1, 1]])
    inputs = jnp.array([[[1.0], [2.0], [-1.0]], [[9.0], [3.0], [0.5]]])
    score = lambda x: jnp.sum(x, axis=(1, 2))  # noqa: E731
    values = np.asarray(
        rise_over_groups(
            score,
            inputs,
            jax.random.key(0),
            groups=token_groups(mask),
            keep_probability=0.3,
            num_samples=8000,
            chunk_size=2000,
        )
    )
    expected = np.array([[1 + 0.3 * 1, 2 + 0.3 * 0, -1 + 0.3 * 3], [0, 9 + 3 + 0.3 * 0.5, 9 + 0.5 + 0.3 * 3]])
    np.testing.assert_allclose(values[..., 0], expected, atol=5 * 10 / np.sqrt(8000))
    assert values[1, 0, 0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_axes": (1, 4)}, "spatial_axes"),
        ({"grid": (7, 7)}, r"grid must have 1 to \(6, 5\) cells"),
        ({"keep_probability": 0.0}, "keep_probability must lie between"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
    ],
)
def test_bad_input_is_named(options, message):
    options = {"grid": (2, 2), **options}
    with pytest.raises(ValueError, match=message):
        rise(lambda x: jnp.sum(x, axis=(1, 2, 3)), jnp.ones((2, 6, 5, 3)), jax.random.key(0), **options)


def test_images_of_two_sizes_are_refused():
    images = (jnp.ones((2, 6, 5, 1)), jnp.ones((2, 5, 5, 1)))
    with pytest.raises(ValueError, match="one height and width"):
        rise(lambda x: jnp.sum(x[0], axis=(1, 2, 3)), images, jax.random.key(0), grid=(2, 2))
