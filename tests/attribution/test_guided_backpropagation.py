"""Guided backpropagation and deconvnet against captum and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.guided_backpropagation import deconvnet, guided_backpropagation

RNG = np.random.default_rng(0)


def test_by_hand_in_a_scan():
    """Two steps of h = relu(h) - 1: gradients of both signs, active and inactive units."""
    signs = jnp.array([1.0, -1.0, 1.0, -1.0])
    inputs = jnp.array([[2.0, 2.0, -2.0, -2.0]])

    def score(x):
        return jax.lax.scan(lambda h, _: (jax.nn.relu(h) + 1, None), x, length=2)[0] @ signs

    np.testing.assert_array_equal(guided_backpropagation(score, inputs), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(deconvnet(score, inputs), [[1, 0, 1, 0]])
    np.testing.assert_array_equal(jax.jit(lambda x: deconvnet(score, x))(inputs), [[1, 0, 1, 0]])


def test_a_maximum_with_zero_is_a_rectifier_and_other_maxima_are_not():
    inputs = jnp.array([[2.0, -3.0]])
    score = lambda x: -jnp.sum(jnp.maximum(x, 1.0), axis=1) + jnp.sum(jnp.maximum(x, 0.0), axis=1)  # noqa: E731
    np.testing.assert_array_equal(guided_backpropagation(score, inputs), [[0.0, 0.0]])
    np.testing.assert_array_equal(deconvnet(score, inputs), [[0.0, 1.0]])


@pytest.mark.parametrize("method", [guided_backpropagation, deconvnet])
def test_a_score_without_rectifiers_is_refused(method):
    with pytest.raises(ValueError, match="the score has none"):
        method(lambda x: jnp.sum(jnp.tanh(x), axis=1), jnp.ones((2, 3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "peer"), [(guided_backpropagation, "GuidedBackprop"), (deconvnet, "Deconvolution")])
def test_equals_captum(method, peer):
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn
    cnn = layers.Sequential(
        layers.Conv2d(2, 3, 3),
        layers.ReLU(),
        layers.Conv2d(3, 4, 3),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(16, 3),
    ).double()
    images = RNG.standard_normal((2, 2, 6, 6))
    expected = getattr(captum, peer)(cnn).attribute(torch.tensor(images), target=1).detach().numpy()
    weights = [(cnn[i].weight.detach().numpy(), cnn[i].bias.detach().numpy()) for i in (0, 2, 5)]

    def score(x):
        for kernel, bias in weights[:2]:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"))
            x = jax.nn.relu(x + bias[:, None, None])
        weight, bias = weights[2]
        return (x.reshape(len(x), -1) @ weight.T + bias)[:, 1]

    with jax.enable_x64(True):
        values = method(score, jnp.asarray(images))
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9)
