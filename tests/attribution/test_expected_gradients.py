"""Expected gradients against integrated gradients over the baselines, closed forms, and captum's GradientShap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import integrated_gradients
from jaxcore.attribution.combinators import over_baselines
from jaxcore.attribution.expected_gradients import expected_gradients

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((5, 6)).astype(np.float32)
INPUTS = jnp.asarray(RNG.standard_normal((3, 5)).astype(np.float32))
BASELINES = RNG.standard_normal((4, 5)).astype(np.float32)
STANDARD_ERRORS = 4.5  # per coordinate: a false alarm in 1 of 10,000 runs of 15 coordinates


def score(x):
    return jnp.sum(jnp.tanh(x @ WEIGHTS) ** 2, axis=1)


def repeated(num_repeats, **options):
    """Mean and standard error over independent runs."""
    keys = jax.random.split(jax.random.key(1), num_repeats)
    run = lambda key: expected_gradients(score, INPUTS, key, chunk_size=100, **options)  # noqa: E731
    values = jax.jit(jax.vmap(run))(keys)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(num_repeats)


def test_is_integrated_gradients_over_the_baselines_in_expectation():
    mean, error = repeated(50, baselines=BASELINES, num_samples=200)
    exact = over_baselines(integrated_gradients, BASELINES, chunk_size=4)(score, INPUTS, num_steps=40, chunk_size=40)
    assert float(error.max()) < 0.03
    assert float((jnp.abs(mean - exact) / error).max()) < STANDARD_ERRORS


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_equals_captum_within_the_standard_error(noise_scale):
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    np.random.seed(0)
    method = captum.GradientShap(lambda x: torch.tanh(x @ torch.tensor(WEIGHTS)).pow(2).sum(1))
    inputs, baselines = torch.tensor(np.asarray(INPUTS)), torch.tensor(BASELINES)
    runs = np.stack(
        [method.attribute(inputs, baselines, n_samples=200, stdevs=noise_scale).detach().numpy() for _ in range(50)]
    )
    theirs, their_error = runs.mean(0), runs.std(0, ddof=1) / np.sqrt(50)
    ours, our_error = repeated(50, baselines=BASELINES, num_samples=200, noise_scale=noise_scale)
    difference = np.abs(ours - theirs) / np.hypot(our_error, their_error)
    assert float(difference.max()) < STANDARD_ERRORS
    np.testing.assert_allclose(our_error, their_error, rtol=0.6)  # the same spread: the same distribution


def test_of_a_linear_score_each_sample_is_exact_for_its_baseline():
    weights = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0])
    one = expected_gradients(lambda x: x @ weights, INPUTS, jax.random.key(0), baselines=BASELINES[:1], num_samples=3)
    np.testing.assert_allclose(one, weights * (INPUTS - BASELINES[0]), rtol=1e-5, atol=1e-6)
    same = expected_gradients(
        lambda x: x @ weights, jnp.ones((64, 5)), jax.random.key(0), baselines=BASELINES, num_samples=1
    )
    drawn = {tuple(np.round(row, 4)) for row in np.asarray(same)}
    assert drawn == {tuple(np.round(row, 4)) for row in np.asarray(weights * (1 - BASELINES))}  # every row is drawn


def test_leaves_of_an_example_share_their_baseline_and_point():
    inputs = {"a": INPUTS, "b": INPUTS[:, :, None]}
    baselines = {"a": BASELINES, "b": BASELINES[:, :, None]}
    together = lambda x: score((x["a"] + x["b"][:, :, 0]) / 2)  # noqa: E731
    key = jax.random.key(3)
    values = expected_gradients(together, inputs, key, baselines=baselines, num_samples=7, chunk_size=2)
    alone = expected_gradients(score, INPUTS, key, baselines=BASELINES, num_samples=7, chunk_size=7)
    np.testing.assert_allclose(values["a"], alone / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values["b"][:, :, 0], alone / 2, rtol=1e-4, atol=1e-6)


def test_depends_on_the_key_alone_and_runs_sharded_under_jit():
    inputs = jax.random.normal(jax.random.key(4), (8, 5))
    run = lambda x, key: expected_gradients(  # noqa: E731
        score, x, key, baselines=BASELINES, num_samples=9, noise_scale=0.1, chunk_size=4
    )
    first = run(inputs, jax.random.key(0))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_allclose(jax.jit(run)(sharded, jax.random.key(0)), first, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(run(inputs, jax.random.key(1)) - first).max()) > 1e-2


def test_bad_input_is_named():
    for options, message in [
        ({"baselines": BASELINES[:, :3]}, r"examples of the inputs' shape \[5\]: got \[4, 3\]"),
        ({"baselines": (BASELINES,)}, "baselines must have the structure of the inputs"),
        ({"baselines": BASELINES[:0]}, r"at least 1: got \[0\]"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"noise_scale": -1.0}, "noise_scale is a standard deviation"),
        ({"noise_scale": jnp.ones(3)}, "noise_scale of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            expected_gradients(score, INPUTS, jax.random.key(0), **{"baselines": BASELINES, **options})
