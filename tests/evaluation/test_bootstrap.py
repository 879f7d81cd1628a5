"""Bootstrap intervals against scipy, exact distributions, coverage, and the t interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from jaxcore.evaluation import bootstrap_interval


def test_mean_of_many_values_has_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=4000)
    interval = bootstrap_interval(values, resamples=4000, level=0.9)
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (interval.level, interval.method, interval.num_units, interval.resamples) == (
        0.9,
        "percentile",
        4000,
        4000,
    )


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_agrees_with_scipy(method):
    values = np.random.default_rng(1).exponential(size=60)
    ours = bootstrap_interval(values, method=method, resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method=method.replace("bca", "BCa"))
    width = ours.high - ours.low
    assert ours.method == method
    np.testing.assert_allclose((ours.low, ours.high), theirs.confidence_interval, atol=0.03 * width)


def test_bca_shifts_the_interval_of_a_skewed_statistic_the_way_scipy_does():
    rows = np.random.default_rng(2).lognormal(sigma=1.0, size=40)
    plain = bootstrap_interval(rows, statistic=np.var, resamples=4000)
    corrected = bootstrap_interval(rows, statistic=np.var, method="bca", resamples=4000)
    reference = stats.bootstrap((rows,), np.var, n_resamples=4000, method="BCa").confidence_interval
    assert corrected.low > plain.low and corrected.high > 1.1 * plain.high
    np.testing.assert_allclose((corrected.low, corrected.high), reference, rtol=0.1)


def test_groups_of_one_row_are_rows():
    values = np.random.default_rng(3).normal(size=30)
    grouped = bootstrap_interval(values, groups=np.arange(30) * 3, rng=5)
    assert grouped == bootstrap_interval(values, rng=5)


def test_group_resampling_is_exact_for_three_groups():
    """With groups of means 0, 1, 2 and equal sizes the resampled mean has a known law over 27 triples."""
    values, groups = np.repeat([0.0, 1.0, 2.0], 4), np.repeat(["a", "b", "c"], 4)
    interval = bootstrap_interval(values, groups=groups, level=0.9, resamples=20000)
    # P(mean = 0) = 1/27 = .037 < .05 and P(mean <= 1/3) = 4/27 > .05, so that the quantiles are 1/3 and 5/3.
    assert (interval.low, interval.high, interval.num_units) == (
        pytest.approx(1 / 3),
        pytest.approx(5 / 3),
        3,
    )
    # At 99 % both ends are the extreme triples.
    assert bootstrap_interval(values, groups=groups, level=0.99).low == 0


def test_dependent_rows_need_groups_for_coverage():
    """20 authors x 10 identical texts: resampling rows pretends n = 200, too narrow by sqrt(10)."""
    authors = np.random.default_rng(4).normal(size=20)
    values, groups = np.repeat(authors, 10), np.repeat(np.arange(20), 10)
    by_row, by_author = bootstrap_interval(values), bootstrap_interval(values, groups=groups)
    ratio = (by_author.high - by_author.low) / (by_row.high - by_row.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_coverage_is_near_nominal(method):
    rng = np.random.default_rng(6)
    hits = 0
    for trial in range(300):
        interval = bootstrap_interval(rng.normal(1.0, 1.0, size=40), level=0.9, resamples=400, method=method, rng=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.83 <= hits / 300 <= 0.95  # 0.9 +- 3 binomial sd, less the known small-sample shortfall


def test_statistic_sees_whole_rows_and_whole_groups():
    rng = np.random.default_rng(7)
    labels = np.tile([0.0, 1.0], 30)
    rows = np.stack([labels, labels + rng.normal(size=60)], axis=1)
    groups = np.repeat(np.arange(30), 2)  # every group holds both classes, so that AUC is always defined

    def auc(sample):
        assert sample.shape[1:] == (2,) and sample[:, 0].mean() == 0.5
        return roc_auc_score(sample[:, 0], sample[:, 1])

    interval = bootstrap_interval(rows, statistic=auc, groups=groups, resamples=200)
    assert interval.estimate == pytest.approx(roc_auc_score(labels, rows[:, 1]))
    assert interval.low < interval.estimate < interval.high and interval.num_units == 30


def test_statistic_and_fast_mean_agree_with_unequal_groups():
    rng = np.random.default_rng(8)
    values, groups = rng.normal(size=50), rng.integers(0, 8, size=50)
    fast = bootstrap_interval(values, groups=groups, rng=1, method="bca")
    slow = bootstrap_interval(values, groups=groups, statistic=np.mean, rng=1, method="bca")
    assert fast.estimate == pytest.approx(slow.estimate) == pytest.approx(values.mean())
    np.testing.assert_allclose((fast.low, fast.high), (slow.low, slow.high), rtol=0, atol=1e-12)


def test_constant_values_give_a_point_and_bca_falls_back_openly():
    interval = bootstrap_interval(np.full(10, 0.25), method="bca")
    assert (interval.low, interval.estimate, interval.high, interval.method) == (
        0.25,
        0.25,
        0.25,
        "percentile",
    )


def test_same_seed_same_interval_and_generators_advance():
    values = np.random.default_rng(9).normal(size=25)
    assert bootstrap_interval(values, rng=3) == bootstrap_interval(values, rng=3)
    generator = np.random.default_rng(3)
    assert bootstrap_interval(values, rng=generator) != bootstrap_interval(values, rng=generator)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=20),
    shift=st.floats(-10, 10),
    scale=st.floats(0.1, 10),
)
def test_interval_is_ordered_and_follows_affine_maps(values, shift, scale):
    values = np.array(values)
    here = bootstrap_interval(values, resamples=200)
    there = bootstrap_interval(shift + scale * values, resamples=200)
    assert values.min() - 1e-9 <= here.low <= here.high <= values.max() + 1e-9
    np.testing.assert_allclose((there.low, there.high), shift + scale * np.array([here.low, here.high]), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least two rows, got one"),
        ([1.0, 2.0], {"groups": ["a", "a"]}, "at least two groups, got one"),
        ([1.0, 2.0], {"groups": [1, 2, 3]}, "lengths differ: values 2, groups 3"),
        ([1.0, np.nan], {}, "values has 1 NaN"),
        ([[1.0, 2.0], [3.0, 4.0]], {}, "default mean needs a vector"),
        ([1.0, 2.0], {"level": 1.0}, "level must lie strictly between 0 and 1"),
        ([1.0, 2.0], {"resamples": 10}, "resamples must be an integer >= 100"),
        ([1.0, 2.0], {"method": "basic"}, "'percentile' or 'bca', got 'basic'"),
        ([1.0, 2.0], {"statistic": lambda rows: np.nan}, "the statistic is nan on the data"),
        (
            [1.0, 2.0],
            {"statistic": lambda r: 1.0 if np.ptp(r) else np.nan},
            r"not finite on \d+ of 2000 resamples",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(values, options, message):
    with pytest.raises(ValueError, match=message) as error:
        bootstrap_interval(values, **options)
    assert "\n" not in str(error.value)
