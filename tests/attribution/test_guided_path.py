"""Guided integrated gradients against the algorithm of its paper as a plain loop, completeness, and its purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import completeness_error, integrated_gradients
from jaxcore.attribution.guided_path import guided_integrated_gradients

WEIGHTS = jax.random.normal(jax.random.key(0), (7, 5))


def score(x):
    return jnp.sum(jnp.tanh(x @ WEIGHTS) ** 2, axis=1)


def reference(gradient, x, start, num_steps, fraction):
    """One example, float64: groups of the smallest gradients move until the step has used its L1 distance."""
    point, values = start.copy(), np.zeros_like(x)
    whole = np.abs(x - start).sum()
    for step in range(num_steps):
        old, slopes = point.copy(), gradient(point)
        ranks = np.abs(slopes)
        while np.abs(x - point).sum() > whole * (1 - (step + 1) / num_steps) + 1e-12:
            ranks[point == x] = np.inf
            chosen = ranks <= np.quantile(ranks, fraction, method="lower")
            excess = np.abs(x - point).sum() - whole * (1 - (step + 1) / num_steps)
            part = excess / np.abs(x - point)[chosen].sum()
            point[chosen] = x[chosen] if part >= 1 else point[chosen] + part * (x - point)[chosen]
        values += (slopes + gradient(point)) / 2 * (point - old)
    return values


@pytest.mark.parametrize("fraction", [0.05, 0.35])
def test_equals_the_plain_loop(fraction):
    with jax.enable_x64(True):
        inputs, baseline = np.random.default_rng(0).standard_normal((2, 3, 7))
        baseline[:, 2] = inputs[:, 2]  # a feature that has nowhere to go
        values = guided_integrated_gradients(score, inputs, baseline=baseline, num_steps=9, fraction=fraction)
        gradient = jax.jit(jax.grad(lambda x: score(x[None])[0]))
        for row in range(3):
            expected = reference(lambda x: np.asarray(gradient(x)).copy(), inputs[row], baseline[row], 9, fraction)
            np.testing.assert_allclose(values[row], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(values[:, 2], 0)


def test_completeness_on_a_pytree():
    inputs, baseline = jax.random.normal(jax.random.key(1), (2, 4, 7))
    split = lambda x: {"a": x[:, :3], "b": x[:, 3:, None]}  # noqa: E731
    joined = lambda x: score(jnp.concatenate([x["a"], x["b"][:, :, 0]], axis=1))  # noqa: E731
    whole = guided_integrated_gradients(score, inputs, baseline=baseline, num_steps=400)
    np.testing.assert_allclose(completeness_error(score, inputs, whole, baseline=baseline), 0, atol=2e-3)
    values = guided_integrated_gradients(joined, split(inputs), baseline=split(baseline), num_steps=400)
    assert values["b"].shape == (4, 4, 1)
    np.testing.assert_allclose(values["a"], whole[:, :3], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values["b"][:, :, 0], whole[:, 3:], rtol=1e-3, atol=1e-4)


def test_of_a_linear_score_is_weight_times_difference():
    weights = jnp.array([1.0, -2.0, 0.5])
    inputs = jnp.array([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
    values = guided_integrated_gradients(lambda x: x @ weights, inputs, baseline=0.5, num_steps=5)
    np.testing.assert_allclose(values, weights * (inputs - 0.5), rtol=1e-5, atol=1e-6)


def test_many_segments_approach_the_straight_line():
    inputs = jax.random.normal(jax.random.key(2), (3, 7))
    straight = integrated_gradients(score, inputs, num_steps=50, chunk_size=50)
    distances = []
    for segments in (1, 20, 200):
        values = guided_integrated_gradients(score, inputs, num_steps=400, num_segments=segments)
        distances.append(float(jnp.abs(values - straight).max()))
    assert distances[0] > 10 * distances[2]
    assert distances[1] > 2 * distances[2]
    assert distances[2] < 0.02


def test_goes_around_a_spike():
    """A spike on the straight line gives its slope to coordinates that end up mattering little; the path avoids it."""

    def spiked(x):
        spike = jnp.exp(-50 * ((x[:, 0] - 0.5) ** 2 + (x[:, 1] - 0.5) ** 2))
        return x[:, 0] + 4 * spike * jnp.sin(20 * (x[:, 0] - x[:, 1])) + 0.1 * x[:, 1]

    inputs = jnp.array([[1.0, 1.0]])
    straight = integrated_gradients(spiked, inputs, num_steps=200, chunk_size=200)
    guided = guided_integrated_gradients(spiked, inputs, num_steps=400)
    assert abs(float(guided[0, 1]) - 0.1) < 0.05 < 1 < abs(float(straight[0, 1]) - 0.1)


def test_under_jit_and_on_a_sharded_batch():
    inputs = jax.random.normal(jax.random.key(3), (8, 7))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    method = lambda x: guided_integrated_gradients(score, x, num_steps=10)  # noqa: E731
    np.testing.assert_allclose(jax.jit(method)(sharded), method(inputs), rtol=1e-4, atol=1e-5)


def test_bad_input_is_named():
    for options, message in [
        ({"fraction": 0.0}, "fraction must lie in"),
        ({"num_steps": 10, "num_segments": 3}, "num_steps must be a multiple of num_segments: got 10 and 3"),
        ({"num_segments": 0}, "num_segments must be at least 1"),
        ({"baseline": jnp.ones((2, 2))}, "does not broadcast"),
    ]:
        with pytest.raises(ValueError, match=message):
            guided_integrated_gradients(score, jnp.ones((3, 7)), **options)
