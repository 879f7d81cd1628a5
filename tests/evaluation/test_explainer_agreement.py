"""Means over groups of pairs, what is undefined, and the shuffled control."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxcore.attribution.agreement import agreement_matrix
from jaxcore.evaluation import mean_over_pairs, pair_metrics, shuffled_tau

NAMES = ("a", "b", "c")


def scores_of(seed=0, *, noise=0.5, shape=(30, 8)):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=shape)
    scores = {name: (signal + noise * rng.normal(size=shape)).astype(np.float32) for name in NAMES}
    return scores, np.arange(shape[1]) < rng.integers(4, shape[1] + 1, size=shape[0])[:, None]


def taus(scores, mask, a, b):
    return [scipy.stats.kendalltau(x[m], y[m])[0] for x, y, m in zip(scores[a], scores[b], mask, strict=True)]


def test_the_mean_over_pairs_is_taken_in_each_instance():
    scores, mask = scores_of()
    matrix = agreement_matrix(scores, mask)
    pairs = list(itertools.combinations(NAMES, 2))
    expected = np.mean([taus(scores, mask, *pair) for pair in pairs], axis=0)
    np.testing.assert_allclose(mean_over_pairs(matrix, pairs), expected, atol=1e-6)
    metrics = pair_metrics(matrix)
    assert metrics["tau/a/c"] == pytest.approx(np.mean(taus(scores, mask, "a", "c")), abs=1e-6)
    assert metrics["std/a/c"] == pytest.approx(np.std(taus(scores, mask, "a", "c")), abs=1e-6)
    assert set(metrics) == {f"{kind}/{a}/{b}" for kind in ("tau", "std", "undefined") for a, b in pairs}


def test_undefined_pairs_are_counted_and_left_out():
    scores, mask = scores_of()
    scores["b"][:5] = 1.0
    matrix = agreement_matrix(scores, mask)
    assert pair_metrics(matrix)["undefined/a/b"] == 5
    assert len(mean_over_pairs(matrix, [("a", "b")])) == 25
    both = mean_over_pairs(matrix, [("a", "b"), ("a", "c")])
    np.testing.assert_allclose(both[:5], taus(scores, mask, "a", "c")[:5], atol=1e-6)
    scores["b"][:] = 1.0
    matrix = agreement_matrix(scores, mask)
    assert "tau/a/b" not in pair_metrics(matrix) and not len(mean_over_pairs(matrix, [("a", "b")]))
    for pairs in ([], [("a", "d")]):
        with pytest.raises(ValueError, match="pairs must be of a, b, c"):
            mean_over_pairs(matrix, pairs)


def test_shuffled_scores_agree_with_nothing_however_alike_they_were():
    scores, mask = scores_of(noise=0.05, shape=(300, 12))
    assert mean_over_pairs(agreement_matrix(scores, mask), [("a", "b")]).mean() > 0.8
    assert abs(shuffled_tau(scores, mask, np.random.default_rng(0))) < 0.03
