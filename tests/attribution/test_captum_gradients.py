"""Gradient methods against captum in float64: an MLP, and a CNN with pooling and a residual, weights moved over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution import integrated_gradients
from jaxcore.attribution.combinators import at_layer
from jaxcore.attribution.gradients import grad_cam, input_x_gradient, saliency
from jaxcore.attribution.layers import (
    activation_gradient,
    internal_influence,
    layer_conductance,
    layer_conductance_by_differences,
)
from jaxcore.attribution.scores import logit

captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
torch = pytest.importorskip("torch")

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
TARGET = 1
RNG = np.random.default_rng(0)
DENSE = [RNG.standard_normal(shape) / 2 for shape in ((6, 8), (8,), (8, 5), (5,), (5, 3))]
KERNELS = [RNG.standard_normal(shape) / 3 for shape in ((3, 3, 2, 4), (3, 3, 4, 4))]
HEAD = RNG.standard_normal((4 * 3 * 3, 3)) / 3
VECTORS, VECTOR_BASELINE = RNG.standard_normal((2, 4, 6))
IMAGES, IMAGE_BASELINE = RNG.standard_normal((2, 3, 8, 6, 2))


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def dense(x):
    h = jax.nn.softplus(x @ DENSE[0] + DENSE[1])
    h = checkpoint_name(jnp.tanh(h @ DENSE[2] + DENSE[3]), "hidden")
    return (h**2) @ DENSE[4]


class Dense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = [torch.tensor(w) for w in DENSE]
        self.hidden = torch.nn.Identity()

    def forward(self, x):
        h = torch.nn.functional.softplus(x @ self.weights[0] + self.weights[1])
        h = self.hidden(torch.tanh(h @ self.weights[2] + self.weights[3]))
        return (h**2) @ self.weights[4]


def convolutional(x):
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(  # noqa: E731
        x, jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(convolve(x, KERNELS[0]))
    h = checkpoint_name(jax.nn.relu(convolve(h, KERNELS[1]) + h), "features")
    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    h = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 2, 1, 1), (1, 1, 1, 1), "VALID") / 2
    return jnp.tanh(h).reshape(len(x), -1) @ HEAD


class Convolutional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = [torch.tensor(k.transpose(3, 2, 0, 1)) for k in KERNELS]
        self.features = torch.nn.Identity()

    def forward(self, x):
        h = torch.relu(torch.nn.functional.conv2d(x, self.kernels[0], padding=1))
        h = self.features(torch.relu(torch.nn.functional.conv2d(h, self.kernels[1], padding=1) + h))
        h = torch.nn.functional.max_pool2d(h, 2)
        h = torch.nn.functional.avg_pool2d(h, (2, 1), stride=1)
        return torch.tanh(h).permute(0, 2, 3, 1).reshape(len(x), -1) @ torch.tensor(HEAD)


def channels_first(images):
    return torch.tensor(images.transpose(0, 3, 1, 2))


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


DENSE_SCORE, IMAGE_SCORE = logit(dense, TARGET), logit(convolutional, TARGET)


def test_saliency():
    expected = captum.Saliency(Dense()).attribute(torch.tensor(VECTORS), TARGET, abs=False)
    np.testing.assert_allclose(saliency(DENSE_SCORE, VECTORS), expected.numpy(), **TOLERANCE)
    expected = captum.Saliency(Convolutional()).attribute(channels_first(IMAGES), TARGET, abs=True)
    np.testing.assert_allclose(np.abs(saliency(IMAGE_SCORE, IMAGES)), channels_last(expected), **TOLERANCE)


def test_input_x_gradient():
    expected = captum.InputXGradient(Dense()).attribute(torch.tensor(VECTORS), TARGET)
    np.testing.assert_allclose(input_x_gradient(DENSE_SCORE, VECTORS), expected.detach().numpy(), **TOLERANCE)
    expected = captum.InputXGradient(Convolutional()).attribute(channels_first(IMAGES), TARGET)
    np.testing.assert_allclose(input_x_gradient(IMAGE_SCORE, IMAGES), channels_last(expected), **TOLERANCE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gauss_legendre", "gausslegendre"),
        ("midpoint", "riemann_middle"),
        ("left", "riemann_left"),
        ("right", "riemann_right"),
        ("trapezoid", "riemann_trapezoid"),
    ],
)
def test_integrated_gradients(ours, theirs):
    """Captum's trapezoid gives n nodes the weights of n intervals, which sum to (n - 1) / n; ours sum to 1."""
    expected = captum.IntegratedGradients(Dense()).attribute(
        torch.tensor(VECTORS), torch.tensor(VECTOR_BASELINE), TARGET, n_steps=9, method=theirs
    )
    values = integrated_gradients(
        DENSE_SCORE, jnp.asarray(VECTORS), baseline=VECTOR_BASELINE, num_steps=9, quadrature=ours, chunk_size=9
    )
    share = 8 / 9 if ours == "trapezoid" else 1
    np.testing.assert_allclose(share * values, expected.numpy(), **TOLERANCE)


def test_integrated_gradients_of_images_and_of_several_inputs():
    expected = captum.IntegratedGradients(Convolutional()).attribute(
        channels_first(IMAGES), channels_first(IMAGE_BASELINE), TARGET, n_steps=20
    )
    values = integrated_gradients(
        IMAGE_SCORE, jnp.asarray(IMAGES), baseline=IMAGE_BASELINE, num_steps=20, chunk_size=20
    )
    np.testing.assert_allclose(values, channels_last(expected), **TOLERANCE)

    model, cnn = Dense(), Convolutional()
    both = (torch.tensor(VECTORS[:3]), channels_first(IMAGES))
    expected = captum.IntegratedGradients(lambda v, i: (model(v) * cnn(i)).sum(1)).attribute(both, n_steps=10)
    inputs = {"image": jnp.asarray(IMAGES), "vector": jnp.asarray(VECTORS[:3])}
    score = lambda x: jnp.sum(dense(x["vector"]) * convolutional(x["image"]), axis=1)  # noqa: E731
    values = integrated_gradients(score, inputs, num_steps=10, chunk_size=10)
    np.testing.assert_allclose(values["vector"], expected[0].numpy(), **TOLERANCE)
    np.testing.assert_allclose(values["image"], channels_last(expected[1]), **TOLERANCE)


def test_grad_cam():
    model = Convolutional()
    expected = captum.LayerGradCam(model, model.features).attribute(
        channels_first(IMAGES), TARGET, relu_attributions=True
    )
    values = grad_cam(IMAGE_SCORE, IMAGES, "features")
    assert 0.2 < np.mean(values > 0) < 0.99  # both sides of the relu
    np.testing.assert_allclose(values, expected[:, 0].detach().numpy(), **TOLERANCE)


def test_gradient_x_activation():
    model = Convolutional()
    expected = captum.LayerGradientXActivation(model, model.features).attribute(channels_first(IMAGES), TARGET)
    activation, gradient = activation_gradient(IMAGE_SCORE, IMAGES, "features")
    np.testing.assert_allclose(activation * gradient, channels_last(expected), **TOLERANCE)
    values = input_x_gradient(*at_layer(IMAGE_SCORE, IMAGES, "features")[::-1])
    np.testing.assert_allclose(values, channels_last(expected), **TOLERANCE)


def test_integrated_gradients_at_a_layer():
    model = Dense()
    expected = captum.LayerIntegratedGradients(model, model.hidden).attribute(
        torch.tensor(VECTORS), torch.tensor(VECTOR_BASELINE), TARGET, n_steps=12
    )
    activation, score = at_layer(DENSE_SCORE, VECTORS, "hidden")
    start = at_layer(DENSE_SCORE, VECTOR_BASELINE, "hidden")[0]
    values = integrated_gradients(score, activation, baseline=start, num_steps=12, chunk_size=12)
    np.testing.assert_allclose(values, expected.detach().numpy(), **TOLERANCE)


@pytest.mark.parametrize(("ours", "theirs"), [("gauss_legendre", "gausslegendre"), ("midpoint", "riemann_middle")])
def test_conductance_by_differences(ours, theirs):
    model = Dense()
    expected = captum.LayerConductance(model, model.hidden).attribute(
        torch.tensor(VECTORS), torch.tensor(VECTOR_BASELINE), TARGET, n_steps=10, method=theirs
    )
    values = layer_conductance_by_differences(
        DENSE_SCORE, VECTORS, "hidden", baseline=VECTOR_BASELINE, num_steps=10, quadrature=ours, chunk_size=5
    )
    np.testing.assert_allclose(values, expected.detach().numpy(), **TOLERANCE)


def test_conductance_is_the_limit_of_captums():
    """Captum's estimate has an error c / n: two of them extrapolate to the integral, which 20 nodes give exactly."""
    model = Dense()
    method = captum.LayerConductance(model, model.hidden)
    ends = torch.tensor(VECTORS), torch.tensor(VECTOR_BASELINE)
    coarse, fine = (method.attribute(*ends, TARGET, n_steps=n, method="riemann_trapezoid") for n in (2000, 4000))
    values = layer_conductance(DENSE_SCORE, VECTORS, "hidden", baseline=VECTOR_BASELINE, num_steps=20, chunk_size=20)
    np.testing.assert_allclose(values, (2 * fine - coarse).detach().numpy(), **TOLERANCE)


def test_internal_influence():
    model = Dense()
    expected = captum.InternalInfluence(model, model.hidden).attribute(
        torch.tensor(VECTORS), torch.tensor(VECTOR_BASELINE), TARGET, n_steps=11
    )
    values = internal_influence(DENSE_SCORE, VECTORS, "hidden", baseline=VECTOR_BASELINE, num_steps=11, chunk_size=4)
    np.testing.assert_allclose(values, expected.detach().numpy(), **TOLERANCE)
    model = Convolutional()
    expected = captum.InternalInfluence(model, model.features).attribute(
        channels_first(IMAGES), channels_first(IMAGE_BASELINE), TARGET, n_steps=6
    )
    values = internal_influence(IMAGE_SCORE, IMAGES, "features", baseline=IMAGE_BASELINE, num_steps=6, chunk_size=6)
    np.testing.assert_allclose(values, channels_last(expected), **TOLERANCE)
