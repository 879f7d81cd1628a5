"""Arrays inside programs: found, and brought out without changing what is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.transforms.held_arrays import bring_out_arrays, text_tells_all

WEIGHTS = jnp.asarray([0.3, -1.2, 2.0])


def direct(x):
    return jnp.sin(x * WEIGHTS)


inner = jax.jit(direct)

PROGRAMS = {
    "jit": inner,
    "jit in jit": jax.jit(lambda x: inner(x) + 1),
    "scan": lambda x: jax.lax.scan(lambda c, _: (inner(c), inner(c) * 2), x, None, length=3),
    "remat": jax.checkpoint(lambda x: inner(x) ** 2),
    "cond": lambda x: jax.lax.cond(x[0] > 0, inner, lambda x: -inner(x), x),
    "gradient": jax.grad(lambda x: jnp.sum(inner(x) * x)),
    "vmapped gradient": lambda x: jax.vmap(jax.grad(lambda y: jnp.sum(inner(y) * x)))(jnp.stack([x, 2 * x])),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_jits_give_up_what_they_hold(name):
    x = jnp.asarray([0.5, 1.5, -0.7])
    closed = jax.make_jaxpr(PROGRAMS[name])(x)
    assert not text_tells_all(closed)
    outer = bring_out_arrays(closed, [x])
    assert text_tells_all(outer)
    assert any(np.array_equal(value, WEIGHTS) for value in outer.consts if jnp.shape(value) == WEIGHTS.shape) or (
        name == "gradient"  # whose residuals may be functions of the weights, computed while tracing
    )
    expected = jax.tree.leaves(PROGRAMS[name](x))
    found = jax.core.eval_jaxpr(outer.jaxpr, outer.consts, x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_program_that_holds_nothing_stays_the_same():
    closed = jax.make_jaxpr(direct)(jnp.ones(3))  # what it closes over is beside it
    assert text_tells_all(closed)
    assert bring_out_arrays(closed, [jnp.ones(3)]) is closed


def test_a_jit_with_shardings_of_its_own_keeps_them():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    held = jnp.arange(8.0)
    split = jax.jit(lambda x: x * held, out_shardings=NamedSharding(mesh, P("data")))
    closed = jax.make_jaxpr(split)(jnp.ones(8))
    assert bring_out_arrays(closed, [jnp.ones(8)]) is closed
    assert not text_tells_all(closed)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jax.lax.map(lambda y: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), y.dtype), y), x),
        lambda x: (jax.debug.print("{}", x), x)[1],
    ],
)
def test_a_call_of_the_host_is_not_in_the_text(function):
    assert not text_tells_all(jax.make_jaxpr(function)(jnp.ones(3)))
