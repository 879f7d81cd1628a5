"""Kappa against the textbook and by hand; means in which every rater counts the same."""

import numpy as np
import pytest

from jaxcore.evaluation import fleiss_kappa, mean_over_raters


def test_kappa_is_that_of_the_textbook():
    """The published example: ten subjects, fourteen raters, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(np.array(counts)) == pytest.approx(0.210, abs=5e-4)


def test_kappa_by_hand_with_items_of_unequal_numbers_of_ratings():
    """P = (1 + 1/3) / 2, shares 3/5 and 2/5: P_e = 0.52. The item with one rating says nothing."""
    expected = (2 / 3 - 0.52) / (1 - 0.52)
    assert fleiss_kappa(np.array([[2, 0], [1, 2], [0, 1]])) == pytest.approx(expected)


def test_full_agreement_is_one_and_independent_ratings_are_near_zero():
    assert fleiss_kappa(np.array([[4, 0], [0, 4]])) == pytest.approx(1.0)
    ratings = np.random.default_rng(0).multinomial(6, [0.2, 0.3, 0.5], size=4000)
    assert abs(fleiss_kappa(ratings)) < 0.02


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[3, 0], [2, 0]], "one category"),
        ([[1, 0]], "two ratings"),
        ([3, 0], r"must be \[items, categories\]"),
        ([[3, -1]], "none below 0"),
    ],
)
def test_kappa_that_is_undefined_is_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        fleiss_kappa(np.array(counts))


def test_every_rater_counts_the_same():
    values = [[0, 1], [0, 1], [0, 4], [6, 8]]
    np.testing.assert_allclose(mean_over_raters(values, ["a", "a", "a", "b"]), [3, 5])
    np.testing.assert_allclose(mean_over_raters(values, range(4)), np.mean(values, axis=0))
    for bad in ([], values[:2]):
        with pytest.raises(ValueError, match="with a rater each"):
            mean_over_raters(bad, ["a"])
