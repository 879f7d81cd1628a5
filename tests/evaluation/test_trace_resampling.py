"""Scores of a trace from rollouts written by hand: every position, filter and answer where it belongs."""

import numpy as np
import pytest
from scipy import stats

from jaxcore.data.hashed_word_counts import hashed_word_counts
from jaxcore.data.reasoning_trace import ReasoningTrace
from jaxcore.evaluation.step_similarity import best_step_similarities, first_step_similarities
from jaxcore.evaluation.trace_resampling import score_resampling
from jaxcore.generation.rollouts import Rollout

PHRASES = (
    "<think>", " We add both numbers.", " We multiply them instead.", " The sum makes five here.",
    " The product makes six.", "</think> \\boxed{5}", "</think> \\boxed{6}", "</think> So \\boxed{", "5}", "6}", "",
)  # fmt: skip


def decode(tokens):
    return "".join(PHRASES[token] for token in tokens)


TRACE = ReasoningTrace(
    "t", "2 and 3", (0, 1, 3, 5), ("We add both numbers.", "The sum makes five here."), np.array([[1, 2], [2, 3]]),
    ("plan_generation", "active_computation"), "5.0", "5",
)  # fmt: skip


def rollouts(*texts):
    return [Rollout(list(text), True) for text in texts]


@pytest.fixture(scope="module")
def scores():
    drawn = [
        rollouts((1, 3, 5), (1, 3, 5), (2, 4, 6), (2, 4, 6)),  # half plan otherwise, and then answer 6
        rollouts((3, 5), (3, 5), (3, 5), (4, 6)),
        rollouts((5,), (5,), (5,), (10,)),  # the last one gives no answer
    ]
    forced = [rollouts((8,), (9,), (8,), (9,)), rollouts((8,), (9,), (8,), (9,)), rollouts((8,), (8,), (8,), (8,))]
    return score_resampling(TRACE, drawn, forced, decode=decode, lead_in=(7,), embed=hashed_word_counts)


def test_importances_are_those_of_the_positions_by_hand(scores):
    """Answers: R_0 has 5, 5, 6, 6; R_1 has 5, 5, 5, 6; R_2 has 5, 5, 5. Counts in the order (5, 6), Laplace 1."""
    np.testing.assert_allclose(scores.resampling["laplace"][0], stats.entropy([3, 3], [4, 2]))
    # Of R_1, one rollout differs in meaning; R_2 and the similar ones never answered 6.
    kept = scores.counterfactual["laplace"]
    np.testing.assert_allclose(kept.importance[0], stats.entropy([0 + 1, 2 + 1], [3 + 2 + 1, 1 + 0 + 1]))
    np.testing.assert_allclose(kept.importance[1], stats.entropy([0 + 1, 1 + 1], [3 + 3 + 1, 0 + 1]))
    np.testing.assert_array_equal(kept.num_dissimilar, [2, 1])
    np.testing.assert_allclose(scores.forced["laplace"], [0, stats.entropy([3, 3], [5, 1])], atol=1e-12)
    assert scores.counterfactual["published"].importance[1] > 10


def test_the_truth_is_compared_as_a_number(scores):
    np.testing.assert_allclose(scores.accuracy, [0.5, 0.75, 1.0])


def test_matrix_and_resamples(scores):
    """A sentence like the second one follows in half of R_0 and three quarters of R_1."""
    assert scores.matrix[0, 1] == pytest.approx(0.25)
    assert scores.resamples == [[("We multiply them instead.", 2)], [("The product makes six.", 1)]]
    np.testing.assert_allclose(scores.overdeterminedness, [0.5, 0.5])


def test_positions_must_be_complete():
    with pytest.raises(ValueError, match="2 sentences have 3 positions: got 1 sets"):
        score_resampling(TRACE, [[]], [[]], decode=decode, lead_in=(7,), embed=hashed_word_counts)


def test_similarities_are_cosines_to_the_traces_own_sentences():
    own = ["a b", "c d"]
    found = first_step_similarities(hashed_word_counts, own, [["a b", "a c", ""], ["d c", "b", ""]])
    np.testing.assert_allclose(found, [[1, 0.5, 0], [1, 0, 0]], atol=1e-6)
    best = best_step_similarities(hashed_word_counts, own, [[["a x", "c d"], []]])
    np.testing.assert_allclose(best, [[[0.5, 1], [-1, -1]]], atol=1e-6)
    with pytest.raises(ValueError, match="do not fit"):
        first_step_similarities(hashed_word_counts, own, [["a"], ["b", "c"]])
