"""Interactions against dense Hessians and Jacobians, closed forms, completeness, and layer-by-layer interventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.interactions import (
    integrated_hessians,
    integrated_jacobian,
    product_rule,
    similarity_pairs,
    value_zeroing,
)
from jaxcore.models import Encoder, EncoderConfig
from jaxcore.transforms import capture, intervene

RNG = np.random.default_rng(0)


def test_the_rule_integrates_products_of_uniform_numbers():
    """int int (a b)^k = 1 / (k + 1)^2, exactly up to degree 2 n - 1 and not beyond."""
    for steps in (1, 4, 30):
        nodes, weights = product_rule(steps)
        assert np.all((nodes > 0) & (nodes < 1)) and np.all(weights > 0)
        powers = np.arange(2 * steps)
        np.testing.assert_allclose(weights @ nodes[:, None] ** powers, 1 / (powers + 1) ** 2, rtol=1e-11)
    nodes, weights = product_rule(2)
    assert abs(weights @ nodes**4 - 1 / 25) > 1e-4


def test_hessians_of_a_product_by_hand():
    """f = x1 x2 from 0: a quarter of it in each cell, half in each row."""
    values = integrated_hessians(lambda x: x[:, 0] * x[:, 1], jnp.array([[2.0, 6.0]]), num_steps=2, chunk_size=2)
    np.testing.assert_allclose(values[0], [[3, 3], [3, 3]], rtol=1e-5)


def test_hessians_equal_the_dense_double_integral():
    first = RNG.standard_normal((6, 3))
    score = lambda x: jnp.sum(jnp.sin(x.reshape(len(x), -1) @ jnp.asarray(first, x.dtype)), axis=1)  # noqa: E731
    with jax.enable_x64(True):
        x, base = jnp.asarray(RNG.standard_normal((2, 3, 2))), jnp.asarray(RNG.standard_normal((2, 3, 2)))
        nodes, weights = np.polynomial.legendre.leggauss(16)
        nodes, weights = (nodes + 1) / 2, weights / 2
        one = lambda row: score(row[None])[0]  # noqa: E731
        derivatives = jax.jit(jax.vmap(lambda p: (jax.grad(one)(p), jax.hessian(one)(p))))
        for groups in (None, token_groups(np.ones((2, 3)))):
            values = integrated_hessians(score, x, baseline=base, groups=groups, num_steps=12, chunk_size=2)
            for row in range(2):
                delta = np.asarray(x[row] - base[row])
                product = np.outer(nodes, nodes).ravel()
                mass = np.outer(weights, weights).ravel()
                slopes, curvatures = derivatives(base[row] + product[:, None, None] * delta)
                dense = np.einsum("n,nij->ij", mass * product, curvatures.reshape(-1, 6, 6)) * np.outer(delta, delta)
                dense += np.diag(np.einsum("n,ni->i", mass, slopes.reshape(-1, 6)) * delta.ravel())
                expected = dense if groups is None else dense.reshape(3, 2, 3, 2).sum(axis=(1, 3))
                np.testing.assert_allclose(values[row], expected, rtol=1e-9, atol=1e-11)


def test_hessians_complete_the_score_and_rows_are_integrated_gradients():
    """Per token, with padding that stays where it is and gets exactly 0."""
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    x = jnp.asarray(RNG.standard_normal((2, 4, 2)), jnp.float32)
    score = lambda x: jnp.exp(jnp.sum(x, axis=(1, 2)) / 4) * jnp.cos(x[:, 1, 0])  # noqa: E731
    values = jax.jit(lambda x: integrated_hessians(score, x, groups=token_groups(mask), num_steps=16))(x)
    start = jnp.where(mask[..., None] == 1, 0, x)
    np.testing.assert_allclose(np.sum(values, axis=(1, 2)), score(x) - score(start), rtol=1e-4, atol=1e-5)
    gradients = jnp.sum(integrated_gradients(score, x, baseline=start, num_steps=16, chunk_size=16), axis=-1)
    for row in range(2):
        np.testing.assert_allclose(np.sum(values[row], axis=1), gradients[row][mask[row] == 1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(values, np.swapaxes(values, 1, 2), atol=1e-5)


def test_a_row_of_fewer_features_has_zeros_beyond_them():
    groups = token_groups(np.array([[1, 1, 1], [1, 0, 0]]))
    x = jnp.asarray(RNG.standard_normal((2, 3, 2)), jnp.float32)
    values = np.asarray(integrated_hessians(lambda x: jnp.sum(x, axis=(1, 2)) ** 3, x, groups=groups, chunk_size=3))
    assert np.all(values[1, 1:] == 0) and np.all(values[1, :, 1:] == 0) and values[1, 0, 0] != 0


def encoder(width, mask=None):
    weights = jnp.asarray(RNG.standard_normal((2, width)), jnp.float32)

    def encode(x):
        real = jnp.ones(x.shape[:2]) if mask is None else mask
        return jnp.tanh(jnp.sum(jnp.sin(x @ weights) * real[..., None], axis=1))

    return encode


def test_jacobian_shares_are_integrated_gradients_of_each_output():
    encode, x = encoder(3), jnp.asarray(RNG.standard_normal((2, 4, 2)), jnp.float32)
    groups = token_groups(np.array([[1, 1, 1, 1], [1, 1, 1, 0]]))
    shares = integrated_jacobian(encode, x, baseline=0.3, groups=groups, num_steps=12, chunk_size=4)
    start = x.at[:].set(0.3).at[1, 3].set(x[1, 3])
    for k in range(3):
        single = integrated_gradients(lambda x, k=k: encode(x)[:, k], x, baseline=start, num_steps=12, chunk_size=12)
        np.testing.assert_allclose(shares[..., k], jnp.sum(single, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.sum(shares, axis=1), encode(x) - encode(start), rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(shares)[1, 3] == 0)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_pairs_sum_to_the_similarity_less_the_reference_terms(chunk_size):
    left, right = np.array([[1, 1, 1], [1, 1, 0]]), np.array([[1, 1, 0, 1], [1, 1, 1, 1]])
    f, g = encoder(5, jnp.asarray(left)), encoder(5, jnp.asarray(right))
    x, y = (jnp.asarray(RNG.standard_normal((2, n, 2)), jnp.float32) for n in (3, 4))
    pairs = similarity_pairs(
        (f, g), (x, y), baseline=(0.0, 0.2), groups=(token_groups(left), token_groups(right)), chunk_size=chunk_size
    )
    assert pairs.shape == (2, 3, 4)
    x0, y0 = jnp.zeros_like(x), jnp.full_like(y, 0.2)  # the encoders do not see padding
    dot = lambda a, b: jnp.sum(f(a) * g(b), axis=1)  # noqa: E731
    expected = dot(x, y) - dot(x0, y) - dot(x, y0) + dot(x0, y0)
    np.testing.assert_allclose(np.sum(pairs, axis=(1, 2)), expected, rtol=1e-4, atol=1e-4)
    assert np.all(np.asarray(pairs)[1, 2] == 0) and np.all(np.asarray(pairs)[0, :, 3] == 0)


def test_pairs_of_a_sum_of_tokens_are_their_products():
    total = lambda x: jnp.sum(x, axis=1)  # noqa: E731
    x, y = (jnp.asarray(RNG.standard_normal((2, n, 3)), jnp.float32) for n in (2, 4))
    groups = (token_groups(np.ones((2, 2))), token_groups(np.ones((2, 4))))
    pairs = similarity_pairs((total, total), (x, y), groups=groups, num_steps=1, chunk_size=4)
    np.testing.assert_allclose(pairs, jnp.einsum("bid,bjd->bij", x, y), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def transformer():
    config = EncoderConfig(
        vocab_size=30,
        hidden_size=8,
        num_layers=3,
        num_heads=2,
        intermediate_size=16,
        max_positions=8,
        pooler="none",
        attention_implementation="explicit",
    )
    ids, mask = jnp.asarray(RNG.integers(1, 30, (2, 5))), jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    model = Encoder(config)
    variables = jax.jit(model.init)(jax.random.key(0), ids, mask)
    variables = jax.tree.map(lambda p: p * 8, variables)  # far enough from init for attention to matter
    return model, variables, ids, mask


def test_value_zeroing_is_one_intervention_per_layer_and_token(transformer):
    model, variables, ids, mask = transformer
    run = lambda: model.apply(variables, ids, mask)  # noqa: E731
    values = np.asarray(value_zeroing(run, mask, chunk_size=2))
    assert values.shape == (3, 2, 5, 5)

    @jax.jit
    def outputs(layer, token):
        zero = lambda a, *, step: jnp.where((step == layer) & (jnp.arange(5) == token), 0, a)  # noqa: E731
        return capture(intervene(run, {"attention_weights": zero}), "layer_output")()[1]["layer_output"]

    original, real = np.asarray(outputs(-1, 0)), np.asarray(mask) == 1
    expected = np.zeros((3, 2, 5, 5))
    for layer in range(3):
        for token in range(5):
            changed, kept = np.asarray(outputs(layer, token))[layer], original[layer]
            cosine = np.sum(changed * kept, -1) / np.linalg.norm(changed, axis=-1) / np.linalg.norm(kept, axis=-1)
            expected[layer, :, :, token] = 1 - cosine
    expected *= real[:, :, None] & real[:, None, :]
    total = expected.sum(axis=-1, keepdims=True)
    expected = np.divide(expected, total, out=np.zeros_like(expected), where=total > 0)
    np.testing.assert_allclose(values, expected, atol=2e-3)
    np.testing.assert_allclose(values.sum(axis=-1), np.broadcast_to(real, (3, 2, 5)), atol=1e-5)
    assert np.all(values[:, 1, :, 3:] == 0) and np.all(values[:, 1, 3:] == 0)


def test_value_zeroing_says_what_it_needs(transformer):
    model, variables, ids, mask = transformer
    run = lambda: model.apply(variables, ids, mask)  # noqa: E731
    with pytest.raises(ValueError, match="needs 'weights': names that occur are"):
        value_zeroing(run, mask, attention_weights="weights")
    with pytest.raises(ValueError, match=r"mask must be \[2, 5\]"):
        value_zeroing(run, mask[:1])
    with pytest.raises(ValueError, match="leaves nothing to attribute"):
        value_zeroing(run, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="blocks in one scan"):
        value_zeroing(run, mask, attention_weights="token_embeddings")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: integrated_hessians(lambda x: x, x), "one number per example"),
        (lambda x: integrated_hessians(lambda x: jnp.sum(x, axis=1), x, num_steps=0), "num_steps must be"),
        (lambda x: integrated_jacobian(lambda x: jnp.sum(x, axis=1), x), r"embeddings \[2, dim\]"),
        (lambda x: similarity_pairs(lambda x: x, (x, x)), "encoders must be a pair"),
        (lambda x: similarity_pairs((lambda x: x, lambda x: x[:, :2]), (x, x)), "one batch and one width"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))
