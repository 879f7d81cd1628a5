"""Paired tests against the textbook formula, enumeration by hand, scipy, and their null distributions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxcore.evaluation import paired_permutation_test, paired_t_test

A = np.array([0.71, 0.64, 0.80, 0.69, 0.75, 0.72])
B = np.array([0.66, 0.65, 0.71, 0.60, 0.71, 0.70])


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_t_test_is_the_textbook_formula(alternative, margin):
    d, n = A - B, len(A)
    sd = math.sqrt(((d - d.mean()) ** 2).sum() / (n - 1))
    t = (d.mean() - margin) / (sd / math.sqrt(n))
    tail = {
        "greater": stats.t.sf(t, n - 1),
        "less": stats.t.cdf(t, n - 1),
        "two-sided": 2 * stats.t.sf(abs(t), n - 1),
    }
    result = paired_t_test(A, B, alternative=alternative, margin=margin, level=0.9)
    assert result.statistic == pytest.approx(t)
    assert result.p_value == pytest.approx(tail[alternative])
    assert result.effect == pytest.approx(d.mean())
    assert result.standardised_effect == pytest.approx((d.mean() - margin) / sd)
    half = stats.t.ppf(0.95, n - 1) * sd / math.sqrt(n)
    assert result.confidence_interval == pytest.approx((d.mean() - half, d.mean() + half))
    assert (result.num_pairs, result.method, result.level, result.margin) == (6, "t", 0.9, margin)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_t_test_agrees_with_scipy(alternative):
    ours, theirs = (
        paired_t_test(A, B, alternative=alternative),
        stats.ttest_rel(A, B, alternative=alternative),
    )
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert ours.confidence_interval == pytest.approx(tuple(stats.ttest_rel(A, B).confidence_interval(0.95)))


@pytest.mark.parametrize("margin", [0.0, 0.03])
def test_permutation_test_is_exact_for_few_pairs(margin):
    d = A - B - margin
    means = np.array([np.mean(d * signs) for signs in itertools.product([1, -1], repeat=len(d))])
    upper, lower = np.mean(means >= d.mean() - 1e-12), np.mean(means <= d.mean() + 1e-12)
    expected = {"greater": upper, "less": lower, "two-sided": min(1, 2 * min(upper, lower))}
    for alternative, p in expected.items():
        result = paired_permutation_test(A, B, alternative=alternative, margin=margin)
        assert result.p_value == pytest.approx(p), alternative
        assert result.method == "exact permutation" and result.statistic == pytest.approx((A - B).mean())
    assert paired_permutation_test(A, B).confidence_interval == paired_t_test(A, B).confidence_interval


def test_five_unanimous_pairs_reach_exactly_one_in_thirty_two():
    assert paired_permutation_test([2, 3, 4, 5, 6], [1, 1, 1, 1, 1], alternative="greater").p_value == 1 / 32


def test_many_pairs_are_sampled_reproducibly_and_close_to_the_t_test():
    rng = np.random.default_rng(0)
    b = rng.normal(size=60)
    a = b + rng.normal(0.2, 1.0, size=60)
    first = paired_permutation_test(a, b, alternative="greater", rng=1)
    assert first.method == "random permutation"
    assert first == paired_permutation_test(a, b, alternative="greater", rng=1)
    assert first.p_value == pytest.approx(paired_t_test(a, b, alternative="greater").p_value, abs=0.02)
    # Never zero: the observed signs are one of the patterns.
    extreme = paired_permutation_test(np.arange(50) + 1.0, np.zeros(50), alternative="greater", resamples=199)
    assert extreme.p_value == pytest.approx(1 / 200)


@pytest.mark.parametrize("test", [paired_t_test, paired_permutation_test])
def test_false_positives_under_the_null_stay_at_the_level(test):
    rng = np.random.default_rng(2)
    p = np.array([test(*rng.normal(size=(2, 10)), alternative="greater").p_value for _ in range(300)])
    assert 0.05 <= np.mean(p <= 0.1) <= 0.155  # 0.1 +- 3 binomial sd


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8),
    shift=st.integers(-5, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_symmetries(rows, shift, seed):
    a, b = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    order = np.random.default_rng(seed).permutation(len(a))
    for test in (paired_t_test, paired_permutation_test):
        greater, less = test(a, b, alternative="greater"), test(b, a, alternative="less")
        assert greater.p_value == pytest.approx(less.p_value)
        assert greater.effect == pytest.approx(-less.effect)
        assert test(a[order], b[order], alternative="greater").p_value == pytest.approx(greater.p_value)
        assert test(a + shift, b, alternative="greater", margin=shift).p_value == pytest.approx(greater.p_value)
        assert 0 <= test(a, b).p_value <= 1


@pytest.mark.parametrize(
    ("alternative", "a", "statistic", "p_value"),
    [
        ("greater", 0.4, math.inf, 0.0),
        ("less", 0.4, math.inf, 1.0),
        ("two-sided", 0.4, math.inf, 0.0),
        ("less", 0.2, -math.inf, 0.0),
        ("greater", 0.2, -math.inf, 1.0),
        ("greater", 0.3, 0.0, 1.0),
        ("two-sided", 0.3, 0.0, 1.0),
    ],
)
def test_differences_without_spread_give_the_limit(alternative, a, statistic, p_value):
    result = paired_t_test([a, a + 1, a + 2], [0.3, 1.3, 2.3], alternative=alternative)
    assert (result.statistic, result.p_value) == (statistic, p_value)
    assert result.confidence_interval == pytest.approx((a - 0.3, a - 0.3))
    assert paired_permutation_test([a, a + 1], [0.3, 1.3]).p_value <= 1


@pytest.mark.parametrize("test", [paired_t_test, paired_permutation_test])
@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1.0], [2.0], {}, "at least two pairs, got 1"),
        ([1.0, 2.0], [2.0], {}, "lengths differ: a 2, b 1"),
        ([1.0, np.nan], [2.0, 1.0], {}, "a has 1 NaN"),
        ([1.0, 2.0], [2.0, 1.0], {"alternative": "bigger"}, "alternative must be .* got 'bigger'"),
        ([1.0, 2.0], [2.0, 1.0], {"level": 95}, "level must lie strictly between 0 and 1, got 95"),
    ],
)
def test_bad_input_is_refused(test, a, b, options, message):
    with pytest.raises(ValueError, match=message):
        test(a, b, **options)
