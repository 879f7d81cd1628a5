"""linear and layer_norm: values and derivatives against their plain formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models.affine import FEW_ROWS, layer_norm, linear, over_rows


def draws(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape) for shape in shapes)


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def value_and_gradients(function, arguments):
    return jax.value_and_grad(lambda *a: (function(*a) ** 3).sum(), argnums=(0, 1, 2))(*arguments)


@pytest.mark.parametrize("leading", ((), (2, 3)))
def test_values_and_gradients_in_any_rank(leading):
    """Ours in float32 against the textbook line, differentiated by JAX in float64."""
    x, kernel, bias, scale, shift = draws((*leading, 5), (5, 7), (7,), (5,), (5,))
    cases = {
        "linear": (lambda *a: linear(*a, dtype=jnp.float32), lambda x, w, b: x @ w + b, (x, kernel, bias)),
        "norm": (
            lambda *a: layer_norm(*a, epsilon=1e-5, dtype=jnp.float32),
            plain_layer_norm,
            (x, scale, shift),
        ),
    }
    for ours, plain, arguments in cases.values():
        with jax.enable_x64(True):
            expected = jax.tree.map(np.asarray, value_and_gradients(plain, arguments))
        got = value_and_gradients(ours, [jnp.asarray(argument, jnp.float32) for argument in arguments])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_variance_does_not_cancel():
    """Deviations of 1 on a mean of 10^4: mean of squares minus square of mean would lose them in float32."""
    x = 1e4 + np.array([[-1.0, 1.0, -1.0, 1.0]])
    got = layer_norm(jnp.asarray(x, jnp.float32), jnp.ones(4), jnp.zeros(4), epsilon=0.0, dtype=jnp.float32)
    np.testing.assert_allclose(got, x - 1e4, rtol=1e-3)


def test_norm_is_float32_inside_and_bfloat16_outside():
    (x,) = draws((6, 64))
    low = jnp.asarray(x, jnp.bfloat16)
    got = layer_norm(low, jnp.ones(64), jnp.zeros(64), epsilon=1e-5, dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    expected = plain_layer_norm(np.asarray(low, np.float64), 1.0, 0.0)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=1e-6)


def test_weight_gradients_are_plain_products():
    """What the module is for: no sum over rows and no product on three axes among the derivatives."""
    arguments = [jnp.ones(shape) for shape in ((2, 3, 5), (5, 7), (7,))]
    gradients = jax.grad(lambda *a: linear(*a, dtype=jnp.float32).mean(), argnums=(0, 1, 2))
    jaxpr = jax.make_jaxpr(gradients)(*arguments)
    products = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert len(products) == 5 and all(variable.aval.ndim == 2 for e in products for variable in e.invars)
    sums = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "reduce_sum"]
    assert all(equation.outvars[0].aval.ndim == 0 for equation in sums)  # the mean of the loss alone


def test_forward_mode_and_batching():
    (v,) = draws((4,))
    value, tangent = jax.jvp(lambda v: over_rows(v, 3), (jnp.asarray(v),), (jnp.ones(4),))
    np.testing.assert_allclose(value, np.tile(v, (3, 1)), rtol=1e-6)
    np.testing.assert_array_equal(tangent, np.ones((3, 4)))
    batched = jax.vmap(lambda v: over_rows(v, 3))(jnp.asarray(np.stack([v, 2 * v])))
    np.testing.assert_allclose(batched[1], np.tile(2 * v, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_a_kernel_stored_by_outputs_gives_the_same_product_and_derivatives(rows):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, 5), (5, 7)))
    bias = jnp.arange(7.0)

    def plain(x, kernel):
        return linear(x, kernel, bias, dtype=jnp.float32)

    def turned(x, kernel):
        return linear(x, kernel.T, bias, dtype=jnp.float32, by_outputs=True)

    weights = jnp.asarray(rng.normal(size=(rows, 7)), jnp.float32)
    got, expected = (jax.vjp(function, x, kernel) for function in (turned, plain))
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    for one, other in zip(got[1](weights), expected[1](weights), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
