"""The propagation engine by itself: what it recognises, what crosses loops and branches, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.transforms.propagation import KINDS, Propagation, register_rule
from jaxcore.transforms.propagation_nodes import Node, bind_nodes, scaled


class Marked(Propagation):
    """Every activation has multiplier 7 towards its root, every softmax the weights 1."""

    name = "marked"
    _has_reference = True

    def link(self, node):
        return scaled([node.root.value], [7 * jnp.ones_like(node.root.value)], node.value)

    def softmax_weights(self, stage):
        return jnp.ones(stage.source.shape)

    def bilinear(self, eqn, operands):
        return bind_nodes(eqn, operands)

    def quotient(self, eqn, operands):
        return bind_nodes(eqn, operands)

    def extremum(self, eqn, operands):
        return bind_nodes(eqn, operands)

    def selection(self, eqn, operands):
        return bind_nodes(eqn, operands)


def multipliers(score, inputs, rules=None):
    inputs = jnp.asarray(inputs)
    return Marked(rules).multipliers(score, inputs, jnp.zeros_like(inputs))


X = np.array([[0.5, -1.0, 2.0]], np.float32)


@pytest.mark.parametrize(
    "f",
    [
        jax.nn.silu,
        jax.nn.softplus,
        jax.nn.gelu,
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda x: jnp.tanh(x + jnp.ones(3)) * x,
        jax.jit(lambda x: x * jax.jit(jnp.tanh)(2 * x)),
    ],
)
def test_a_function_of_one_value_is_linked_to_it_once(f):
    np.testing.assert_array_equal(multipliers(lambda x: f(x).sum(1), X), 7)


def test_activations_in_sequence_and_of_different_values_are_linked_one_by_one():
    score = lambda x: jnp.tanh(jnp.cumsum(jnp.tanh(x), axis=1))[:, 2]  # noqa: E731
    np.testing.assert_array_equal(multipliers(score, X), 49)


def test_loops_and_branches_carry_nodes_where_an_iteration_makes_them():
    def body(carry, x_t):
        total, untouched, _ = carry
        return (total + jnp.tanh(x_t), untouched, total), untouched

    def score(x):
        (total, _, before), _ = jax.lax.scan(body, (jnp.zeros(1), jnp.ones(1), jnp.zeros(1)), x.T)
        chosen = jax.lax.switch(jnp.int32(1), [lambda t: jnp.zeros(1), lambda t: 2 * t, lambda t: t], total)
        return chosen + before

    np.testing.assert_array_equal(multipliers(score, X), [[21.0, 21.0, 14.0]])


def test_a_loop_without_iterations_changes_nothing():
    def score(x):
        step = lambda h, w: (jnp.tanh(h * w), None)  # noqa: E731
        return jax.lax.scan(step, jnp.tanh(x), jnp.zeros((0, 3)))[0][:, 1]

    np.testing.assert_array_equal(multipliers(score, X), [[0, 7, 0]])


SQUARE = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)


MASK = np.array([True, False, True])


def shifted(values, maximum_of, masked_value):
    exponentials = jnp.exp(values - jax.lax.stop_gradient(maximum_of.max(2, keepdims=True)))
    return exponentials / jnp.where(MASK, exponentials, masked_value).sum(2, keepdims=True)


def raised_logsumexp(values, adds_what_it_subtracts):
    maximum = values.max(1, keepdims=True)
    raised = jnp.maximum(maximum, 9.0)
    total = jnp.sum(jnp.exp(values - raised), 1, keepdims=True)
    return jnp.log(total) + (raised if adds_what_it_subtracts else maximum)


@pytest.mark.parametrize(
    ("f", "is_softmax"),
    [
        (jax.nn.softmax, True),
        (lambda x: jax.nn.softmax(x, axis=1), True),
        (jax.nn.log_softmax, True),
        (lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True), True),
        (lambda x: jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True), True),
        (lambda x: jnp.exp(x) / jnp.exp(x).sum(2)[:, None, :], False),  # sums over one axis, divides along another
        (lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(1, keepdims=True), False),
        (lambda x: jax.nn.softmax(x, where=MASK), True),
        (lambda x: jnp.where(MASK, jax.nn.log_softmax(x, where=MASK), 0), True),
        (lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True, where=MASK), True),
        (lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True, b=SQUARE**2), True),
        (lambda x: 0.5 * jnp.exp(x) / (jnp.exp(x) * SQUARE**2 / 2).sum(1, keepdims=True), True),
        (lambda x: shifted(jnp.where(MASK, x, -jnp.inf), x, 0), True),  # a maximum of other values cancels, too
        (lambda x: shifted(x, x, 1), False),  # a constant beside the exponentials is no mask
        (lambda x: jnp.exp(x) / (jnp.exp(x) * x).sum(1, keepdims=True), False),  # nor is a weight that varies
        (lambda x: raised_logsumexp(x, False), False),  # another number is added than was subtracted
        (lambda x: raised_logsumexp(x, True), True),
    ],
)
def test_softmax_is_recognised_and_what_only_looks_like_it_is_not(f, is_softmax):
    """The marked rule of softmax has no 7 in it, that of exp or log has."""
    weights = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    values = jax.jit(lambda x: multipliers(lambda x: jnp.sum(f(x) * weights, (1, 2)), x))(SQUARE)
    assert bool(np.abs(values).max() < 7 * np.abs(weights).max() * 0.9) == is_softmax


def test_what_does_not_depend_on_the_inputs_needs_no_rule():
    score = lambda x: x[:, 0] * jnp.sort(jax.lax.erf_inv(jnp.linspace(0.1, 0.5, 3)))[0]  # noqa: E731
    assert multipliers(score, X)[0, 0] == pytest.approx(float(jax.lax.erf_inv(0.1)), rel=1e-5)
    np.testing.assert_array_equal(multipliers(lambda x: jnp.ones(1), X), 0)


def test_an_unknown_primitive_is_named_and_a_rule_makes_it_known():
    score = lambda x: jnp.sum(jax.lax.cumprod(x, axis=1), axis=1)  # noqa: E731
    with pytest.raises(ValueError, match=r"marked has no rule for the primitive 'cumprod'.*register_rule\('cumprod'"):
        multipliers(score, X)
    np.testing.assert_array_equal(multipliers(score, X, {"cumprod": "elementwise"}), 7)
    np.testing.assert_array_equal(multipliers(score, X, {"cumprod": "constant"}), 0)
    gradient = jax.grad(lambda x: score(x)[0])(jnp.asarray(X))
    np.testing.assert_allclose(multipliers(score, X, {"cumprod": "gradient"}), gradient, rtol=1e-6)

    def threefold(eqn, operands):
        (x,) = operands
        return [Node(scaled([x.value], [3.0 * jnp.ones_like(x.value)], jnp.cumprod(x.value, 1)), x.reference)]

    np.testing.assert_array_equal(multipliers(score, X, {"cumprod": threefold}), 3)
    register_rule("cumprod", "elementwise")
    try:
        np.testing.assert_array_equal(multipliers(score, X), 7)
    finally:
        del KINDS["cumprod"]
    with pytest.raises(ValueError, match="must be a function or one of"):
        register_rule("cumprod", "smooth")
