"""Importance by resampling: divergences by scipy and by hand, the filter, the right pair of rollout sets."""

import numpy as np
import pytest
from scipy import stats

from jaxcore.attribution.resampling_importance import (
    accuracies,
    accuracy_importance,
    answer_counts,
    answer_divergence,
    binary_divergence,
    counterfactual_importance,
    overdeterminedness,
    resampling_importance,
)


@pytest.mark.parametrize("alpha", [1e-9, 1.0])
def test_divergence_is_scipys_over_the_answers_that_either_side_has(alpha):
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 4, (2, 20, 7))
    found = answer_divergence(p, q, alpha=alpha)
    for row in range(20):
        either = (p[row] > 0) | (q[row] > 0)
        expected = stats.entropy(p[row][either] + alpha, q[row][either] + alpha)
        assert found[row] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (found > 0).sum() > 10


def test_published_smoothing_makes_one_unseen_answer_cost_what_the_paper_measured():
    """An answer in 3 of 100 rollouts that the reference never gave adds about 0.65 nats; Laplace's adds little."""
    others = 0.97 * np.log(0.97)
    assert answer_divergence(np.array([97, 3]), np.array([100, 0])) - others == pytest.approx(0.65, abs=0.01)
    assert answer_divergence(np.array([97, 3]), np.array([100, 0]), alpha=1.0) < 0.03


def test_an_empty_side_gives_zero_and_answers_of_neither_do_not_count():
    counts = np.array([3.0, 1.0, 0.0])
    assert answer_divergence(counts, np.zeros(3)) == answer_divergence(np.zeros(3), counts) == 0
    wide = answer_divergence(np.pad(counts, (0, 50)), np.pad(counts[::-1], (0, 50)), alpha=1.0)
    assert wide == answer_divergence(counts, counts[::-1], alpha=1.0)


def test_binary_divergence_is_that_of_two_bernoullis():
    p, q = np.array([30, 70]), np.array([60, 40])
    assert binary_divergence(p, q) == pytest.approx(stats.entropy([0.3, 0.7], [0.6, 0.4]), rel=1e-6)
    assert binary_divergence(p, q, alpha=1.0) == pytest.approx(stats.entropy([31, 71], [61, 41]), rel=1e-12)
    assert binary_divergence(np.zeros(2), q) == 0


def test_resampling_compares_each_position_with_the_next_one():
    answers = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    found = resampling_importance(answers, 2, alpha=1.0)
    np.testing.assert_allclose(found, [stats.entropy([3, 3], [4, 2]), stats.entropy([4, 2], [5, 1])])


def rollouts():
    """Position 0: 6 rollouts say the same (answer 0), 4 differ (answers 1, 1, 2, none). Position 1 keeps the step."""
    answers = np.array([[0] * 6 + [1, 1, 2, -1], [0] * 8 + [1, -1]])
    similarities = np.array([[0.9] * 5 + [0.8] + [0.79, 0.2, 0.0, 0.1], [1.0] * 10])
    return answers, similarities


@pytest.mark.parametrize(("reference", "kept"), [("next", [8, 1, 0]), ("next+similar", [14, 1, 0])])
def test_counterfactual_importance_by_hand(reference, kept):
    found = counterfactual_importance(*rollouts(), 3, reference=reference, alpha=1.0)
    expected = stats.entropy(np.array([0, 2, 1]) + 1, np.array(kept) + 1)
    assert found.importance[0] == pytest.approx(expected)
    assert found.num_dissimilar[0] == 3 and found.different_fraction[0] == pytest.approx(0.4)
    assert found.is_defined.all()


def test_without_dissimilar_rollouts_it_is_zero_and_said_to_be_undefined():
    answers, similarities = rollouts()
    found = counterfactual_importance(answers, np.ones_like(similarities), 3)
    assert found.importance[0] == 0 and not found.is_defined[0] and found.num_dissimilar[0] == 0
    silent = np.where(similarities < 0.8, -1, answers)
    assert not counterfactual_importance(silent, similarities, 3).is_defined[0]


def test_accuracies_and_their_changes_have_the_published_signs():
    answers, similarities = rollouts()
    np.testing.assert_allclose(accuracies(answers, 0), [6 / 9, 8 / 9])
    found = accuracy_importance(answers, similarities, 0)
    assert found.resampling[0] == pytest.approx(8 / 9 - 6 / 9)
    assert found.counterfactual[0] == pytest.approx(0 - 8 / 9)
    assert accuracy_importance(answers, np.ones((2, 10)), 0).counterfactual[0] == 0


def test_counts_and_overdeterminedness():
    answers = np.array([2, -1, 0, 2])
    np.testing.assert_array_equal(answer_counts(answers, 3), [1, 0, 2])
    np.testing.assert_array_equal(answer_counts(answers, 3, np.array([True, True, True, False])), [1, 0, 1])
    assert overdeterminedness(["a", "b", "a", "a"]) == 0.5 and overdeterminedness(["a", "b"]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_divergence(np.ones(2), np.ones(2), alpha=0), "alpha must be above 0"),
        (lambda: answer_divergence(np.ones(2), np.ones(3)), "same answers"),
        (lambda: answer_counts(np.array([0, 3]), 3), "from -1"),
        (lambda: resampling_importance(np.zeros((1, 4), int), 2), "at least two positions"),
        (lambda: counterfactual_importance(rollouts()[0], np.ones((1, 10)), 3), "similarities must be"),
        (lambda: counterfactual_importance(*rollouts(), 3, reference="last"), "reference must be"),
        (lambda: accuracies(np.full((2, 3), -1), 0), "no rollout of position 0"),
        (lambda: overdeterminedness([]), "at least one"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
