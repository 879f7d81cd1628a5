"""One program per JAX construct, each beside an independent reference written as a plain Python loop.

`reference(x, edit)` returns (result, values of "a" as capture stacks them), where `edit(value, *indices)`
stands for what `intervene` would do to each value. No reference uses checkpoint_name, scan, cond, remat or a
custom rule.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

WEIGHTS = np.array([0.9, 1.3, 0.7], np.float32)
OUTER = np.array([1.1, 0.8], np.float32)


def named(x):
    return checkpoint_name(jnp.tanh(1.3 * x), "a")


def plain(x, edit, *indices):
    return edit(jnp.tanh(1.3 * x), *indices)


@dataclasses.dataclass(frozen=True)
class Case:
    f: Callable
    reference: Callable
    loops: int = 0
    reverse_mode: bool = True


def once(transform):
    """A construct that evaluates its function once, unchanged."""

    def reference(x, edit):
        value = plain(x, edit)
        return 2 * value, value

    return Case(lambda x: 2 * transform(named)(x), reference)


def scan_case(reverse):
    def f(x):
        return jax.lax.scan(lambda c, w: (w * named(c), c.sum()), x, WEIGHTS, reverse=reverse)

    def reference(x, edit):
        values, sums = [None] * 3, [None] * 3
        for i in range(3)[:: -1 if reverse else 1]:
            sums[i], values[i] = x.sum(), plain(x, edit, i)
            x = WEIGHTS[i] * values[i]
        return (x, jnp.stack(sums)), jnp.stack(values)

    return Case(f, reference, loops=1)


def nested_scan_case():
    def f(x):
        def inner(c, w):
            return w * named(c), None

        def outer(c, u):
            return jax.lax.scan(jax.checkpoint(inner), u * c, WEIGHTS)[0], None

        return jax.lax.scan(outer, x, OUTER)[0]

    def reference(x, edit):
        rows = []
        for i in range(2):
            x, row = OUTER[i] * x, []
            for j in range(3):
                row.append(plain(x, edit, i, j))
                x = WEIGHTS[j] * row[-1]
            rows.append(jnp.stack(row))
        return x, jnp.stack(rows)

    return Case(f, reference, loops=2)


def fori_case():
    def reference(x, edit):
        values = []
        for i in range(4):
            values.append(plain(x, edit, i))
            x = values[-1] + i
        return x, jnp.stack(values)

    return Case(lambda x: jax.lax.fori_loop(0, 4, lambda i, c: named(c) + i, x), reference, loops=1)


def while_case():
    def f(x):
        return jax.lax.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, 0.5 + named(s[1])), (1, x))[1]

    def reference(x, edit):
        for i in range(3):
            value = plain(x, edit, i)
            x = 0.5 + value
        return x, value

    return Case(f, reference, loops=1, reverse_mode=False)


def cond_case(taken):
    def f(x):
        return jax.lax.cond(jnp.sum(x * x) >= 0, *((named, jnp.sin) if taken else (jnp.sin, named)), x)

    def reference(x, edit):
        value = plain(x, edit)
        return (value, value) if taken else (jnp.sin(x), jnp.zeros_like(x))

    return Case(f, reference)


def switch_in_scan_case():
    def f(x):
        branches = [named, lambda c: 2 * c, lambda c: 3 * jax.jit(named)(c)]
        return jax.lax.scan(lambda c, i: (jax.lax.switch(i, branches, c), None), x, jnp.array([2, 1, 0]))[0]

    def reference(x, edit):
        first = plain(x, edit, 0)
        third = plain(6 * first, edit, 2)
        return third, jnp.stack([first, jnp.zeros_like(first), third])

    return Case(f, reference, loops=1)


def vmap_case():
    def reference(x, edit):
        value = plain(jnp.outer(jnp.array([1.0, -2.0]), x), edit)
        return value.sum(0), value

    return Case(lambda x: jax.vmap(lambda s: named(s * x))(jnp.array([1.0, -2.0])).sum(0), reference)


def grid() -> Mesh:
    return jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto, AxisType.Auto))


def shard_map_case(check_vma):
    def body(w, x):  # w is split over rows, x is the same everywhere
        return jax.lax.psum(w * named(x * w), "rows")

    def f(x):
        weights = jnp.array([0.5, 2.0])
        return jax.shard_map(body, mesh=grid(), in_specs=(P("rows"), P()), out_specs=P(), check_vma=check_vma)(
            weights, x
        )

    def reference(x, edit):
        values = [plain(x * w, edit) for w in (0.5, 2.0)]
        stack = jnp.stack(values)
        return 0.5 * values[0] + 2.0 * values[1], stack if check_vma else jnp.stack([stack] * 4, 1)

    return Case(f, reference)


def shard_map_scan_case():
    def f(x):
        def body(x):
            return jax.lax.scan(lambda c, w: (w * named(c), None), x, WEIGHTS)[0]

        sharded = jax.shard_map(body, mesh=grid(), in_specs=P("columns"), out_specs=P("columns"))
        return jax.lax.scan(lambda c, u: (sharded(u * c), None), x, OUTER)[0]

    def reference(x, edit):
        result, values = nested_scan_case().reference(x, edit)  # [outer, inner, 4]
        return result, jnp.moveaxis(values[..., None], 2, 1)

    return Case(f, reference, loops=2)


def remat_policy(f):
    return jax.checkpoint(f, policy=jax.checkpoint_policies.save_only_these_names("a"))


def true_custom_jvp(f):
    """Carries a rule that agrees with the code."""
    g = jax.custom_jvp(f)
    g.defjvp(lambda p, t: jax.jvp(lambda x: jnp.tanh(1.3 * x), p, t))
    return g


def true_custom_vjp(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (jnp.tanh(1.3 * x), x), lambda x, ct: (1.3 * (1 - jnp.tanh(1.3 * x) ** 2) * ct,))
    return g


CASES = {
    "plain": once(lambda f: f),
    "jit": once(jax.jit),
    "jit in jit": once(lambda f: jax.jit(lambda x: jax.jit(f)(x))),
    "remat": once(jax.checkpoint),
    "remat with policy": once(remat_policy),
    "custom_jvp": once(true_custom_jvp),
    "custom_vjp": once(true_custom_vjp),
    "scan": scan_case(reverse=False),
    "reverse scan": scan_case(reverse=True),
    "scan of scan of remat": nested_scan_case(),
    "fori_loop": fori_case(),
    "while_loop": while_case(),
    "cond taken": cond_case(taken=True),
    "cond not taken": cond_case(taken=False),
    "scan of switch": switch_in_scan_case(),
    "vmap": vmap_case(),
    "shard_map": shard_map_case(check_vma=True),
    "shard_map without vma": shard_map_case(check_vma=False),
    "scan of shard_map of scan": shard_map_scan_case(),
}


@pytest.fixture(params=CASES, scope="session")
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.loops], scope="session")
def loop_case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def x() -> jax.Array:
    return jnp.array([0.3, -0.7, 1.1, 0.05], jnp.float32)


@pytest.fixture
def mesh() -> Mesh:
    return grid()
