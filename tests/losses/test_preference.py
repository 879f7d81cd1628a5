"""Preference losses against float64, their gradients in closed form, and what the reference changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.next_token import next_token_log_probs
from jaxcore.losses.preference import direct_preference_loss, log_ratio_preference_loss

RNG = np.random.default_rng(5)
CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = RNG.normal(-20, 6, (4, 9))
ARRAYS = [jnp.asarray(x, jnp.float32) for x in (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_its_equation(smoothing):
    gap = 0.3 * ((CHOSEN - REFERENCE_CHOSEN) - (REJECTED - REFERENCE_REJECTED))
    expected = -np.mean((1 - smoothing) * log_sigmoid(gap) + smoothing * log_sigmoid(-gap))
    loss = direct_preference_loss(*ARRAYS, beta=0.3, label_smoothing=smoothing)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_log_ratio_form_is_dpo_with_an_even_reference(smoothing):
    gap = 0.5 * (CHOSEN - REJECTED)
    expected = -np.mean((1 - smoothing) * log_sigmoid(gap) + smoothing * log_sigmoid(-gap))
    options = {"beta": 0.5, "label_smoothing": smoothing}
    loss = log_ratio_preference_loss(*ARRAYS[:2], **options)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(
        float(direct_preference_loss(*ARRAYS[:2], *[jnp.full(9, -7.0)] * 2, **options)), rel=1e-5
    )
    assert abs(loss - direct_preference_loss(*ARRAYS, **options)) > 1e-2


def test_the_gradient_is_the_weight_of_a_wrong_order():
    gradient = jax.grad(lambda chosen: direct_preference_loss(chosen, *ARRAYS[1:], beta=0.3))(ARRAYS[0])
    gap = 0.3 * ((CHOSEN - REFERENCE_CHOSEN) - (REJECTED - REFERENCE_REJECTED))
    np.testing.assert_allclose(gradient, -0.3 / (1 + np.exp(gap)) / 9, rtol=1e-4)


def test_without_preference_it_is_log_two_and_far_apart_it_stays_finite():
    assert direct_preference_loss(*[ARRAYS[0]] * 4) == pytest.approx(np.log(2), rel=1e-6)
    far = log_ratio_preference_loss(jnp.array([-1e4]), jnp.array([0.0]))
    assert far == pytest.approx(1e4)


def test_response_sums_leave_the_prompt_out():
    """Two responses to one prompt whose logits differ only at the prompt have the same sums."""
    logits = jnp.asarray(RNG.standard_normal((2, 6, 5)), jnp.float32)
    ids = jnp.asarray(RNG.integers(0, 5, (2, 6)))
    response = jnp.arange(6)[None] >= jnp.array([[3], [4]])
    sums = next_token_log_probs(logits, ids, target_mask=response).sums()
    shifted = logits.at[:, :2].add(jnp.arange(5.0))
    np.testing.assert_allclose(next_token_log_probs(shifted, ids, target_mask=response).sums(), sums, rtol=1e-6)
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = [sum(log_probs[b, t - 1, ids[b, t]] for t in range(first, 6)) for b, first in ((0, 3), (1, 4))]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"rejected": jnp.zeros(3)}, "rejected must have the shape"),
        ({"reference_rejected": jnp.zeros(3)}, "reference_rejected must have the shape"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    given = {**{name: jnp.zeros(2) for name in names}, **change}
    with pytest.raises(ValueError, match=message):
        direct_preference_loss(**given)
