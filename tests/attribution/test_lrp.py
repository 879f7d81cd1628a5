"""LRP against captum, conservation, and the equations of AttnLRP written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.lrp import AlphaBeta, Epsilon, Gamma, lrp

RNG = np.random.default_rng(0)
W, V, U = RNG.standard_normal((5, 6)), RNG.standard_normal((6, 4)), RNG.standard_normal((6, 6))
X = RNG.standard_normal((3, 5))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rms_norm(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def attention_block(x):
    h = x @ W / 3
    weights = jax.nn.softmax((h @ U) @ (h @ U.T).swapaxes(1, 2) / 3, axis=-1)
    h = rms_norm(h + weights @ (h @ (U / 2)))
    h = h + jax.checkpoint(lambda h: jax.nn.gelu(h @ V) @ V.T)(h)
    return rms_norm(h)[:, 0, 1]


@pytest.mark.parametrize(
    "rule", [Epsilon(0.0), Gamma(epsilon=0.0), AlphaBeta(epsilon=0.0)], ids=lambda r: type(r).__name__
)
def test_a_bias_free_attention_block_conserves_its_score(rule):
    inputs = jnp.asarray(RNG.standard_normal((2, 4, 5)))
    relevance = lrp(attention_block, inputs, linear=rule, softmax="constant")
    np.testing.assert_allclose(relevance.sum((1, 2)), attention_block(inputs), rtol=1e-8)
    assert np.abs(relevance[:, 1:]).max() > 1e-3  # which the first token's score reaches by attention alone


def test_a_scanned_network_conserves_its_score():
    weights = jnp.asarray(RNG.standard_normal((3, 5, 5)))
    score = lambda x: jax.lax.scan(lambda h, w: (h + jax.nn.silu(h @ w), None), x, weights)[0][:, 2]  # noqa: E731
    relevance = lrp(score, jnp.asarray(X), linear=Epsilon(0.0))
    np.testing.assert_allclose(relevance.sum(1), score(jnp.asarray(X)), rtol=1e-8)


NORMALISED = {
    "rsqrt": lambda h: h * jax.lax.rsqrt(jnp.mean(h**2, 1, keepdims=True)) * W[0, :6],
    "power": lambda h: h * (jnp.mean(h**2, 1, keepdims=True) + 1e-9) ** -0.5,
    "inverse of a root": lambda h: (1 / jnp.maximum(jnp.sqrt(jnp.mean(h**2, 1, keepdims=True)), 1e-9)) * h,
    "two factors": lambda h: h * (jax.lax.rsqrt(jnp.sum(h**2, 1)) * jax.lax.rsqrt(jnp.sum((h @ U) ** 2, 1)))[:, None],
}


@pytest.mark.parametrize("name", NORMALISED)
def test_an_inverse_root_that_multiplies_counts_as_a_constant(name):
    normalised = NORMALISED[name]
    h = X @ W
    factor = np.asarray(normalised(jnp.asarray(h))) / h  # one for each row (and coordinate)
    relevance = lrp(lambda x: normalised(x @ W) @ V[:, 0], jnp.asarray(X), linear=Epsilon(0.0))
    np.testing.assert_allclose(relevance, X * ((factor * V[:, 0]) @ W.T), rtol=1e-9)


@pytest.mark.parametrize(
    "score",
    [
        lambda x: -jnp.linalg.norm(x @ W, axis=1),
        lambda x: jax.nn.squareplus(x @ W) @ V[:, 0],
        lambda x: jnp.std(x @ W, axis=1) * jnp.sqrt(jnp.sum(x**2, axis=1)),
    ],
    ids=["norm", "squareplus", "std"],
)
def test_a_root_that_normalises_nothing_passes_its_relevance_on(score):
    relevance = lrp(score, jnp.asarray(X), linear=Epsilon(0.0))
    np.testing.assert_allclose(relevance.sum(1), score(jnp.asarray(X)), rtol=1e-9)
    assert np.abs(np.asarray(relevance)).max() > 0.01


MASK = np.arange(5) < 3


@pytest.mark.parametrize(
    ("masked", "kept"),
    [
        (lambda x: jax.nn.softmax(x, where=MASK) @ U[0, :5], lambda x: jax.nn.softmax(x) @ U[0, :3]),
        (lambda x: jax.nn.logsumexp(x, axis=1, where=MASK), lambda x: jax.nn.logsumexp(x, axis=1)),
        (lambda x: jax.nn.logsumexp(x, axis=1, b=2.0 * MASK), lambda x: jax.nn.logsumexp(x, axis=1) + np.log(2)),
    ],
    ids=["softmax", "logsumexp", "coefficients"],
)
def test_a_mask_inside_softmax_leaves_the_relevance_of_what_is_kept(masked, kept):
    relevance = lrp(masked, jnp.asarray(X))
    np.testing.assert_allclose(relevance[:, :3], lrp(kept, jnp.asarray(X[:, :3])), rtol=1e-9)
    np.testing.assert_array_equal(relevance[:, 3:], 0)


def test_biases_and_epsilon_absorb_what_they_contribute():
    """One layer by hand: R_j = sum_i x_j w_ij a_i v_i / (z_i + epsilon sign z_i), z with its bias."""
    bias, epsilon = RNG.standard_normal(6), 0.1
    z = X @ W + bias
    share = np.maximum(z, 0) * V[:, 0] / (z + epsilon * np.sign(z))
    score = lambda x: jax.nn.relu(x @ W + bias) @ V[:, 0]  # noqa: E731
    top = np.maximum(z, 0) @ V[:, 0]
    share *= (top / (top + epsilon * np.sign(top)))[:, None]
    relevance = lrp(score, jnp.asarray(X), linear=Epsilon(epsilon))
    np.testing.assert_allclose(relevance, X * (share @ W.T), rtol=1e-9)


def test_alpha_beta_by_hand():
    bias = RNG.standard_normal(6)
    terms = X[:, :, None] * W
    positive, negative = np.maximum(terms, 0), np.minimum(terms, 0)
    above = positive.sum(1) + np.maximum(bias, 0)
    below = negative.sum(1) + np.minimum(bias, 0)
    out = np.maximum(X @ W + bias, 0)
    expected = (2 * positive / above[:, None] - negative / below[:, None]) @ out[:, :, None]
    relevance = lrp(lambda x: jnp.sum(jax.nn.relu(x @ W + bias), axis=1), jnp.asarray(X), linear=AlphaBeta())
    np.testing.assert_allclose(relevance, expected[:, :, 0], rtol=1e-6)


def test_attention_as_attn_lrp_states_it():
    """The rules of Achtibat et al. 2024 for softmax and for both matrix products, one head, one query."""
    keys, values = RNG.standard_normal((2, 4, 3))
    query = RNG.standard_normal(3)
    logits = keys @ query
    weights = np.exp(logits) / np.exp(logits).sum()
    out = weights @ values
    to_values = weights[:, None] * values / 2  # R of out is out itself: the score is their sum
    to_weights = to_values.sum(1)
    to_logits = logits * (to_weights - weights * to_weights.sum())
    to_keys = keys * query * (to_logits / logits / 2)[:, None]
    to_query = (keys * query * (to_logits / logits / 2)[:, None]).sum(0)

    def score(x):
        weights = jax.nn.softmax(jnp.einsum("bd,bkd->bk", x["query"], x["keys"]))
        return jnp.einsum("bk,bkd->b", weights, x["values"])

    inputs = {"query": query[None], "keys": keys[None], "values": values[None]}
    relevance = lrp(score, jax.tree.map(jnp.asarray, inputs))
    np.testing.assert_allclose(relevance["values"][0], to_values, rtol=1e-9)
    np.testing.assert_allclose(relevance["keys"][0], to_keys, rtol=1e-9)
    np.testing.assert_allclose(relevance["query"][0], to_query, rtol=1e-9)
    assert out.sum() == pytest.approx(float(score(jax.tree.map(jnp.asarray, inputs))[0]))


def test_an_unknown_primitive_is_named_and_under_jit_and_vmap():
    score = lambda x: jnp.sum(jax.lax.erf_inv(0.1 * x), axis=1)  # noqa: E731
    with pytest.raises(ValueError, match="lrp has no rule for the primitive 'erf_inv'"):
        lrp(score, jnp.asarray(X))
    relevance = jax.jit(lambda x: lrp(score, x, rules={"erf_inv": "elementwise"}))(X)
    np.testing.assert_allclose(relevance, jax.lax.erf_inv(0.1 * jnp.asarray(X)), rtol=1e-9)
    alone = jax.vmap(lambda x: lrp(score, x[None], rules={"erf_inv": "elementwise"})[0])(X)
    np.testing.assert_allclose(alone, relevance, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlphaBeta(2.0, 0.5), "alpha - beta must be 1"),
        (lambda: Epsilon(-1.0), "epsilon must be at least 0"),
        (lambda: Gamma(bias="half"), "unknown bias 'half'"),
        (lambda: lrp(lambda x: x[:, 0], jnp.ones((2, 2)), softmax="flat"), "unknown softmax"),
        (lambda: lrp(lambda x: x[:, 0], jnp.ones((2, 2)), linear={"dense": Epsilon()}), "no layers named"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["EpsilonRule", "GammaRule", "Alpha1_Beta0_Rule"])
def test_equals_captum(name):
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    from captum.attr._utils import lrp_rules

    torch.manual_seed(0)
    layers = torch.nn
    cnn = layers.Sequential(
        layers.Conv2d(2, 3, 3), layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(), layers.Linear(12, 6),
        layers.Tanh(), layers.Linear(6, 3),
    ).double()  # fmt: skip
    cnn[3].rule = lrp_rules.EpsilonRule()
    for i in (0, 4, 6):
        cnn[i].rule = getattr(lrp_rules, name)()
    images = np.abs(RNG.standard_normal((2, 2, 6, 6)))  # captum's z+ rule presumes activations of one sign
    if name == "Alpha1_Beta0_Rule":
        cnn[5] = layers.ReLU()
    expected = captum.LRP(cnn).attribute(torch.tensor(images), target=1).detach().numpy()
    rule = {
        "EpsilonRule": Epsilon(1e-9),
        "GammaRule": Gamma(0.25, bias="whole"),
        "Alpha1_Beta0_Rule": AlphaBeta(1.0, 0.0, bias="whole"),
    }[name]
    (k, kb), (w1, b1), (w2, b2) = (
        (jnp.asarray(cnn[i].weight.detach().numpy()), jnp.asarray(cnn[i].bias.detach().numpy())) for i in (0, 4, 6)
    )
    activation = jax.nn.relu if name == "Alpha1_Beta0_Rule" else jnp.tanh

    def score(x):
        h = jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        h = jax.nn.relu(h + kb[:, None, None])
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").reshape(2, -1)
        return (activation(h @ w1.T + b1) @ w2.T + b2)[:, 1]

    np.testing.assert_allclose(lrp(score, jnp.asarray(images), linear=rule), expected, rtol=1e-6, atol=1e-8)
