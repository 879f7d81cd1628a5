"""Mixtures of losses: the equation, and where learned weights end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.mixing import fixed_mixture, init_log_variances, learned_mixture

TERMS = {"a": jnp.asarray(3.0), "b": jnp.asarray(0.5)}


def test_fixed_weights():
    assert fixed_mixture(TERMS, {"b": 2.0, "a": 0.1}) == pytest.approx(0.1 * 3 + 2 * 0.5)
    gradient = jax.grad(lambda terms: fixed_mixture(terms, {"a": 0.1, "b": 2.0}))(TERMS)
    assert gradient["a"] == pytest.approx(0.1) and gradient["b"] == pytest.approx(2.0)


def test_learned_weights_are_their_equation():
    assert learned_mixture(TERMS, init_log_variances(TERMS)) == pytest.approx(3.5)
    variances = {"a": jnp.asarray(0.7), "b": jnp.asarray(-0.4)}
    expected = np.exp(-0.7) * 3 + 0.7 + np.exp(0.4) * 0.5
    assert learned_mixture(TERMS, variances) == pytest.approx(expected, rel=1e-6)


def test_learned_weights_end_at_one_over_the_loss_where_that_is_above_one():
    variances = init_log_variances(TERMS)
    step = jax.jit(jax.grad(lambda v: learned_mixture(TERMS, v)))
    for _ in range(500):
        variances = jax.tree.map(lambda v, g: v - 0.02 * g, variances, step(variances))
    assert variances["a"] == pytest.approx(np.log(3), abs=1e-2)
    assert variances["b"] == pytest.approx(0.0, abs=0.03)


def test_low_precision_terms_are_summed_in_float32():
    terms = {name: term.astype(jnp.bfloat16) for name, term in TERMS.items()}
    assert fixed_mixture(terms, {"a": 1.0, "b": 1.0}).dtype == jnp.float32
    assert learned_mixture(terms, init_log_variances(terms)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_mixture(TERMS, {"a": 1.0}), r"same names, at least one: got \['a', 'b'\], \['a'\]"),
        (lambda: fixed_mixture({}, {}), "at least one"),
        (lambda: learned_mixture(TERMS, init_log_variances(["a", "c"])), "same names"),
        (lambda: learned_mixture({"a": jnp.zeros(2)}, init_log_variances(["a"])), "'a' must be a scalar"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
