"""The one check of inputs: what passes, and the sentence for each thing that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import integrated_gradients
from jaxcore.attribution.input_checks import (
    broadcast_baseline,
    check_features_left,
    check_like_inputs,
    check_positive,
    check_score,
    checked_finite,
    checked_mask,
    is_known,
)

PAIR = {"left": np.ones((2, 3), np.float32), "right": np.ones((2, 1, 4), np.float32)}


def test_a_pytree_has_one_batch():
    assert check_score(lambda x: x["left"].sum(1) + x["right"].sum((1, 2)), PAIR) == 2


@pytest.mark.parametrize(
    ("baseline", "left"),
    [(2.0, 2.0), (np.float32(2), 2.0), ({"left": np.arange(3.0), "right": 0.0}, np.arange(3.0))],
)
def test_baselines_broadcast_to_the_structure(baseline, left):
    found = broadcast_baseline(baseline, PAIR)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, PAIR)
    np.testing.assert_array_equal(found["left"], np.broadcast_to(left, (2, 3)))


def test_masks_are_booleans_and_all_true_if_not_given():
    np.testing.assert_array_equal(checked_mask(None, (1, 2)), [[True, True]])
    np.testing.assert_array_equal(checked_mask([[1, 0]], (1, 2)), [[True, False]])


def test_whole_numbers_of_any_kind_are_counts():
    check_positive(num_steps=np.int64(3), num_samples=jnp.int32(1), chunk_size=None)


def test_values_can_be_looked_at_outside_a_transformation():
    seen = []
    jax.jit(lambda x: seen.append(is_known(x)) or x)(jnp.ones(2))
    assert seen == [False] and is_known(jnp.ones(2)) and is_known(np.ones(2))


def total(x):
    return x.sum(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_score(total, {}), "hold no arrays"),
        (lambda: check_score(total, [np.ones((2, 3)), "text"]), "must be arrays.*a str"),
        (lambda: check_score(total, np.ones((2, 3), int)), "token ids.*int64"),
        (lambda: check_score(total, np.float32(3)), "must be arrays"),
        (
            lambda: check_score(lambda x: x[0].sum(1), [np.ones((2, 3)), np.ones((4, 3))]),
            r"one batch size: got \[2, 4\]",
        ),
        (lambda: check_score(lambda x: x, np.ones((2, 3))), r"one number per example, \[2\]: got shape \(2, 3\)"),
        (lambda: check_score(lambda x: (x, x), np.ones((2, 3))), "got a tuple"),
        (lambda: broadcast_baseline([0.0], PAIR), "structure of the inputs"),
        (lambda: broadcast_baseline({"left": np.ones(2), "right": 0.0}, PAIR), r"shape \(2,\) does not broadcast"),
        (lambda: checked_mask(np.ones((2, 3)), (2, 4)), r"mask must be \[2, 4\], one entry per token: got \[2, 3\]"),
        (lambda: check_positive(num_steps=3, chunk_size=0), "chunk_size must be at least 1: got 0"),
        (lambda: check_positive(num_steps=2.5), "num_steps must be a whole number: got 2.5"),
        (lambda: check_positive(width=2.0), "width must be a whole number: got 2.0"),
        (lambda: check_positive(stride="2"), "stride must be a whole number: got '2'"),
        (
            lambda: check_like_inputs({"left": np.ones((2, 3)), "right": np.ones((2, 4))}, PAIR),
            r"structure and shapes of the inputs, .*'right': \[2, 1, 4\]}: got .*'right': \[2, 4\]}",
        ),
        (lambda: check_like_inputs(list(PAIR.values()), PAIR), r"got \[\[2, 3\], \[2, 1, 4\]\]"),
        (lambda: check_features_left(np.array([2, 0, 1, 0])), r"in 2 of 4 examples \(rows 1, 3\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_that_are_not_finite_are_an_error_with_their_rows():
    score = lambda x: jnp.sqrt(x).sum(1)  # noqa: E731
    inputs = jnp.array([[1.0, 2.0], [1.0, -2.0], [3.0, 1.0]])
    with pytest.raises(ValueError, match=r"integrated_gradients met .* in 1 of 3 examples \(rows 1\)"):
        integrated_gradients(score, inputs, baseline=1.0, quadrature="right", num_steps=2)
    assert checked_finite({"a": jnp.ones(3)}, "m")["a"].shape == (3,)
    jitted = jax.jit(lambda x: checked_finite(x, "m"))  # nothing can be raised there: the value passes
    assert np.isnan(jitted(jnp.array([jnp.nan])))[0]
