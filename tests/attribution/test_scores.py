"""Scores against numpy, the errors that mend, and gradients of a layer's value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution import scores

LOGITS = np.array([[1.0, 3.0, -2.0], [0.5, 0.25, 4.0]], np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def predict(inputs):
    return inputs


def test_class_scores_by_hand():
    target = np.array([1, 0])
    np.testing.assert_array_equal(scores.predicted_classes(predict, LOGITS), [1, 2])
    np.testing.assert_allclose(scores.logit(predict, target)(LOGITS), [3.0, 0.5])
    np.testing.assert_allclose(scores.probability(predict, 1)(LOGITS), PROBABILITIES[:, 1], rtol=1e-6)
    np.testing.assert_allclose(scores.log_probability(predict, 1)(LOGITS), np.log(PROBABILITIES[:, 1]), rtol=1e-6)
    np.testing.assert_allclose(scores.contrast(predict, target, 2)(LOGITS), [5.0, -3.5])
    np.testing.assert_allclose(scores.margin(predict, target)(LOGITS), [2.0, -3.5])


def test_a_contrast_is_the_log_odds_of_the_two():
    difference = scores.log_probability(predict, 1)(LOGITS) - scores.log_probability(predict, 2)(LOGITS)
    np.testing.assert_allclose(scores.contrast(predict, 1, 2)(LOGITS), difference, rtol=1e-5)


def test_similarity_is_the_cosine_and_finite_at_zero():
    vectors = np.array([3.0, 4.0, 0.0], np.float32)
    score = scores.similarity(lambda x: x, vectors)
    expected = LOGITS @ vectors / np.linalg.norm(LOGITS, axis=1) / 5
    np.testing.assert_allclose(score(LOGITS), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(score(x)))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


def test_a_layer_value_is_an_activation_inside():
    f = lambda x: jnp.sum(jnp.tanh(checkpoint_name(2 * x, "doubled")))  # noqa: E731
    score = scores.layer_value(f, "doubled", lambda h: h[:, 1])
    np.testing.assert_allclose(score(LOGITS), 2 * LOGITS[:, 1])
    np.testing.assert_array_equal(jax.grad(lambda x: score(x).sum())(LOGITS), [[0, 2, 0]] * 2)


def test_targets_may_be_traced():
    found = jax.jit(lambda x: scores.logit(predict, scores.predicted_classes(predict, x))(x))(LOGITS)
    np.testing.assert_array_equal(found, [3.0, 4.0])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (scores.logit(predict, 3), "target 3 is out of range: the model has 3 classes, 0 to 2"),
        (scores.probability(predict, np.array([0, -1])), "target -1 is out of range"),
        (scores.contrast(predict, 0, 5), "versus 5 is out of range"),
        (scores.logit(predict, np.array([0, 1, 2])), r"one per example, an integer \[2\]: got int64\[3\]"),
        (scores.logit(predict, 0.5), "an integer"),
        (scores.logit(lambda x: x[:, 0], 0), r"class scores \[batch, classes\]: got \(2,\)"),
        (scores.similarity(predict, np.ones(4)), r"encode must give \[batch, 4\]"),
    ],
)
def test_bad_targets_are_named(score, message):
    with pytest.raises(ValueError, match=message):
        score(LOGITS)


def test_a_margin_needs_another_class():
    with pytest.raises(ValueError, match=r"expected scores of at least 2, got \(3, 1\)"):
        scores.margin(lambda x: x[:, :1], 0)(jnp.ones((3, 2)))
