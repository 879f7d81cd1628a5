"""Eager calls: compiled once for what they compute, never for values of an earlier call, and holding none of them."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.attribution import compiled_programs
from jaxcore.attribution.ablation import feature_ablation
from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.attribution.gradients import saliency
from jaxcore.attribution.guided_path import guided_integrated_gradients
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.lrp import lrp
from jaxcore.attribution.shapley import shapley_sampling
from jaxcore.attribution.surrogates import kernel_shap, lime

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
KEY = jax.random.key(0)

METHODS = {
    "saliency": saliency,
    "lrp": lrp,
    "guided_integrated_gradients": lambda score, x: guided_integrated_gradients(score, x, num_steps=4),
    "lime": lambda score, x: lime(score, x, KEY, num_samples=12, chunk_size=4),
    "shapley_sampling": lambda score, x: shapley_sampling(score, x, KEY, num_permutations=4, chunk_size=2),
    "integrated_gradients": lambda score, x: integrated_gradients(score, x, num_steps=6),
    "deep_lift": deep_lift,
    "deep_shap": lambda score, x: deep_shap(score, x, baselines=jnp.zeros((2, 5)), chunk_size=2),
    "feature_ablation": lambda score, x: feature_ablation(score, x, chunk_size=2),
    "kernel_shap": lambda score, x: kernel_shap(score, x, KEY, num_samples=12, chunk_size=4),
}


@pytest.fixture
def compilations():
    """A list that grows by one with every compilation; no program is there at first."""
    compiled_programs._kept.clear()
    found = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def make_score(weights, jitted):
    """A score with a scan, as a scanned encoder has, made anew as a notebook cell makes it."""

    def score(x):
        return jax.lax.scan(lambda hidden, w: (jnp.tanh(hidden @ w), None), x, weights)[0].sum(axis=1)

    return jax.jit(score) if jitted else score


def random_weights(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5, 5)), jnp.float32)


@pytest.mark.parametrize(("name", "jitted"), [(name, number % 2 == 0) for number, name in enumerate(METHODS)])
def test_a_repeated_call_compiles_nothing_and_sees_what_has_changed(name, jitted, compilations):
    method, first, second = METHODS[name], random_weights(1), random_weights(2)
    inputs = INPUTS + 1
    before = method(make_score(first, jitted), INPUTS)
    assert compilations
    compilations.clear()
    again = method(make_score(first, jitted), INPUTS)
    after = method(make_score(second, jitted), inputs)
    assert not compilations
    np.testing.assert_array_equal(again, before)
    expected = jax.jit(lambda weights, x: method(make_score(weights, False), x))(second, inputs)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(after) - np.asarray(before)).max() > 1e-2


def test_other_programs_are_compiled(compilations):
    scale, fewer = {"now": 2.0}, INPUTS[:2]

    def function(x):
        return jnp.cos(x) * scale["now"]

    np.testing.assert_allclose(run_compiled(function, INPUTS), 2 * np.cos(INPUTS), rtol=1e-6)
    compilations.clear()
    scale["now"] = 3.0  # a Python number, part of the program
    np.testing.assert_allclose(run_compiled(function, INPUTS), 3 * np.cos(INPUTS), rtol=1e-6)
    assert len(compilations) == 1
    run_compiled(function, fewer)
    assert len(compilations) == 2
    scale["now"] = 2.0
    run_compiled(function, INPUTS)
    assert len(compilations) == 2


def test_no_array_of_a_caller_is_kept():
    weights = random_weights(3)
    integrated_gradients(make_score(weights, True), INPUTS, num_steps=4)
    kept = weakref.ref(weights)
    del weights
    gc.collect()
    assert kept() is None


def test_a_bounded_number_of_programs_is_kept(monkeypatch, compilations):
    monkeypatch.setattr(compiled_programs, "MAX_PROGRAMS", 2)
    for factor in (1.25, 2.25, 3.25):
        run_compiled(lambda x, factor=factor: jnp.tan(x) * factor, INPUTS)
    assert len(compiled_programs._kept) == 2
    compilations.clear()
    run_compiled(lambda x: jnp.tan(x) * 2.25, INPUTS)
    assert not compilations
    run_compiled(lambda x: jnp.tan(x) * 1.25, INPUTS)  # the one that was used least recently
    assert len(compilations) == 1


def test_a_function_of_the_host_is_called_as_it_is_now():
    offset = {"now": 1.0}

    def call(x):
        here = offset["now"]
        return jax.pure_callback(lambda x: x + np.float32(here), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    np.testing.assert_allclose(run_compiled(call, INPUTS), INPUTS + 1)
    offset["now"] = 5.0
    np.testing.assert_allclose(run_compiled(call, INPUTS), INPUTS + 5)


def test_operands_on_several_devices_keep_their_place():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(8.0)
    alone = run_compiled(lambda x: x * 3, x)
    split = run_compiled(lambda x: x * 3, jax.device_put(x, NamedSharding(mesh, P("data"))))
    elsewhere = run_compiled(lambda x: x * 3, jax.device_put(x, jax.devices()[5]))
    assert len(alone.devices()) == 1 and len(split.devices()) == 4 and elsewhere.devices() == {jax.devices()[5]}
    np.testing.assert_array_equal(split, alone)


def test_weak_types_are_told_apart():
    assert run_compiled(lambda x: x + 1, jnp.asarray(1.0)).dtype == jnp.float32
    strong, weak = (run_compiled(lambda x: x * 1, x) for x in (jnp.float32(2), jax.jit(lambda: 2.0)()))
    assert not strong.weak_type and weak.weak_type


def test_inside_a_transformation_the_program_is_part_of_the_larger_one():
    def cube(x):
        return run_compiled(lambda y: y * x * x, x)

    np.testing.assert_allclose(jax.grad(cube)(2.0), 12.0)
    np.testing.assert_allclose(jax.vmap(cube)(jnp.arange(3.0)), [0, 1, 8])
    assert "jit" in str(jax.make_jaxpr(lambda: run_compiled(jnp.sin, jnp.ones(3)))())
