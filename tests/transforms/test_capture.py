"""capture against references that return the value themselves; f's values, gradients and memory must stay."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.transforms import activation_names, capture

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def same(actual, expected):
    jax.tree.map(close, actual, expected)


def total(tree):
    return sum(jnp.sum(jnp.sin(leaf) * (1 + leaf)) for leaf in jax.tree.leaves(tree))


def unedited(value, *indices):
    return value


def test_values(case, x):
    result, values = jax.jit(capture(case.f, ["a"]))(x)
    expected, expected_values = case.reference(x, unedited)
    same(result, expected)
    assert list(values) == ["a"]
    same(values["a"], expected_values)
    same(result, case.f(x))


def test_eager_call_and_listed_shapes_agree(case, x):
    _, values = capture(case.f, "a")(x)
    listed = activation_names(case.f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    same(values["a"], case.reference(x, unedited)[1])
    assert listed["a"].shape == values["a"].shape
    assert listed["a"].dtype == values["a"].dtype


def test_derivative_of_result_and_of_captured_value(case, x):
    def through_capture(x):
        result, values = capture(case.f, ["a"])(x)
        return total(result), total(values["a"])

    def by_hand(x):
        result, value = case.reference(x, unedited)
        return total(result), total(value)

    jacobian = jax.jacrev if case.reverse_mode else jax.jacfwd
    same(jax.jit(jacobian(through_capture))(x), jax.jit(jacobian(by_hand))(x))
    if case.reverse_mode:
        close(
            jax.grad(lambda x: total(capture(case.f, ["a"])(x)[0]))(x),
            jax.grad(lambda x: total(case.f(x)))(x),
        )


def test_vmap_outside(case, x):
    batch = jnp.stack([x, -0.5 * x])
    result, values = jax.jit(jax.vmap(capture(case.f, ["a"])))(batch)
    expected = [case.reference(row, unedited) for row in batch]
    same(result, jax.tree.map(lambda *rows: jnp.stack(rows), *[e[0] for e in expected]))
    same(values["a"], jnp.stack([e[1] for e in expected]))


# Random nestings: every wrapper maps (program, reference) to (program, reference).


def scanned(f, reference, reverse):
    weights = np.array([0.8, 1.1], np.float32)

    def looped(x):
        values = [None, None]
        for i in (1, 0) if reverse else (0, 1):
            x, values[i] = reference(weights[i] * x)
        return x, jnp.stack(values)

    return lambda x: jax.lax.scan(lambda c, w: (f(w * c), None), x, weights, reverse=reverse)[0], looped


def repeated(f, reference):
    def looped(x):
        for _ in range(3):
            x, value = reference(x)
        return x, value

    def step(state):
        return state[0] + 1, f(state[1])

    return lambda x: jax.lax.while_loop(lambda s: s[0] < 3, step, (0, x))[1], looped


def branched(f, reference, taken):
    def choose(x):
        return jax.lax.cond((jnp.sum(x) < np.inf) == taken, f, lambda x: 2 * x, x)

    def chosen(x):
        result, value = reference(x)
        return (result, value) if taken else (2 * x, jnp.zeros_like(value))

    return choose, chosen


WRAPPERS = {
    "jit": lambda f, r: (jax.jit(f), r),
    "remat": lambda f, r: (jax.checkpoint(f), r),
    "scan": lambda f, r: scanned(f, r, reverse=False),
    "reverse": lambda f, r: scanned(f, r, reverse=True),
    "while": repeated,
    "then": lambda f, r: branched(f, r, taken=True),
    "else": lambda f, r: branched(f, r, taken=False),
}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(WRAPPERS)), min_size=1, max_size=4))
def test_any_nesting(wrappers):
    def f(x):
        return 0.5 * x + checkpoint_name(jnp.cos(x), "a")

    def reference(x):
        return 0.5 * x + jnp.cos(x), jnp.cos(x)

    for wrapper in wrappers:
        f, reference = WRAPPERS[wrapper](f, reference)
    x = jnp.array([0.2, -1.0], jnp.float32)
    result, values = jax.jit(capture(f, "a"))(x)
    expected, expected_values = reference(x)
    same(result, expected)
    same(values["a"], expected_values)
    tangent = jnp.array([1.0, 0.5], jnp.float32)
    by_hand = jax.jvp(reference, (x,), (tangent,))[1]
    same(jax.jvp(lambda x: (lambda r, v: (r, v["a"]))(*capture(f, "a")(x)), (x,), (tangent,))[1], by_hand)


# Names and sites.


def test_several_names_and_several_sites(x):
    def block(x):
        return checkpoint_name(jnp.sin(x), "h")

    def f(x):
        y = block(x)
        z = checkpoint_name(y * 2, "z")
        return jax.jit(block)(z) + checkpoint_name({"p": x, "q": y}, "tree")["q"]

    result, values = capture(f, ["z", "h", "tree"])(x)
    y = jnp.sin(x)
    assert list(values) == ["z", "h", "tree"]
    same(values, {"z": 2 * y, "h": (y, jnp.sin(2 * y)), "tree": (x, y)})
    same(result, jnp.sin(2 * y) + y)
    assert list(activation_names(f, x)) == ["h", "z", "tree"]


def test_sites_of_cond_branches_share_a_slot_only_if_they_fit(x):
    def left(x):
        return checkpoint_name(x, "a").sum() + checkpoint_name(x.sum(), "a")

    def right(x):
        return checkpoint_name(jnp.float32(7), "a") + 0 * x.sum()

    def f(go_left, x):
        return jax.lax.cond(go_left, left, right, x)

    # the false branch comes first: its scalar, which the true branch's scalar shares, then the vector
    same(capture(f, "a")(jnp.array(True), x)[1]["a"], (x.sum(), x))
    same(capture(f, "a")(jnp.array(False), x)[1]["a"], (7.0, jnp.zeros_like(x)))


def test_while_loop_that_never_runs_and_condition_with_a_name():
    def f(n):
        return jax.lax.while_loop(
            lambda c: checkpoint_name(c * 10, "test") < n,
            lambda c: checkpoint_name(c + 1, "body"),
            jnp.int32(2),
        )

    result, values = jax.jit(capture(f, ["body", "test"]))(jnp.int32(5))
    same((result, values), (2, {"body": 0, "test": 20}))
    result, values = jax.jit(capture(f, ["body", "test"]))(jnp.int32(45))
    same((result, values), (5, {"body": 5, "test": 50}))


def test_missing_name_lists_those_that_occur(x):
    def f(x):
        return checkpoint_name(jax.jit(lambda x: checkpoint_name(x, "inner"))(x), "outer")

    with pytest.raises(ValueError, match=r"cannot capture 'b', 'c': names that occur are 'inner', 'outer'"):
        capture(f, ["outer", "b", "c"])(x)
    with pytest.raises(ValueError, match="names that occur are none: mark values with"):
        capture(jnp.sin, "a")(x)
    with pytest.raises(ValueError, match="name is a string; got 3"):
        capture(f, ["outer", 3])


def linear_solve(x):
    def matvec(v):
        return checkpoint_name(2 * v, "hidden")

    y = checkpoint_name(jnp.sin(x), "visible")
    return jax.lax.custom_linear_solve(matvec, y, lambda _, b: b / 2, symmetric=True)


def test_name_inside_a_primitive_that_cannot_be_entered(x):
    with pytest.raises(ValueError, match="'hidden' lies inside the primitive 'custom_linear_solve'"):
        capture(linear_solve, "hidden")(x)
    result, values = capture(linear_solve, "visible")(x)
    same((result, values["visible"]), (jnp.sin(x) / 2, jnp.sin(x)))
    assert list(activation_names(linear_solve, x)) == ["visible"]


def test_static_arguments_and_results(x):
    def f(params, x, *, train, mode="sin"):
        y = checkpoint_name(getattr(jnp, mode)(x) if train else x, "a")
        return {"y": y * params["w"], "mode": mode, "none": None, "number": 3}

    (result, values) = capture(f, "a")({"w": np.float32(2), "tag": "v1"}, x, train=True, mode="cos")
    assert (result["mode"], result["none"], result["number"]) == ("cos", None, 3)
    same((result["y"], values["a"]), (2 * jnp.cos(x), jnp.cos(x)))


# Custom derivative rules.


def wrong_rules():
    """sin with a rule that says its derivative is 10: a rule in force shows."""
    by_jvp = jax.custom_jvp(lambda x: jnp.sin(checkpoint_name(x * x, "a")))
    by_jvp.defjvp(lambda p, t: (by_jvp(*p), 10 * t[0]))
    by_vjp = jax.custom_vjp(lambda x: jnp.sin(checkpoint_name(x * x, "a")))
    by_vjp.defvjp(lambda x: (jnp.sin(checkpoint_name(x * x, "fwd")), None), lambda _, ct: (10 * ct,))
    return {"jvp": by_jvp, "vjp": by_vjp}


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["bare", "remat", "jit"])
def test_results_keep_the_custom_rule_and_captured_values_differentiate_as_code(kind, wrap, x):
    f = wrap(wrong_rules()[kind])
    g = capture(f, "a")
    close(jax.grad(lambda x: g(x)[0].sum())(x), 10 * jnp.ones_like(x))
    close(jax.grad(lambda x: g(x)[1]["a"].sum())(x), 2 * x)
    close(jax.grad(lambda x: g(x)[0].sum() + g(x)[1]["a"].sum())(x), 10 + 2 * x)


def test_rule_of_code_that_cannot_be_differentiated_otherwise(x):
    @jax.custom_vjp
    def f(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, checkpoint_name(s[1] * 2, "a")), (0, x))[1]

    f.defvjp(lambda x: (8 * x, None), lambda _, ct: (8 * ct,))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0]

    gradient, values = jax.jit(
        jax.grad(lambda x: (lambda r, v: (r.sum(), v))(*capture(scanned, "a")(x)), has_aux=True)
    )(x)
    close(gradient, jnp.full_like(x, 64))
    close(values["a"], jnp.stack([8 * x, 64 * x]))


def test_name_that_only_differentiation_brings(x):
    f = wrong_rules()["vjp"]
    with pytest.raises(ValueError, match="cannot capture 'fwd': names that occur are 'a'"):
        capture(f, "fwd")(x)
    close(jax.grad(lambda x: capture(f, "a")(x)[0].sum())(x), 10 * jnp.ones_like(x))
    gradient, values = capture(jax.grad(lambda x: f(x).sum()), "fwd")(x)
    close(gradient, 10 * jnp.ones_like(x))
    close(values["fwd"], x * x)


def test_custom_vmap_keeps_its_rule(x):
    @jax.custom_batching.custom_vmap
    def f(x):
        return 2 * checkpoint_name(jnp.sin(x), "a")

    f.def_vmap(lambda size, batched, x: (jnp.full_like(x, 5), batched[0]))
    result, values = jax.vmap(capture(f, "a"))(jnp.stack([x, 2 * x]))
    close(result, jnp.full((2, 4), 5))
    close(values["a"], jnp.sin(jnp.stack([x, 2 * x])))


def test_composite_stays_composite(x):
    f = jax.lax.composite(lambda x: checkpoint_name(jnp.sin(x), "a"), name="library.sine")
    result, values = capture(f, "a")(x)
    same((result, values["a"]), (jnp.sin(x), jnp.sin(x)))
    assert "library.sine" in jax.jit(lambda x: capture(f, "a")(x)[0]).lower(x).as_text()


# Remat.


def test_gradient_inside_f_is_one_site_despite_recomputation(x):
    def layer(c, w):
        return w * checkpoint_name(jnp.sin(c), "a"), None

    for policy in (None, jax.checkpoint_policies.save_only_these_names("a")):

        def f(x, policy=policy):
            return jax.grad(lambda x: jax.lax.scan(jax.checkpoint(layer, policy=policy), x, jnp.ones(3))[0].sum())(x)

        gradient, values = jax.jit(capture(f, "a"))(x)
        s1, s2, s3 = jnp.sin(x), jnp.sin(jnp.sin(x)), jnp.sin(jnp.sin(jnp.sin(x)))
        close(values["a"], jnp.stack([s1, s2, s3]))
        close(gradient, jnp.cos(x) * jnp.cos(s1) * jnp.cos(s2))


def residual_sizes(f, x):
    return sorted(leaf.size for leaf in jax.tree.leaves(jax.vjp(f, x)[1]))


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.save_only_these_names("a")])
def test_rematerialisation_saves_no_more_than_before(policy, x):
    def layer(c, w):
        return jnp.tanh(jnp.exp(-(checkpoint_name(jnp.sin(w * c), "a") ** 2))), None

    def network(x, wrap):
        return jax.lax.scan(wrap(layer), x, jnp.ones(6))[0]

    def remat(x):
        return network(x, functools.partial(jax.checkpoint, policy=policy))

    saved = residual_sizes(remat, x)
    assert sum(saved) < sum(residual_sizes(lambda x: network(x, lambda f: f), x))
    observed = residual_sizes(lambda x: capture(remat, "a")(x)[0], x)
    # scan's index and the scanned weights may be kept besides: two vectors of length 6
    assert sum(observed) <= sum(saved) + 12


# Sharding.


def test_shard_map_leading_axes_follow_what_varies(mesh):
    def body(x):
        own = checkpoint_name(2 * x, "own")  # varies over both mesh axes
        row = checkpoint_name(jax.lax.psum(own, "columns"), "row")
        return checkpoint_name(jax.lax.psum(row, "rows"), "all")

    f = jax.shard_map(body, mesh=mesh, in_specs=P("rows", "columns"), out_specs=P())
    x = jnp.arange(32.0).reshape(4, 8)
    result, values = jax.jit(capture(f, ["own", "row", "all"]))(x)
    blocks = 2 * x.reshape(2, 2, 4, 2).transpose(0, 2, 1, 3)  # [rows, columns, local, local]
    same(values, {"own": blocks, "row": blocks.sum(1), "all": blocks.sum((0, 1))})
    close(result, blocks.sum((0, 1)))
    assert {k: v.shape for k, v in activation_names(f, x).items()} == {
        "own": (2, 4, 2, 2),
        "row": (2, 2, 2),
        "all": (2, 2),
    }


def test_shard_map_over_some_axes_with_cond_and_while(mesh):
    def body(x):
        y = jax.lax.cond(x.sum() > 6, lambda x: checkpoint_name(-x, "a"), lambda x: x, x)
        return jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: checkpoint_name(c - 1, "b"), y)

    f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), axis_names={"rows"}))
    result, values = jax.jit(capture(f, ["a", "b"]))(jnp.array([1.0, 2.0, 3.0, 4.0]))
    close(values["a"], [[0, 0], [-3, -4]])
    close(values["b"], [[-1, 0], [0, 0]])
    close(result, [-1, 0, -3, -4])


def test_explicit_sharding_types(x):
    mesh = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Explicit, AxisType.Explicit))

    def f(x):
        y = jax.lax.cond(x.sum() > 0, lambda x: checkpoint_name(x * 2, "a"), lambda x: x, x)
        return jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: checkpoint_name(c / 2, "b"), y)

    with jax.set_mesh(mesh):
        sharded = jax.device_put(jnp.outer(x, x), NamedSharding(mesh, P("columns")))
        _, values = jax.jit(capture(f, ["a", "b"]))(sharded)
        assert jax.typeof(values["a"]).sharding.spec == P("columns", None)
        close(values["a"], 2 * jnp.outer(x, x))


def test_jit_shardings_are_kept(mesh, x):
    sharding = NamedSharding(mesh, P("columns"))
    f = jax.jit(lambda x: checkpoint_name(2 * x, "a") + 1, out_shardings=sharding)
    result, _ = jax.jit(capture(f, "a"))(x)
    assert result.sharding.is_equivalent_to(sharding, 1)


# A real module, and the cost of tracing.


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        m = nn.Dense(8, name="up")(nn.LayerNorm(name="norm")(h))
        h = checkpoint_name(h + nn.Dense(4, name="down")(checkpoint_name(nn.relu(m), "mlp")), "residual")
        return h, None


class Trunk(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, h, *, train=False):
        assert not train  # would fail on a traced flag
        block = nn.remat(Block, prevent_cse=False)
        scan = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        return scan(name="layers")(h, None)[0]


def by_hand(params, h):
    residuals = []
    for i in range(3):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["params"]["layers"])
        centred = h - h.mean(-1, keepdims=True)
        normal = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        normal = normal * p["norm"]["scale"] + p["norm"]["bias"]
        m = jnp.maximum(normal @ p["up"]["kernel"] + p["up"]["bias"], 0)
        h = h + m @ p["down"]["kernel"] + p["down"]["bias"]
        residuals.append(h)
    return h, jnp.stack(residuals)


def test_linen_scan_remat_under_vmap_grad_jit():
    h = jax.random.normal(jax.random.key(0), (5, 4))
    model = Trunk(3)
    params = model.init(jax.random.key(1), h[0])

    def loss(params, h, forward):
        result, residuals = forward(params, h)
        return jnp.sum(result**2) + jnp.sum(jnp.cos(residuals)), residuals

    def captured(params, h):
        result, values = capture(model.apply, ["residual"])(params, h, train=False)
        return result, values["residual"]

    run = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0, None))
    actual = jax.jit(run, static_argnums=2)(params, h, captured)
    expected = run(params, h, by_hand)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), actual, expected)
    assert list(activation_names(model.apply, params, h[0])) == ["mlp", "residual"]


def test_program_size_does_not_grow_with_depth_and_scopes_survive():
    h = jnp.ones((2, 4))

    def lowered(layers):
        model = Trunk(layers)
        params = jax.eval_shape(model.init, jax.random.key(1), h)
        loss = jax.grad(lambda p, h: capture(model.apply, ["residual", "mlp"])(p, h)[0].sum())
        return jax.jit(loss).lower(params, h)

    shallow, deep = lowered(3).as_text(), lowered(24).as_text()
    assert len(deep.splitlines()) == len(shallow.splitlines())
    assert "layers/" in lowered(3).as_text(debug_info=True)  # named scopes, for profiles


def test_no_retrace_inside_jit(x):
    traces = []

    def f(x):
        traces.append(1)
        return checkpoint_name(jnp.sin(x), "a")

    g = jax.jit(capture(f, "a"))
    for scale in range(4):
        g(scale * x)
    assert len(traces) == 1
