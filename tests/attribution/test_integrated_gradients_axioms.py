"""The axioms that single out integrated gradients (Sundararajan et al. 2017), on random networks in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import completeness_error, integrated_gradients
from jaxcore.attribution.gradients import saliency


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def network(seed, width=5):
    first, second = jax.random.split(jax.random.key(seed))
    weights, readout = jax.random.normal(first, (width, 16)), jax.random.normal(second, (16,))
    return weights, readout, lambda x: jax.nn.softplus(x @ weights) @ readout


def attribute(score, inputs, baseline):
    return integrated_gradients(score, inputs, baseline=baseline, num_steps=40, chunk_size=40)


def points(seed, shape=(4, 5)):
    return jax.random.normal(jax.random.key(seed), (2, *shape))


def test_completeness():
    inputs, baseline = points(0)
    _, _, score = network(1)
    values = attribute(score, inputs, baseline)
    np.testing.assert_allclose(completeness_error(score, inputs, values, baseline=baseline), 0, atol=1e-8)


def test_sensitivity_where_the_gradient_is_blind():
    """f = 1 - relu(1 - x) from 0 to 2 changes by 1, but is flat at 2: the gradient says 0, IG says 1."""
    score = lambda x: 1 - jax.nn.relu(1 - x[:, 0])  # noqa: E731
    inputs = jnp.array([[2.0]])
    assert saliency(score, inputs)[0, 0] == 0
    values = integrated_gradients(score, inputs, num_steps=200, quadrature="midpoint", chunk_size=200)
    np.testing.assert_allclose(values, [[1.0]], atol=1e-12)


def test_a_single_difference_that_matters_gets_all_of_it():
    inputs, baseline = points(2)
    baseline = inputs.at[:, 3].set(baseline[:, 3])
    _, _, score = network(3)
    values = attribute(score, inputs, baseline)
    np.testing.assert_array_equal(np.delete(values, 3, axis=1), 0)
    np.testing.assert_allclose(values[:, 3], score(inputs) - score(baseline), atol=1e-8)


def test_implementation_invariance():
    """Two programs for one function: softplus, and the logarithm written out, with units in another order."""
    inputs, baseline = points(4)
    weights, readout, score = network(5)
    order = np.random.default_rng(0).permutation(16)

    def other(x):
        exponentials = jnp.exp(jnp.einsum("bi,io->bo", x, weights[:, order]))
        return jnp.sum(jnp.log(1 + exponentials) * readout[order], axis=1)

    np.testing.assert_allclose(attribute(other, inputs, baseline), attribute(score, inputs, baseline), atol=1e-9)


def test_linearity():
    inputs, baseline = points(6)
    first, second = network(7)[2], network(8)[2]
    together = attribute(lambda x: 2 * first(x) - 3 * second(x), inputs, baseline)
    parts = 2 * attribute(first, inputs, baseline) - 3 * attribute(second, inputs, baseline)
    np.testing.assert_allclose(together, parts, atol=1e-9)


def test_symmetry():
    """Variables that the function cannot tell apart, with equal values and baselines, get equal attributions."""
    weights, readout, _ = network(9)
    weights = weights.at[4].set(weights[1])
    inputs, baseline = points(10)
    inputs, baseline = (x.at[:, 4].set(x[:, 1]) for x in (inputs, baseline))
    values = attribute(lambda x: jax.nn.softplus(x @ weights) @ readout, inputs, baseline)
    np.testing.assert_allclose(values[:, 4], values[:, 1], rtol=1e-12)
    assert float(jnp.abs(values[:, 1]).min()) > 1e-4


def test_dummy():
    inputs, baseline = points(11)
    weights, readout, _ = network(12)
    values = attribute(lambda x: jax.nn.softplus(x @ weights.at[2].set(0)) @ readout, inputs, baseline)
    np.testing.assert_array_equal(values[:, 2], 0)
