"""Agreement at the top against definitions written out with Python sets, the specification's values, and scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxcore.attribution.top_k_agreement import (
    kendall_top_k,
    nonzero_count,
    rank_biased_overlap,
    top_fraction,
    top_k_jaccard,
    top_k_overlap,
)

TIME = 7


def texts(seed, instances=30, levels=None):
    rng = np.random.default_rng(seed)
    a, b = (
        (rng.integers(0, levels, (instances, TIME)) if levels else rng.normal(size=(instances, TIME))).astype("f4")
        for _ in range(2)
    )
    mask = rng.permuted(np.arange(TIME) < rng.integers(0, TIME + 1, (instances, 1)), axis=1)
    return np.where(mask, a, np.nan), np.where(mask, b, np.nan), mask


def rowwise(function, a, b, mask):
    rows = zip(a, b, mask, strict=True)
    return np.array([function(x[m].tolist(), y[m].tolist()) if m.any() else np.nan for x, y, m in rows])


def top_buckets(scores, k):
    kept = sorted(set(scores), reverse=True)[:k]
    return [i for i, s in enumerate(scores) if s in kept]


def top_k_tau_by_sets(a, b, k, p):
    pairs = {frozenset((i, j)) for i in top_buckets(a, k) for j in top_buckets(b, k) if i != j}
    penalty = 0
    for i, j in map(tuple, pairs):
        sign = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
        penalty += 1 if sign < 0 else p if (a[i] == a[j]) != (b[i] == b[j]) else 0
    return 1 - 2 * penalty / max(1, len(pairs))


def rbo_by_sets(a, b, p, depth):
    def down_to(scores, d):
        return {i for i, s in enumerate(scores) if sum(other > s for other in scores) < d}

    depth = min(depth, len(a))
    agreement = [
        2 * len(down_to(a, d) & down_to(b, d)) / (len(down_to(a, d)) + len(down_to(b, d))) for d in range(1, depth + 1)
    ]
    return agreement[-1] * p**depth + (1 - p) / p * sum(x * p**d for d, x in enumerate(agreement, 1))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 2, 4]), k=st.integers(1, TIME + 1))
def test_equal_their_definitions_with_masks_and_ties(seed, levels, k):
    a, b, mask = texts(seed, levels=levels)
    expected = rowwise(lambda x, y: top_k_tau_by_sets(x, y, k, 0.3), a, b, mask)
    np.testing.assert_allclose(kendall_top_k(a, b, mask, k=k, tie_penalty=0.3), expected, atol=2e-6)
    expected = rowwise(lambda x, y: rbo_by_sets(x, y, 0.8, k), a, b, mask)
    np.testing.assert_allclose(rank_biased_overlap(a, b, mask, persistence=0.8, depth=k), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5, 0.3, 0.1, 0.05], [0.1, 0.2, 0.6, 0.4], -1.0),
        ([1, 2, 3, 1, 1, 2, 2], [3, 2, 1, 2, 1, 2, 1], 1 - 2 * (8 + 4 * 0.5) / 13),
    ],
)
def test_top_k_tau_of_the_specification(a, b, expected):
    assert kendall_top_k(np.array([a], "f4"), np.array([b], "f4"), k=2)[0] == pytest.approx(expected, abs=1e-6)


def test_top_k_tau_of_equal_and_reversed_orders_is_one_and_minus_one():
    scores = np.arange(6, dtype=np.float32)[None]
    for k in range(1, 7):
        assert kendall_top_k(scores, scores, k=k)[0] == 1
        assert kendall_top_k(scores, -scores, k=k)[0] == -1


def test_top_k_tau_of_all_tokens_without_ties_is_kendalls():
    a, b = np.random.default_rng(0).normal(size=(2, 8, TIME)).astype(np.float32)
    expected = [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(kendall_top_k(a, b, k=np.full(8, TIME)), expected, atol=1e-6)


def test_overlap_without_ties_is_that_of_sets():
    a, b, mask = texts(1)

    def by_sets(x, y):
        k = min(3, len(x))
        first, second = (set(np.argsort(scores)[::-1][:k]) for scores in (x, y))
        return len(first & second) / k, len(first & second) / len(first | second)

    expected = np.array([by_sets(x[m], y[m]) if m.any() else (np.nan,) * 2 for x, y, m in zip(a, b, mask, strict=True)])
    np.testing.assert_allclose(top_k_overlap(a, b, mask, k=3), expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(top_k_jaccard(a, b, mask, k=3), expected[:, 1], atol=1e-6)


def test_a_constant_overlaps_as_a_random_choice_does():
    other = np.array([[4.0, 3, 2, 1, 0]], np.float32)
    random_choices = [len({0, 1} & set(choice)) / 2 for choice in itertools.combinations(range(5), 2)]
    assert top_k_overlap(np.ones_like(other), other, k=2)[0] == pytest.approx(np.mean(random_choices))
    tied = np.array([[3.0, 1, 1, 1]], np.float32)
    assert top_k_overlap(tied, tied, k=2)[0] == 1 and top_k_jaccard(tied, tied, k=2)[0] == 1


def test_rank_biased_overlap_by_hand():
    """Reversed lists of three: agreement 0, 1/2, 1."""
    scores = np.array([[3.0, 2, 1]], np.float32)
    p = 0.9
    expected = p**3 + (1 - p) / p * (p**2 / 2 + p**3)
    assert rank_biased_overlap(scores, -scores, persistence=p)[0] == pytest.approx(expected, abs=1e-6)
    assert rank_biased_overlap(scores, scores, persistence=p)[0] == pytest.approx(1, abs=1e-6)


def test_rank_biased_overlap_cares_more_for_the_top():
    scores = np.arange(8, 0, -1, dtype=np.float32)[None]
    top, bottom = scores.copy(), scores.copy()
    top[0, [0, 1]], bottom[0, [6, 7]] = top[0, [1, 0]], bottom[0, [7, 6]]
    assert rank_biased_overlap(scores, top)[0] < rank_biased_overlap(scores, bottom)[0] < 1


def test_usual_choices_of_k():
    mask = np.arange(10) < np.array([[10], [7], [1], [0]])
    assert top_fraction(mask, 0.7).tolist() == [7, 4, 1, 1]
    assert top_fraction(mask, 0.25).tolist() == [2, 1, 1, 1]
    a, b = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    a[1, :2] = 1
    assert nonzero_count(a, b).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: top_k_overlap(s, s, k=0), "k must be a whole number, at least 1"),
        (lambda s: top_k_overlap(s, s, k=0.5), "top_fraction"),
        (lambda s: kendall_top_k(s, s, k=1, tie_penalty=2.0), "tie_penalty"),
        (lambda s: rank_biased_overlap(s, s, persistence=1.0), "persistence"),
        (lambda s: rank_biased_overlap(s, s, depth=0), "depth must be"),
        (lambda s: top_fraction(s > 0, 0.0), "fraction"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 3), np.float32))
