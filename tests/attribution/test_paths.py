"""Path methods against the straight line, completeness, closed forms, and scipy's Gaussian filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxcore.attribution import completeness_error, integrated_gradients
from jaxcore.attribution.paths import (
    blur_integrated_gradients,
    blur_path,
    path_integrated_gradients,
    polyline_integrated_gradients,
    sequential_integrated_gradients,
    straight_line,
)

WEIGHTS = jax.random.normal(jax.random.key(0), (3, 6))
INPUTS, BASELINE = jax.random.normal(jax.random.key(1), (2, 2, 4, 3))  # [batch, tokens, dim]


def score(x):
    """Tokens interact: a product of sums over tokens."""
    hidden = jnp.tanh(x @ WEIGHTS)
    return jnp.prod(1 + jnp.sum(hidden, axis=1) / 4, axis=1)


def test_the_straight_line_is_integrated_gradients():
    expected = integrated_gradients(score, INPUTS, baseline=BASELINE, num_steps=7, chunk_size=7)
    values = path_integrated_gradients(score, straight_line(INPUTS, BASELINE), num_steps=7, chunk_size=3)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    line = jnp.stack([BASELINE, INPUTS])
    values = polyline_integrated_gradients(score, line, num_steps=7, chunk_size=4)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_a_curve_by_hand():
    """score = x y along (a, a^2): dx-part = int a^2 da = 1/3, dy-part = int a 2a da = 2/3."""
    path = lambda a: {"x": jnp.full((2,), a), "y": jnp.full((2,), a**2)}  # noqa: E731
    values = path_integrated_gradients(lambda z: z["x"] * z["y"], path, num_steps=2, chunk_size=2)
    np.testing.assert_allclose(values["x"], [1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(values["y"], [2 / 3, 2 / 3], rtol=1e-6)


def test_a_curve_is_complete_in_its_ends_alone():
    bend = jax.random.normal(jax.random.key(2), INPUTS.shape)
    line = straight_line(INPUTS, BASELINE)
    values = path_integrated_gradients(
        score, lambda a: line(a) + bend * jnp.sin(jnp.pi * a), num_steps=40, chunk_size=40
    )
    np.testing.assert_allclose(completeness_error(score, INPUTS, values, baseline=BASELINE), 0, atol=1e-4)
    straight = integrated_gradients(score, INPUTS, baseline=BASELINE, num_steps=40, chunk_size=40)
    assert float(jnp.abs(values - straight).max()) > 0.05


def test_a_polyline_by_hand_and_its_left_rule():
    """score = x y, first along x to (1, 0), then along y to (1, 1): all of it goes to y."""
    points = jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    product = lambda z: z[:, 0] * z[:, 1]  # noqa: E731
    values = polyline_integrated_gradients(product, points, chunk_size=1)
    np.testing.assert_allclose(values, [[0.0, 1.0]], atol=1e-7)
    diagonal = jnp.linspace(0, 1, 5)[:, None, None] * jnp.ones((1, 2))
    left = polyline_integrated_gradients(product, diagonal, quadrature="left", chunk_size=4)
    np.testing.assert_allclose(left, [[0.375, 0.375]], rtol=1e-6)  # sum_k (k / 4) / 4


def test_a_polyline_is_complete():
    with jax.enable_x64(True):
        middle = np.random.default_rng(3).standard_normal((3, *INPUTS.shape))
        points = jnp.concatenate([BASELINE[None], middle, INPUTS[None]])
        values = polyline_integrated_gradients(score, points, num_steps=60, chunk_size=80)
        np.testing.assert_allclose(completeness_error(score, points[-1], values, baseline=points[0]), 0, atol=1e-6)


def test_sequential_is_complete_for_each_token():
    inputs = {"word": INPUTS, "shape": jnp.sin(INPUTS)}
    baseline = {"word": BASELINE, "shape": 0.5}
    both = lambda x: score(x["word"] + 0.3 * x["shape"] ** 2)  # noqa: E731
    values = sequential_integrated_gradients(both, inputs, baseline=baseline, num_steps=16, chunk_size=16)
    totals = sum(leaf.sum(axis=2) for leaf in jax.tree.leaves(values))
    for token in range(4):
        word = inputs["word"].at[:, token].set(BASELINE[:, token])
        without = {"word": word, "shape": inputs["shape"].at[:, token].set(0.5)}
        np.testing.assert_allclose(totals[:, token], both(inputs) - both(without), rtol=1e-4, atol=1e-5)


def test_sequential_equals_each_tokens_own_integrated_gradients():
    values = sequential_integrated_gradients(score, INPUTS, baseline=BASELINE, num_steps=5, chunk_size=20)
    for token in range(4):
        start = INPUTS.at[:, token].set(BASELINE[:, token])
        expected = integrated_gradients(score, INPUTS, baseline=start, num_steps=5, chunk_size=5)
        np.testing.assert_allclose(values[:, token], expected[:, token], rtol=1e-4, atol=1e-5)


def test_blur_is_a_gaussian_filter_with_reflecting_borders():
    images = jax.random.normal(jax.random.key(4), (2, 12, 9, 3))
    path = blur_path(images, max_sigma=4.0)
    np.testing.assert_allclose(path(jnp.float32(1.0)), images, atol=1e-6)
    filtered = scipy.ndimage.gaussian_filter(np.asarray(images), (0, 2.0, 2.0, 0), mode="reflect", truncate=8)
    np.testing.assert_allclose(path(jnp.float32(0.5)), filtered, atol=1e-5)
    flat = blur_path(images, max_sigma=1000.0)(jnp.float32(0.0))
    np.testing.assert_allclose(flat, jnp.broadcast_to(images.mean((1, 2), keepdims=True), images.shape), atol=1e-6)


def test_blur_is_complete_from_the_most_blurred_image():
    """Gauss-Legendre to rounding; the trapezoid rule, which takes the image itself too, to second order."""
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(5).standard_normal((2, 8, 8, 1)))
        filters = np.random.default_rng(6).standard_normal((64, 10)) / 8
        detector = lambda x: jnp.sum(jnp.tanh(x.reshape(2, 64) @ filters) ** 2, axis=1)  # noqa: E731
        blurred = blur_path(images, max_sigma=5.0)(jnp.zeros(()))
        assert float(jnp.abs(detector(images) - detector(blurred)).min()) > 0.1

        def error(quadrature, num_steps):
            values = blur_integrated_gradients(
                detector, images, max_sigma=5.0, num_steps=num_steps, quadrature=quadrature, chunk_size=num_steps
            )
            return completeness_error(detector, images, values, baseline=blurred)

        np.testing.assert_allclose(error("gauss_legendre", 80), 0, atol=1e-9)
        np.testing.assert_allclose(error("trapezoid", 101) / error("trapezoid", 201), 4, rtol=0.02)


def test_under_jit_grad_and_a_sharded_batch():
    def total(scale, inputs):
        score = lambda x: jnp.sum((scale * x) ** 2, axis=(1, 2))  # noqa: E731
        values = sequential_integrated_gradients(score, inputs, num_steps=1, chunk_size=2)
        curved = path_integrated_gradients(score, lambda a: a**2 * inputs, num_steps=4, chunk_size=4)
        return jnp.sum(values + curved)

    inputs = jax.random.normal(jax.random.key(7), (8, 2, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    value, slope = jax.jit(jax.value_and_grad(total))(3.0, sharded)
    mass = float(jnp.sum(inputs**2))
    assert value == pytest.approx(2 * 9 * mass, rel=1e-4)
    assert slope == pytest.approx(2 * 6 * mass, rel=1e-4)


def test_bad_input_is_named():
    total = lambda x: jnp.sum(x, axis=(1, 2))  # noqa: E731
    with pytest.raises(ValueError, match="points must be at least 2"):
        polyline_integrated_gradients(total, INPUTS[None])
    with pytest.raises(ValueError, match="one number per example"):
        path_integrated_gradients(lambda x: x, straight_line(INPUTS))
    with pytest.raises(ValueError, match="must be arrays"):
        path_integrated_gradients(total, lambda a: 1.0)
    with pytest.raises(ValueError, match="does not broadcast"):
        straight_line(INPUTS, jnp.ones((5, 5)))
    with pytest.raises(ValueError, match=r"one number of tokens .* got \[2, 4\]"):
        sequential_integrated_gradients(lambda x: total(x[0]), (INPUTS, INPUTS[:, :2]))
    with pytest.raises(ValueError, match=r"\[batch, tokens, ...\]"):
        sequential_integrated_gradients(lambda x: x, INPUTS[:, 0, 0])
    with pytest.raises(ValueError, match="max_sigma must be a positive"):
        blur_integrated_gradients(total, INPUTS, max_sigma=0.0)
    with pytest.raises(ValueError, match="axes to blur must lie in 1 to 2"):
        blur_integrated_gradients(total, INPUTS, axes=(0, 1))
