"""intervene against references with the edit written into them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.transforms import capture, intervene

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def same(actual, expected):
    jax.tree.map(close, actual, expected)


def total(tree):
    return sum(jnp.sum(jnp.sin(leaf) * (1 + leaf)) for leaf in jax.tree.leaves(tree))


def scaled(scale):
    return lambda value, *indices: scale * value + 0.1


def test_edited_values_and_what_capture_then_sees(case, x):
    expected, expected_values = case.reference(x, scaled(0.6))
    edited = intervene(case.f, {"a": scaled(0.6)})
    same(jax.jit(edited)(x), expected)
    result, values = jax.jit(capture(edited, "a"))(x)
    same((result, values["a"]), (expected, expected_values))


def test_identity_edit_changes_nothing(case, x):
    same(intervene(case.f, {"a": lambda value: value})(x), case.f(x))


def test_gradient_by_input_and_by_what_the_edit_closes_over(case, x):
    def through_intervene(x, scale):
        return total(intervene(case.f, {"a": scaled(scale)})(x))

    def by_hand(x, scale):
        return total(case.reference(x, scaled(scale))[0])

    jacobian = jax.jacrev if case.reverse_mode else jax.jacfwd
    scale = jnp.float32(0.6)
    same(jax.jit(jacobian(through_intervene, (0, 1)))(x, scale), jax.jit(jacobian(by_hand, (0, 1)))(x, scale))


def test_vmap_outside(case, x):
    batch = jnp.stack([x, -0.5 * x])
    result = jax.jit(jax.vmap(intervene(case.f, {"a": scaled(0.6)})))(batch)
    rows = [case.reference(row, scaled(0.6))[0] for row in batch]
    same(result, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


def test_edit_of_one_iteration(loop_case, x):
    """Iteration 2 of a loop; iteration (1, 2) of nested loops."""
    chosen = (1, 2)[-loop_case.loops :]

    def edit(value, *, step):
        indices = step if isinstance(step, tuple) else (step,)
        is_chosen = functools.reduce(jnp.logical_and, [i == j for i, j in zip(indices, chosen, strict=True)])
        return jnp.where(is_chosen, 0.25 * value - 1, value)

    def reference_edit(value, *indices):
        return 0.25 * value - 1 if indices == chosen else value

    expected, _ = loop_case.reference(x, reference_edit)
    same(jax.jit(intervene(loop_case.f, {"a": edit}))(x), expected)


def test_gradient_of_each_layer_by_an_added_perturbation(x):
    """The recipe for layer attribution: d f / d activation, all layers of a scan at once."""
    weights = jnp.array([0.9, 1.3, 0.7])

    def f(x):
        return jax.lax.scan(lambda c, w: (checkpoint_name(jnp.tanh(w * c), "h"), None), x, weights)[0].sum()

    def added(delta):
        return intervene(f, {"h": lambda h, *, step: h + delta[step]})(x)

    def by_hand(delta):
        c = x
        for i in range(3):
            c = jnp.tanh(weights[i] * c) + delta[i]
        return c.sum()

    zeros = jnp.zeros((3, 4))
    close(jax.jit(jax.grad(added))(zeros), jax.grad(by_hand)(zeros))


def test_array_edit_and_several_names_and_sites(x):
    def f(x):
        a = checkpoint_name(jnp.sin(x), "a")
        b = checkpoint_name(a * x, "b")
        return checkpoint_name(a + b, "a")

    replacement = np.full(4, 0.5, np.float32)
    close(intervene(f, {"b": replacement})(x), jnp.sin(x) + 0.5)
    edits = {"a": lambda a: 2 * a, "b": lambda b: b - 1}
    close(jax.jit(intervene(f, edits))(x), 2 * (2 * jnp.sin(x) + (2 * jnp.sin(x) * x - 1)))
    close(jax.grad(lambda x: intervene(f, {"a": replacement})(x).sum())(x), np.zeros(4))


def test_edits_compose_and_no_edit_is_f(x):
    def f(x):
        return 3 * checkpoint_name(jnp.sin(x), "a")

    twice = intervene(intervene(f, {"a": lambda a: a + 1}), {"a": lambda a: 5 * a})
    close(twice(x), 3 * 5 * (jnp.sin(x) + 1))
    close(intervene(f, {})(x), f(x))


def test_condition_of_while_loop_is_edited():
    def f(n):
        return jax.lax.while_loop(lambda c: checkpoint_name(c, "bound") < n, lambda c: c + 1, jnp.int32(0))

    assert int(jax.jit(intervene(f, {"bound": lambda c: 2 * c}))(jnp.int32(10))) == 5


# Custom rules.


def sine_of_named_square():
    by_jvp = jax.custom_jvp(lambda x: jnp.sin(checkpoint_name(x * x, "a")))
    by_jvp.defjvp(lambda p, t: (by_jvp(*p), 10 * t[0]))
    by_vjp = jax.custom_vjp(lambda x: jnp.sin(checkpoint_name(x * x, "a")))
    by_vjp.defvjp(lambda x: (by_vjp(x), None), lambda _, ct: (10 * ct,))
    return {"jvp": by_jvp, "vjp": by_vjp}


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_edited_function_is_differentiated_not_its_stale_rule(kind, x):
    f = sine_of_named_square()[kind]
    gradient = jax.grad(lambda x: intervene(f, {"a": lambda a: a + 1})(x).sum())(x)
    close(gradient, jnp.cos(x * x + 1) * 2 * x)


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_function_without_an_edited_value_keeps_its_rule(kind, x):
    inner = sine_of_named_square()[kind]

    def f(x):
        return inner(checkpoint_name(3 * x, "b"))

    gradient = jax.grad(lambda x: intervene(f, {"b": lambda b: b / 2})(x).sum())(x)
    close(gradient, jnp.full(4, 10 * 1.5))


def test_edited_custom_vmap_function_is_batched_as_code(x):
    f = jax.custom_batching.custom_vmap(lambda x: 2 * checkpoint_name(jnp.sin(x), "a"))
    f.def_vmap(lambda size, batched, x: (jnp.full_like(x, 5), batched[0]))
    close(jax.vmap(intervene(f, {"a": lambda a: a + 1}))(x[None]), 2 * (jnp.sin(x[None]) + 1))


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.save_only_these_names("a")])
def test_gradient_inside_f_sees_the_edit_saved_or_recomputed(policy, x):
    def g(x):
        return jnp.sin(checkpoint_name(x * x, "a")).sum()

    program = jax.grad(jax.checkpoint(g, policy=policy))
    close(jax.jit(intervene(program, {"a": lambda a: a + 1}))(x), jnp.cos(x * x + 1) * 2 * x)


def test_recomputation_inside_f_stays_marked(x):
    """Without its mark the compiler would merge recomputation with the forward pass and undo remat."""

    def layer(c, w):
        return jnp.tanh(checkpoint_name(jnp.sin(w * c), "a")), None

    def program(x):
        return jax.grad(lambda x: jax.lax.scan(jax.checkpoint(layer), x, jnp.ones(3))[0].sum())(x)

    def barriers(f):
        return jax.jit(f).lower(x).as_text().count("optimization_barrier")

    assert barriers(program) > 0
    assert barriers(intervene(program, {"a": lambda a: a * 2})) == barriers(program)


# Sharding.


def test_replacing_a_sharded_value_by_a_replicated_one(mesh, x):
    def body(x):
        return jax.lax.psum(checkpoint_name(2 * x, "a"), "columns")

    f = jax.shard_map(body, mesh=mesh, in_specs=P("columns"), out_specs=P())
    close(intervene(f, {"a": np.ones(1, np.float32)})(x), [4.0])


def test_replacing_under_explicit_sharding(x):
    mesh = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Explicit, AxisType.Explicit))

    def f(x):
        return jax.lax.scan(lambda c, _: (checkpoint_name(jnp.sin(c), "a"), None), x, None, length=2)[0]

    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, P("columns")))
        result = intervene(f, {"a": np.ones(4, np.float32)})(sharded)
        assert jax.typeof(result).sharding.spec == P("columns")
        close(result, np.ones(4))


# Bad requests.


def named_sine(x):
    return checkpoint_name(jnp.sin(x), "a")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.sum(), r"gives float32\[\] where the value is float32\[4\]"),
        (lambda a: a.astype(jnp.bfloat16), r"gives bfloat16\[4\] where the value is float32\[4\]"),
        (np.zeros((1, 4), np.float32), r"gives float32\[1, 4\] where the value is float32\[4\]"),
    ],
)
def test_edit_that_changes_shape_or_dtype(edit, message, x):
    with pytest.raises(ValueError, match=message):
        jax.jit(intervene(named_sine, {"a": edit}))(x)


def test_unknown_name_and_unusable_edit(x):
    with pytest.raises(ValueError, match="cannot edit 'b': names that occur are 'a'"):
        intervene(named_sine, {"b": lambda b: b})(x)
    with pytest.raises(ValueError, match="edit of 'a' must be a function or an array; got str"):
        intervene(named_sine, {"a": "zero"})


def test_name_inside_a_primitive_that_cannot_be_entered(x):
    def f(x):
        def matvec(v):
            return checkpoint_name(2 * v, "a")

        return jax.lax.custom_linear_solve(matvec, x, lambda _, b: b / 2, symmetric=True)

    with pytest.raises(ValueError, match="'a' lies inside the primitive 'custom_linear_solve'"):
        intervene(f, {"a": lambda a: a})(x)


def test_step_outside_a_loop(x):
    with pytest.raises(ValueError, match="'a' occurs outside any loop"):
        intervene(named_sine, {"a": lambda a, *, step: a})(x)
    close(intervene(named_sine, {"a": lambda a, *, step=None: a + (step is None)})(x), jnp.sin(x) + 1)


def test_step_bound_by_partial_is_not_overwritten(x):
    def edit(a, *, step):
        return a * step

    def f(x):
        return jax.lax.fori_loop(0, 2, lambda i, c: checkpoint_name(c, "a"), x)

    close(intervene(f, {"a": functools.partial(edit, step=10)})(x), 100 * x)
    close(intervene(f, {"a": edit})(x), 0 * x)
