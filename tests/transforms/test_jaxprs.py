"""The interpreter core, used the way a propagation rule (LRP, DeepLIFT) uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.transforms import Rules, activation_name, bind, evaluate, sites, trace


def rules_for(primitives, apply, rewrites=True):
    return Rules(lambda eqn: eqn.primitive.name if eqn.primitive.name in primitives else None, apply, rewrites)


@jax.custom_vjp
def tanh_secant(x):
    return jnp.tanh(x)


# The rescale rule against a zero baseline: the slope of the secant instead of the tangent.
tanh_secant.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (ct * jnp.tanh(x) / x,))


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, jax.jit, jax.checkpoint, lambda f: lambda x: jax.lax.cond(x[0] < 9, f, lambda x: x, x)],
    ids=["bare", "jit", "remat", "cond"],
)
def test_a_rule_replaces_the_derivative_of_one_primitive(wrap):
    weight = jnp.array([[1.0, -2.0], [0.5, 3.0]])

    def f(x):
        return wrap(lambda x: jnp.tanh(weight @ x))(x)

    def secant(eqn, operands, loops):
        return [tanh_secant(*operands)], {}

    x = jnp.array([0.4, 0.9])
    traced = trace(f, (x,), {})

    def rescaled(x):
        return traced.assemble(evaluate(traced.jaxpr, [x], rules_for({"tanh"}, secant))[0]).sum()

    z = weight @ x
    np.testing.assert_allclose(jax.grad(rescaled)(x), weight.T @ (jnp.tanh(z) / z), rtol=1e-5)
    # rescale is complete: multiplier times input sums to the difference from the baseline f(0) = 0
    np.testing.assert_allclose(jax.grad(rescaled)(x) @ x, f(x).sum(), rtol=1e-5)


def test_rewriting_enters_custom_derivatives_and_observing_keeps_them():
    x = jnp.array([-1.0, 2.0])

    def doubled(eqn, operands, loops):
        return [2 * r for r in bind(eqn, operands)], {}

    def seen(eqn, operands, loops):
        results = bind(eqn, operands)
        return results, {"max": tuple(results)}

    traced = trace(jax.nn.relu, (x,), {})  # a custom_jvp around max
    results, records = evaluate(traced.jaxpr, traced.arrays, rules_for({"max"}, doubled))
    np.testing.assert_array_equal(results[0], [0, 4])
    assert records == {}
    results, records = evaluate(traced.jaxpr, traced.arrays, rules_for({"max"}, seen, rewrites=False))
    np.testing.assert_array_equal(results[0], [0, 2])
    np.testing.assert_array_equal(records["max"][0], [0, 2])


def test_sites_in_program_order_with_their_obstacle():
    def f(x):
        y = jax.jit(lambda x: checkpoint_name(jnp.sin(x), "inner"))(x)
        y = jax.lax.custom_linear_solve(lambda v: checkpoint_name(2 * v, "hidden"), y, lambda _, b: b, symmetric=True)
        return checkpoint_name(y, "outer")

    traced = trace(f, (jnp.ones(2),), {})
    rules = Rules(activation_name, lambda *_: ([], {}), True)
    found = list(dict.fromkeys(sites(traced.jaxpr, rules)))
    assert found == [("inner", None), ("hidden", "custom_linear_solve"), ("outer", None)]


def test_a_jaxpr_hidden_in_an_object_is_found():
    """custom_root keeps its jaxpr inside an object since 0.12; before, it is a custom_jvp and can be
    entered."""

    def f(x):
        return jax.lax.custom_root(
            lambda v: v - x, x, lambda g, b: checkpoint_name(x + 0 * b, "solved"), lambda g, y: y
        )

    traced = trace(f, (jnp.ones(2),), {})
    rules = Rules(activation_name, lambda *_: ([], {}), False)
    assert "solved" in {label for label, _ in sites(traced.jaxpr, rules)}


def test_eager_evaluation_frees_intermediates():
    alive = []

    def watch(eqn, operands, loops):
        alive.append(len(jax.live_arrays()))
        return bind(eqn, operands), {}

    def f(x):
        for _ in range(20):
            x = jnp.sin(x)
        return x

    traced = trace(f, (jnp.ones(1000),), {})
    evaluate(traced.jaxpr, traced.arrays, rules_for({"sin"}, watch))
    assert max(alive) - min(alive) <= 2


def test_trace_separates_arrays_from_everything_else():
    def f(x, n, flag, *, options):
        return {"y": x * n if flag else x, "name": options["name"], "constant": jnp.float32(3)}

    traced = trace(f, (np.ones(2, np.float32), 3, True), {"options": {"name": "run", "z": jnp.ones(1)}})
    assert len(traced.arrays) == 2
    outputs = traced.assemble(evaluate(traced.jaxpr, traced.arrays, rules_for((), None))[0])
    np.testing.assert_array_equal(outputs["y"], [3, 3])
    assert outputs["name"] == "run"
    assert isinstance(outputs["constant"], jax.Array)
    assert outputs["constant"].dtype == jnp.float32
