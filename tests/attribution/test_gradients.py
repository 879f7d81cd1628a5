"""Saliency, input x gradient and Grad-CAM against closed forms; captum parity is in test_captum_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution.gradients import grad_cam, input_x_gradient, saliency

INPUTS = {"a": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([[[2.0]], [[-1.0]]])}


def product(x):
    return x["a"][:, 0] * x["a"][:, 1] ** 2 * x["b"][:, 0, 0]


def test_saliency_is_the_signed_gradient_of_each_leaf():
    values = saliency(product, INPUTS)
    a, b = INPUTS["a"], INPUTS["b"][:, 0, 0]
    np.testing.assert_allclose(values["a"][:, 0], a[:, 1] ** 2 * b)
    np.testing.assert_allclose(values["a"][:, 1], 2 * a[:, 0] * a[:, 1] * b)
    np.testing.assert_allclose(values["b"][:, 0, 0], a[:, 0] * a[:, 1] ** 2)


def test_input_x_gradient_of_a_linear_score_is_complete():
    weights, baseline = jnp.array([2.0, -1.0]), {"a": jnp.array([0.5, 1.0]), "b": 3.0}
    score = lambda x: x["a"] @ weights + 4 * x["b"][:, 0, 0]  # noqa: E731
    values = input_x_gradient(score, INPUTS, baseline=baseline)
    np.testing.assert_allclose(values["a"], weights * (INPUTS["a"] - baseline["a"]))
    np.testing.assert_allclose(values["b"], 4 * (INPUTS["b"] - 3.0))


def test_half_precision_inputs_give_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), INPUTS)
    for method in (saliency, input_x_gradient):
        assert {leaf.dtype for leaf in jax.tree.leaves(method(product, half))} == {jnp.dtype("float32")}


def test_under_jit_vmap_grad_and_sharding():
    score = lambda x: jnp.sum(x**3, axis=1)  # noqa: E731
    inputs = jnp.arange(1.0, 33.0).reshape(8, 4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    values = jax.jit(lambda x: input_x_gradient(score, x))(sharded)
    assert len(values.sharding.device_set) == 8
    np.testing.assert_allclose(values, 3 * inputs**3, rtol=1e-6)
    stacked = jax.vmap(lambda x: saliency(score, x))(inputs.reshape(2, 4, 4))
    np.testing.assert_allclose(stacked, 3 * inputs.reshape(2, 4, 4) ** 2, rtol=1e-6)
    second = jax.grad(lambda x: jnp.sum(saliency(score, x)))(inputs)
    np.testing.assert_allclose(second, 6 * inputs, rtol=1e-6)


def test_grad_cam_by_hand():
    """One channel speaks for the score at one place, another against it."""
    gains = np.zeros((2, 3, 2))  # [height, width, channels]
    gains[0, 1, 0], gains[1, 2, 1] = 6.0, -12.0
    score = lambda x: jnp.sum(checkpoint_name(x, "h") * gains, axis=(1, 2, 3))  # noqa: E731
    images = jax.random.normal(jax.random.key(0), (4, 2, 3, 2))
    expected = np.maximum(1.0 * images[..., 0] - 2.0 * images[..., 1], 0)  # mean gradients: 6 / 6 and -12 / 6
    np.testing.assert_allclose(grad_cam(score, images, "h"), expected, rtol=1e-5, atol=1e-6)
    moved = lambda x: score(jnp.moveaxis(x, 1, -1))  # noqa: E731
    first = lambda x: moved(checkpoint_name(x, "first"))  # noqa: E731
    values = grad_cam(first, jnp.moveaxis(images, -1, 1), "first", spatial_axes=(2, 3), channel_axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_grad_cam_of_every_layer_of_a_scan():
    kernels = jax.random.normal(jax.random.key(1), (3, 2, 2))
    layer = lambda h, kernel: (checkpoint_name(jnp.tanh(h @ kernel), "h"), None)  # noqa: E731
    score = lambda x: jnp.sum(jax.lax.scan(layer, x, kernels)[0], axis=(1, 2))  # noqa: E731
    values = grad_cam(score, jax.random.normal(jax.random.key(2), (4, 5, 2)), "h", spatial_axes=(2,))
    assert values.shape == (3, 4, 5)
    assert float(values.max()) > 0


def test_bad_input_is_named():
    score = lambda x: jnp.sum(checkpoint_name(x, "h"), axis=(1, 2, 3))  # noqa: E731
    images = jnp.ones((1, 2, 2, 3))
    for axes, channel in [((1, 5), -1), ((1, 3), -1), ((), -1)]:
        with pytest.raises(ValueError, match="must be different axes of the activation 'h', which has 4"):
            grad_cam(score, images, "h", spatial_axes=axes, channel_axis=channel)
    with pytest.raises(ValueError, match="floating point"):
        saliency(score, jnp.ones((1, 2, 2, 3), jnp.int32))
    with pytest.raises(ValueError, match="one number per example"):
        input_x_gradient(lambda x: x, images)
    with pytest.raises(ValueError, match="saliency met values that are not finite in 1 of 2 examples"):
        saliency(lambda x: jnp.sum(jnp.sqrt(x), axis=1), jnp.array([[1.0], [0.0]]))
