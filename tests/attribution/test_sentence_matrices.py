"""Matrices between sentences: match rates by hand, agreement and AUC against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from jaxcore.attribution.sentence_matrices import (
    above_diagonal,
    area_under_roc,
    distances,
    edge_scores,
    matrix_agreement,
    normalised_by_target,
    resampling_matrix,
)


def test_resampling_matrix_is_a_difference_of_match_rates():
    best = np.zeros((3, 4, 3))
    best[0, :1, 2] = best[1, :3, 2] = best[2, :2, 2] = 0.8  # S_2: a quarter of R_0, three quarters of R_1, half of R_2
    best[1, :2, 1] = 0.79
    found = resampling_matrix(best)
    np.testing.assert_allclose(found[:2, 2], [0.5, -0.25])
    assert found[0, 1] == 0 and resampling_matrix(best, threshold=0.5)[0, 1] == 0.5
    assert np.isnan(found[np.tril_indices(3)]).all()
    with pytest.raises(ValueError, match="3 targets need 3 or 4 positions"):
        resampling_matrix(best[:2])


def test_targets_are_normalised_over_their_sources_alone():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(6, 6))
    found = normalised_by_target(raw)
    for target in range(1, 6):
        np.testing.assert_allclose(found[:target, target], raw[:target, target] - raw[:target, target].mean())


def test_agreement_is_spearman_over_pairs_in_a_band():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 8, 8))
    second[0, 3] = np.nan
    upper = np.triu(np.ones((8, 8), bool), 1) & np.isfinite(second)
    assert matrix_agreement(first, second) == pytest.approx(stats.spearmanr(first[upper], second[upper]).statistic)
    near = upper & (distances(first) <= 4)
    expected = stats.spearmanr(first[near], second[near]).statistic
    assert matrix_agreement(first, second, farthest=4) == pytest.approx(expected)
    assert np.isnan(matrix_agreement(first, np.ones((8, 8))))


def test_nearness_alone_is_no_agreement_once_distance_is_taken_out():
    rng = np.random.default_rng(2)
    apart = distances(np.zeros((30, 30)))
    first, second = (-apart + 0.1 * rng.normal(size=apart.shape) for _ in range(2))
    assert matrix_agreement(first, second) > 0.95
    assert abs(matrix_agreement(first, second, detrended=True)) < 0.2


def test_area_under_roc_is_scikit_learns():
    rng = np.random.default_rng(3)
    edges = rng.random((7, 7)) < 0.3
    matrix = np.round(rng.normal(size=(7, 7)) + edges, 1)
    where = np.arange(7)[None, :] % 2 == 0
    scores, truth = edge_scores(matrix, edges, where=np.broadcast_to(where, (7, 7)))
    upper = np.triu(np.ones((7, 7), bool), 1) & where
    assert area_under_roc(scores, truth) == pytest.approx(roc_auc_score(edges[upper], matrix[upper]))
    assert np.isnan(area_under_roc(np.ones(3), np.ones(3, bool)))


def test_a_transposed_matrix_is_not_mistaken_for_the_matrix():
    edges = np.triu(np.random.default_rng(4).random((12, 12)) < 0.3, 1)
    scores, truth = edge_scores(edges.astype(float), edges)
    assert area_under_roc(scores, truth) == 1
    scores, truth = edge_scores(edges.T.astype(float), edges)
    assert area_under_roc(scores, truth) == 0.5
    with pytest.raises(ValueError, match="square"):
        above_diagonal(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="one size"):
        matrix_agreement(np.zeros((2, 2)), np.zeros((3, 3)))
