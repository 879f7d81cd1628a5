"""Activation gradients, internal influence and conductance against closed forms, completeness and unrolled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution.layers import (
    activation_gradient,
    internal_influence,
    layer_conductance,
    layer_conductance_by_differences,
)

WEIGHTS = jax.random.normal(jax.random.key(1), (3, 4, 4)) / 2  # three layers
INPUTS = jax.random.normal(jax.random.key(2), (5, 4))


def squares(x):
    """h = x^2, score = sum_i c_i h_i^2."""
    return jnp.sum(checkpoint_name(x**2, "h") ** 2 * jnp.array([1.0, 2.0, -1.0, 0.5]), axis=1)


def scanned(x):
    def layer(h, weights):
        h = checkpoint_name(jnp.tanh(h @ weights) + h, "h")
        return h, None

    return jnp.sum(jax.lax.scan(layer, x, WEIGHTS)[0] ** 2, axis=1)


def unrolled(x, name_of=lambda layer: f"h{layer}"):
    for layer, weights in enumerate(WEIGHTS):
        x = checkpoint_name(jnp.tanh(x @ weights) + x, name_of(layer))
    return jnp.sum(x**2, axis=1)


def test_closed_forms():
    """Along x(a) = a x: h = a^2 x^2, ds/dh = 2 c a^2 x^2, dh/da = 2 a x^2."""
    weights = np.array([1.0, 2.0, -1.0, 0.5])
    activation, gradient = activation_gradient(squares, INPUTS, "h")
    np.testing.assert_allclose(activation, INPUTS**2, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * weights * INPUTS**2, rtol=1e-5)
    influence = internal_influence(squares, INPUTS, "h", num_steps=2, chunk_size=2)
    np.testing.assert_allclose(influence, 2 / 3 * weights * INPUTS**2, rtol=1e-5)
    conductance = layer_conductance(squares, INPUTS, "h", num_steps=2, chunk_size=1)
    np.testing.assert_allclose(conductance, weights * INPUTS**4, rtol=1e-5)


@pytest.mark.parametrize("method", [internal_influence, layer_conductance, layer_conductance_by_differences])
def test_a_scan_gives_all_layers_at_once(method):
    values = method(scanned, INPUTS, "h", num_steps=6, chunk_size=3)
    assert values.shape == (3, 5, 4)
    for layer in range(3):
        expected = method(unrolled, INPUTS, f"h{layer}", num_steps=6, chunk_size=6)
        np.testing.assert_allclose(values[layer], expected, rtol=1e-4, atol=1e-5)


def test_conductance_of_every_layer_that_all_flows_through_is_complete():
    baseline = 0.3 * jnp.ones(4)
    change = scanned(INPUTS) - scanned(jnp.broadcast_to(baseline, INPUTS.shape))
    exact = layer_conductance(scanned, INPUTS, "h", baseline=baseline, num_steps=30, chunk_size=30)
    np.testing.assert_allclose(exact.sum(axis=2), jnp.broadcast_to(change, (3, 5)), rtol=1e-3, atol=1e-3)
    rough = layer_conductance_by_differences(scanned, INPUTS, "h", baseline=baseline, num_steps=400, chunk_size=100)
    np.testing.assert_allclose(rough, exact, atol=0.02 * float(jnp.abs(exact).max()))


def test_a_custom_vjp_before_the_layer_needs_differences():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    score = lambda x: jnp.sum(checkpoint_name(square(x), "h") ** 2, axis=1)  # noqa: E731
    values = layer_conductance_by_differences(score, INPUTS, "h", num_steps=1000, chunk_size=1000)
    np.testing.assert_allclose(values, INPUTS**4, rtol=5e-3)


def test_runs_under_jit_and_on_a_sharded_batch():
    inputs = jax.random.normal(jax.random.key(3), (8, 4))
    method = lambda x: layer_conductance(scanned, x, "h", num_steps=4, chunk_size=2)  # noqa: E731
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    values = jax.jit(method)(jax.device_put(inputs, sharding))
    assert len(values.sharding.device_set) == 8
    np.testing.assert_allclose(values, method(inputs), rtol=1e-5, atol=1e-6)


def test_bad_names_are_named():
    twice = lambda x: unrolled(x, lambda layer: "h")  # noqa: E731

    def looped(x):
        body = lambda h: checkpoint_name(jnp.tanh(h), "h")  # noqa: E731
        return jnp.sum(jax.lax.while_loop(lambda h: jnp.max(h) > 1, body, x), axis=1)

    counted = lambda x: jnp.sum(x, axis=1) + checkpoint_name(jnp.argmax(x, axis=1), "h")  # noqa: E731
    for score, name, message in [
        (squares, "g", "cannot capture 'g': names that occur are 'h'"),
        (twice, "h", "occurs at 3 places"),
        (looped, "h", "while_loop"),
        (counted, "h", "must be floating point"),
    ]:
        with pytest.raises(ValueError, match=message):
            internal_influence(score, INPUTS, name)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        layer_conductance(squares, INPUTS, "h", num_steps=0)
