"""Integrated gradients against closed forms, axioms, captum, and its own chunking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.attribution import completeness_error, integrated_gradients, quadrature_rule
from jaxcore.attribution.chunking import chunked_sum, fitting_chunk_size


def total(x):
    return jnp.sum(x, axis=1)


def test_of_a_linear_score_is_weight_times_difference():
    weights = jnp.array([1.0, -2.0, 0.5])
    inputs, baseline = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0.5, 0.0, -1.0])
    values = integrated_gradients(lambda x: x @ weights, inputs, baseline=baseline, num_steps=1)
    np.testing.assert_allclose(values, weights * (inputs - baseline), rtol=1e-6)


def test_of_a_product_by_hand():
    """f = x1 x2 from 0: each coordinate gets half of the product, whatever its own size."""
    values = integrated_gradients(lambda x: x[:, 0] * x[:, 1], jnp.array([[2.0, 5.0]]), num_steps=4)
    np.testing.assert_allclose(values, [[5.0, 5.0]], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 50, 200])
def test_gauss_legendre_nodes_are_those_of_numpy(count):
    nodes, weights = quadrature_rule("gauss_legendre", count)
    expected = np.polynomial.legendre.leggauss(count)
    np.testing.assert_allclose(nodes, (expected[0] + 1) / 2, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(weights, expected[1] / 2, rtol=1e-10)


def test_ten_thousand_nodes_integrate_what_few_nodes_cannot():
    nodes, weights = quadrature_rule("gauss_legendre", 10_000)
    assert np.all(np.diff(nodes) > 0) and nodes[0] > 0 and nodes[-1] < 1
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-13)
    np.testing.assert_allclose(weights @ np.cos(9000 * nodes), np.sin(9000) / 9000, atol=1e-14)


def test_gauss_legendre_is_exact_for_polynomials_of_degree_2k():
    values = integrated_gradients(lambda x: jnp.sum(x**6, axis=1), jnp.array([[1.5, -2.0]]), num_steps=3)
    np.testing.assert_allclose(values, [[1.5**6, 2.0**6]], rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 4), width=st.integers(1, 6))
def test_completeness(seed, batch, width):
    key, weight_key, base_key = jax.random.split(jax.random.key(seed), 3)
    inputs = jax.random.normal(key, (batch, width))
    baseline = jax.random.normal(base_key, (width,))
    weights = jax.random.normal(weight_key, (width, 3))
    score = lambda x: jnp.sum(jnp.tanh(x @ weights) ** 2, axis=1)  # noqa: E731
    values = integrated_gradients(score, inputs, baseline=baseline, num_steps=64, chunk_size=64)
    error = completeness_error(score, inputs, values, baseline=baseline)
    np.testing.assert_allclose(error, 0, atol=2e-4)


def test_completeness_error_is_the_missing_part():
    score = lambda x: jnp.sum(x**2, axis=1)  # noqa: E731
    inputs = jnp.array([[1.0, 2.0]])
    error = completeness_error(score, inputs, jnp.array([[1.0, 3.0]]))
    np.testing.assert_allclose(error, [-1.0])


@pytest.mark.parametrize(
    ("score", "attributions", "message"),
    [
        (total, jnp.ones((1, 3)), r"structure and shapes of the inputs, \[2, 3\]: got \[1, 3\]"),
        (total, jnp.ones(2), r"\[2, 3\]: got \[2\]"),
        (total, {"a": jnp.ones((2, 3))}, r"got {'a': \[2, 3\]}"),
        (jnp.sum, jnp.ones((2, 3)), "one number per example"),
    ],
)
def test_completeness_error_refuses_what_is_not_like_the_inputs(score, attributions, message):
    with pytest.raises(ValueError, match=message):
        completeness_error(score, jnp.ones((2, 3)), attributions)


def test_a_coordinate_the_score_ignores_gets_nothing():
    values = integrated_gradients(lambda x: jnp.exp(x[:, 0]), jnp.ones((2, 3)), num_steps=8)
    np.testing.assert_array_equal(values[:, 1:], 0)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 20, 100])
def test_the_chunk_size_does_not_change_the_result(chunk_size):
    inputs = jax.random.normal(jax.random.key(0), (3, 4, 2))
    score = lambda x: jnp.sum(jnp.sin(x) * x, axis=(1, 2))  # noqa: E731
    one = integrated_gradients(score, inputs, num_steps=20, chunk_size=20)
    other = integrated_gradients(score, inputs, num_steps=20, chunk_size=chunk_size)
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_works_under_jit_and_grad():
    """Attribution as a training signal: its gradient with respect to what the score depends on."""
    inputs = jnp.array([[1.0, -2.0]])

    def first_attribution(weight):
        return integrated_gradients(lambda x: jnp.sum((weight * x) ** 3, axis=1), inputs, num_steps=8)[0, 0]

    assert jax.grad(first_attribution)(2.0) == pytest.approx(12.0, rel=1e-5)  # w^3 x^3, derivative 3 w^2 x^3
    assert jax.jit(first_attribution)(2.0) == pytest.approx(8.0, rel=1e-5)


def test_chunks_are_sized_by_the_memory_of_one_step():
    items = jnp.arange(64.0)
    term = lambda a: jnp.sort(jnp.sin(a * jnp.arange(10_000.0)))  # noqa: E731
    small = fitting_chunk_size(term, items, memory_budget=200_000)
    large = fitting_chunk_size(term, items, memory_budget=2_000_000)
    assert 1 <= small < large < 64
    assert fitting_chunk_size(term, items, memory_budget=10**9) == 64
    np.testing.assert_allclose(
        chunked_sum(term, items, chunk_size=small), sum(term(a) for a in items), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("method", ["gauss_legendre", "midpoint", "trapezoid"])
def test_weights_integrate_constants_and_lines_exactly(method):
    nodes, weights = quadrature_rule(method, 9)
    assert weights.sum() == pytest.approx(1.0, rel=1e-6)
    assert nodes @ weights == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [("gauss_legendre", "gausslegendre"), ("midpoint", "riemann_middle")])
def test_equals_captum(ours, theirs):
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weights, inputs = (
        rng.standard_normal((5, 3)).astype(np.float32),
        rng.standard_normal((4, 5)).astype(np.float32),
    )
    baseline = rng.standard_normal((4, 5)).astype(np.float32)
    method = captum.IntegratedGradients(lambda x: torch.tanh(x @ torch.tensor(weights)).pow(2).sum(1))
    expected = method.attribute(torch.tensor(inputs), torch.tensor(baseline), n_steps=12, method=theirs)
    values = integrated_gradients(
        lambda x: jnp.sum(jnp.tanh(x @ weights) ** 2, axis=1),
        jnp.asarray(inputs),
        baseline=jnp.asarray(baseline),
        num_steps=12,
        quadrature=ours,
    )
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": jnp.ones((2, 3), jnp.int32)}, "floating point"),
        ({"baseline": jnp.ones((2, 2))}, r"baseline of shape \(2, 2\)"),
        ({"score": lambda x: x}, "one number per example"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_steps": 2.5}, "num_steps must be a whole number: got 2.5"),
        ({"chunk_size": 2.5}, "chunk_size must be a whole number: got 2.5"),
        ({"quadrature": "simpson"}, "unknown quadrature"),
    ],
)
def test_bad_input_is_named(arguments, message):
    call = {"score": total, "inputs": jnp.ones((2, 3)), **arguments}
    with pytest.raises(ValueError, match=message):
        integrated_gradients(**call)


@pytest.mark.parametrize(("count", "message"), [(0, "at least 1: got 0"), (3.5, "a whole number: got 3.5")])
@pytest.mark.parametrize("name", ["gauss_legendre", "midpoint", "trapezoid"])
def test_a_rule_has_a_whole_number_of_nodes(name, count, message):
    with pytest.raises(ValueError, match=f"num_steps must be {message}"):
        quadrature_rule(name, count)
