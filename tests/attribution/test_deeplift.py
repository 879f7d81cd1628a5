"""DeepLIFT against captum, completeness, closed forms, and a brute-force reveal-cancel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcore.attribution import completeness_error
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.models.encoder import Encoder
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.transforms import intervene
from jaxcore.transforms.propagation import KINDS, register_rule

RNG = np.random.default_rng(0)
W, V, U = RNG.standard_normal((5, 6)), RNG.standard_normal((6, 4)), RNG.standard_normal((6, 6))
X, B = RNG.standard_normal((3, 5)), RNG.standard_normal((3, 5))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def largest_error(score, inputs, baseline, **options):
    values = deep_lift(score, inputs, baseline=baseline, **options)
    assert np.abs(values).max() > 1e-3
    return np.abs(completeness_error(score, inputs, values, baseline=baseline)).max()


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


def test_of_a_linear_score_is_gradient_times_difference():
    weights = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])
    values = deep_lift(lambda x: x @ weights + 7, jnp.asarray(X), baseline=B)
    np.testing.assert_allclose(values, weights * (X - B), rtol=1e-12)


def test_a_product_is_shared_by_the_mean_of_the_other_factor():
    score = lambda x: x[:, 0] * x[:, 1]  # noqa: E731
    inputs, baseline = jnp.array([[2.0, 5.0]]), jnp.array([[1.0, -1.0]])
    np.testing.assert_allclose(deep_lift(score, inputs, baseline=baseline), [[1 * 2.0, 6 * 1.5]])
    np.testing.assert_allclose(
        deep_lift(score, inputs, baseline=baseline, product_rule="gradient"), [[1 * 5.0, 6 * 2.0]]
    )


ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x / np.sqrt(2))),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "hard_swish": jax.nn.hard_swish,
    "step": lambda x: (x > 0.3).astype(x.dtype) * 2.0,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_several_primitives_is_one_function(name):
    """The contribution of each coordinate of sum(f(x)) is its own f(x) - f(x'): the secant of the whole."""
    f = ACTIVATIONS[name]
    values = deep_lift(lambda x: jnp.sum(f(x), axis=1), jnp.asarray(X), baseline=B)
    np.testing.assert_allclose(values, f(jnp.asarray(X)) - f(jnp.asarray(B)), rtol=1e-9, atol=1e-12)


def test_where_nothing_changes_the_derivative_stands_in():
    """Coordinate 0 equals its reference; its multiplier shows in an earlier layer whose own parts cancel."""
    inputs, baseline = jnp.array([[2.0, -1.0]]), jnp.array([[1.0, 0.0]])
    values = deep_lift(lambda x: jax.nn.silu(x[:, 0] + x[:, 1]), inputs, baseline=baseline)
    slope = jax.grad(jax.nn.silu)(1.0)
    np.testing.assert_allclose(values, [[slope, -slope]], rtol=1e-10)


def test_softmax_is_invariant_to_a_shift_and_tends_to_its_gradient():
    target = jnp.array([0.0, 1.0, 0.0, 0.0, 2.0])
    score = lambda x: jax.nn.softmax(x) @ target  # noqa: E731
    plain = lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=1, keepdims=True) @ target  # noqa: E731
    values = deep_lift(score, jnp.asarray(X), baseline=B)
    np.testing.assert_allclose(deep_lift(score, X + 100.0, baseline=B + 100.0), values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(deep_lift(plain, jnp.asarray(X), baseline=B), values, rtol=1e-9, atol=1e-12)
    step = 1e-6 * B
    near = deep_lift(score, jnp.asarray(X), baseline=X - step)
    np.testing.assert_allclose(near, step * jax.grad(lambda x: score(x).sum())(jnp.asarray(X)), rtol=1e-3, atol=1e-12)


def scan_rnn(x):
    state, _ = jax.lax.scan(
        lambda h, x_t: (jnp.tanh(h @ U + x_t @ W), None), jnp.zeros((x.shape[0], 6)), x.swapaxes(0, 1)
    )
    return jnp.sum(state, axis=1)


def scan_lstm(x):
    gates = np.random.default_rng(1).standard_normal((4, 11, 6))

    def step(state, x_t):
        h, c = state
        z = jnp.concatenate([h, x_t], axis=1)
        i, f, o = (jax.nn.sigmoid(z @ g) for g in gates[:3])
        c = f * c + i * jnp.tanh(z @ gates[3])
        return (o * jnp.tanh(c), c), h

    zeros = jnp.zeros((x.shape[0], 6))
    (h, _), earlier = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
    return jnp.sum(h, axis=1) + jnp.sum(earlier, axis=(0, 2))


def transformer_block(x):
    h = x @ W
    q, k, v = h @ U, h @ U.T, h @ (U / 2)
    mask = jnp.arange(4) < 3
    logits = jnp.where(mask, q @ k.swapaxes(1, 2) / 3, -1e30)
    h = layer_norm(h + jax.nn.softmax(logits, axis=-1) @ v)
    h = layer_norm(h + jax.checkpoint(lambda h: jax.nn.gelu(h @ V) @ V.T)(h))
    return jax.nn.log_softmax(h[:, 0] @ V)[:, 1] + jax.nn.logsumexp(h[:, 1], axis=-1)


def masked_softmax(x):
    mask, h = jnp.arange(4) < 3, jnp.sum(x @ W, axis=-1)
    weights = jnp.asarray([0.5, 2.0, 1.0, 0.1])
    kept = jnp.where(mask, jax.nn.log_softmax(h, where=mask), 0) + jax.nn.softmax(h, where=mask)
    return kept @ U[0, :4] + jax.nn.logsumexp(h, axis=1, b=weights) + jax.nn.logsumexp(h, axis=1, where=mask)


def similarity(x):
    from jaxcore.attribution.scores import similarity

    return similarity(lambda x: jnp.tanh(x.mean(1) @ W), jnp.asarray(U[0]))(x)


@pytest.mark.parametrize(
    "score", [scan_rnn, scan_lstm, transformer_block, masked_softmax, similarity], ids=lambda f: f.__name__
)
def test_completeness_of_plain_jax(score):
    inputs, baseline = RNG.standard_normal((2, 3, 4, 5))[:, :2]
    assert largest_error(score, jnp.asarray(inputs), baseline) < 1e-9


def test_completeness_of_the_encoder_and_of_an_nnx_model():
    config = EncoderConfig(
        vocab_size=20, num_layers=2, hidden_size=8, num_heads=2, intermediate_size=12, max_positions=8, remat="full"
    )
    ids, mask = jnp.array([[1, 2, 3, 4], [5, 6, 7, 0]]), jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    encoder = Encoder(config)
    parameters = jax.tree.map(lambda p: p * 5, nn.meta.unbox(encoder.init(jax.random.key(0), ids)))
    embeddings, baseline = jax.random.normal(jax.random.key(1), (2, 2, 4, 8), jnp.float32)

    def score(x):
        run = intervene(lambda: encoder.apply(parameters, ids, mask), {"embeddings": x})
        return run().pooled[:, 0]

    assert largest_error(score, embeddings, baseline) < 1e-5
    model = nnx.Sequential(nnx.Linear(5, 7, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(7, 2, rngs=nnx.Rngs(1)))
    assert largest_error(lambda x: model(x)[:, 0], jnp.asarray(X, jnp.float32), jnp.asarray(B, jnp.float32)) < 1e-5


def test_a_branch_and_a_reused_layer():
    layer = lambda x: jax.nn.relu(x @ U)  # noqa: E731

    def score(x):
        h = jax.lax.cond(jnp.array(True), lambda h: (layer(h), 1.0), lambda h: (jnp.zeros_like(h), 1.0), x @ W)[0]
        return jnp.sum(layer(h), axis=1)

    assert largest_error(score, jnp.asarray(X), B) < 1e-9


def reveal_cancel_reference(x, b):
    """Two layers by hand, from the paper's equations, one contribution at a time."""
    z0, terms = b @ W, (x - b)[:, None] * W
    up, down = np.where(terms > 0, terms, 0).sum(0), np.where(terms < 0, terms, 0).sum(0)
    f = lambda z: np.maximum(z, 0)  # noqa: E731
    gain_up = (f(z0 + up) - f(z0) + f(z0 + up + down) - f(z0 + down)) / 2
    gain_down = (f(z0 + down) - f(z0) + f(z0 + up + down) - f(z0 + up)) / 2
    up, down = np.where(up == 0, 1, up), np.where(down == 0, 1, down)
    multipliers = np.where(terms > 0, gain_up / up, gain_down / down) * W
    return (x - b) * (multipliers @ V[:, 0])


def test_reveal_cancel():
    score = lambda x: jax.nn.relu(x @ W) @ V[:, 0]  # noqa: E731
    values = deep_lift(score, jnp.asarray(X), baseline=B, activation_rule="reveal_cancel")
    expected = np.stack([reveal_cancel_reference(x, b) for x, b in zip(X, B, strict=True)])
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    # The paper's figure: o = min(i1, i2) = i1 - relu(i1 - i2); rescale gives one input all, reveal-cancel each half.
    minimum = lambda x: x[:, 0] - jax.nn.relu(x[:, 0] - x[:, 1])  # noqa: E731
    inputs = jnp.array([[10.0, 6.0]])
    np.testing.assert_allclose(deep_lift(minimum, inputs), [[0.0, 6.0]], atol=1e-12)
    np.testing.assert_allclose(deep_lift(minimum, inputs, activation_rule="reveal_cancel"), [[3.0, 3.0]])
    inputs, baseline = RNG.standard_normal((2, 2, 4, 5))
    assert largest_error(transformer_block, jnp.asarray(inputs), baseline, activation_rule="reveal_cancel") < 1e-9


def test_under_jit_vmap_and_grad():
    score = lambda x: jnp.sum(jax.nn.silu(x @ W), axis=1)  # noqa: E731
    expected = deep_lift(score, jnp.asarray(X), baseline=B)
    np.testing.assert_allclose(jax.jit(lambda x: deep_lift(score, x, baseline=B))(X), expected, rtol=1e-12)
    alone = jax.vmap(lambda x, b: deep_lift(score, x[None], baseline=b[None])[0])(X, B)
    np.testing.assert_allclose(alone, expected, rtol=1e-12)

    def first(scale):  # contributions as a training signal
        return deep_lift(lambda x: jnp.sum(jnp.tanh(x * scale) ** 2, axis=1), jnp.array([[0.7]]))[0, 0]

    assert jax.grad(first)(1.5) == pytest.approx(2 * np.tanh(1.05) / np.cosh(1.05) ** 2 * 0.7, rel=1e-9)


def test_an_unknown_primitive_is_named_and_can_be_registered():
    score = lambda x: jnp.sum(jax.lax.erf_inv(0.1 * x), axis=1)  # noqa: E731
    inputs = jnp.asarray(X)
    with pytest.raises(ValueError, match=r"no rule for the primitive 'erf_inv'.*register_rule"):
        deep_lift(score, inputs)
    expected = jax.lax.erf_inv(0.1 * inputs)
    np.testing.assert_allclose(deep_lift(score, inputs, rules={"erf_inv": "elementwise"}), expected, rtol=1e-9)
    register_rule("erf_inv", "elementwise")
    try:
        np.testing.assert_allclose(deep_lift(score, inputs), expected, rtol=1e-9)
    finally:
        del KINDS["erf_inv"]
    gradient = deep_lift(lambda x: jnp.sort(x)[:, 0], inputs, rules={"sort": "gradient"})
    np.testing.assert_allclose(gradient, np.where(X.min(1, keepdims=True) == X, X, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation_rule": "linear"}, "unknown activation_rule 'linear'"),
        ({"rules": {"sort": "smooth"}}, "rule of 'sort'"),
        ({"score": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)[:, 0]}, "jnp.where instead"),
        ({"score": lambda x: jax.lax.while_loop(lambda v: v.sum() > 9, lambda v: v / 2, x)[:, 0]}, "unknown length"),
        ({"score": lambda x: x[jnp.arange(3), jnp.argmax(x, axis=1)]}, "index of 'gather'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    call = {"score": lambda x: jnp.sort(x)[:, 0], "inputs": jnp.asarray(X), **arguments}
    with pytest.raises(ValueError, match=message):
        deep_lift(**call)


def conv(x, kernel, bias):
    dimensions = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions) + bias[:, None, None]


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def torch_models():
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn

    class Cnn(layers.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (layers.Conv2d(i, 3, 3, padding=1) for i in (2, 3, 3))
            self.f, self.g, self.pool, self.out = (
                layers.ReLU(),
                layers.ReLU(),
                layers.MaxPool2d(2),
                layers.Linear(12, 3),
            )

        def forward(self, x):
            h = self.f(self.a(x))
            h = self.pool(h + self.c(self.g(self.b(h))))
            return self.out(h.flatten(1))

    mlp = layers.Sequential(
        layers.Linear(5, 6), layers.ReLU(), layers.Linear(6, 6), layers.Tanh(), layers.Linear(6, 6), layers.Sigmoid(),
        layers.Linear(6, 3),
    )  # fmt: skip
    return captum, torch, mlp.double(), Cnn().double()


def moved(module):
    return jnp.asarray(module.weight.detach().numpy()), jnp.asarray(module.bias.detach().numpy())


def jax_mlp(model):
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = (moved(model[i]) for i in (0, 2, 4, 6))
    hidden = lambda x: jax.nn.sigmoid(jnp.tanh(jax.nn.relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3)  # noqa: E731
    return lambda x: (hidden(x) @ w4.T + b4)[:, 1]


def jax_cnn(model):
    def score(x):
        h = jax.nn.relu(conv(x, *moved(model.a)))
        h = max_pool(h + conv(jax.nn.relu(conv(h, *moved(model.b))), *moved(model.c)))
        weight, bias = moved(model.out)
        return (h.reshape(len(h), -1) @ weight.T + bias)[:, 1]

    return score


@pytest.mark.filterwarnings("ignore")
def test_equals_captum():
    captum, torch, mlp, cnn = torch_models()
    x, b = torch.tensor(X), torch.tensor(B)
    expected = captum.DeepLift(mlp).attribute(x, b, target=1).detach().numpy()
    np.testing.assert_allclose(deep_lift(jax_mlp(mlp), jnp.asarray(X), baseline=B), expected, rtol=1e-6, atol=1e-9)
    expected = captum.DeepLiftShap(mlp).attribute(x, b, target=1).detach().numpy()
    values = deep_shap(jax_mlp(mlp), jnp.asarray(X), baselines=jnp.asarray(B), chunk_size=2)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9)
    images, references = RNG.standard_normal((2, 2, 2, 4, 4))
    expected = captum.DeepLift(cnn).attribute(torch.tensor(images), torch.tensor(references), target=1)
    values = deep_lift(jax_cnn(cnn), jnp.asarray(images), baseline=references)
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-6, atol=1e-9)
