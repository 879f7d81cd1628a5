"""Sentence similarity: correlations against scipy, the published aggregation, the protocol, intervals, bad input."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxcore.evaluation.sentence_similarity import (
    evaluate_sts,
    partial_spearman,
    pearson,
    similarity_gain_intervals,
    similarity_intervals,
    spearman,
    sts_score,
)


class Pairs(NamedTuple):
    first: tuple
    second: tuple
    gold: np.ndarray
    subset: tuple = ()


# ---- correlations ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=40))
def test_agrees_with_scipy_on_values_full_of_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert spearman(x, y) == pearson(x, y) == 0.0
        return
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_spearman_sees_order_only():
    x = np.random.default_rng(0).normal(size=50)
    assert spearman(x, np.exp(3 * x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert pearson(x, np.exp(3 * x)) < 0.9


def test_correlations_survive_extreme_scales():
    x = np.random.default_rng(0).normal(size=20)
    y = x + np.random.default_rng(1).normal(size=20)
    assert pearson(1e200 * x, 1e-200 * y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_partial_spearman_is_the_closed_form_for_one_covariate():
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    x, y = np.exp(z + rng.normal(size=300)), (z + rng.normal(size=300)) ** 3
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, z) == pytest.approx(expected, abs=1e-12)
    assert xy > 0.3 and abs(expected) < 0.15  # the covariate explains nearly all of the correlation


def test_partial_spearman_given_two_covariates_is_read_from_the_inverse_correlation_matrix():
    values = np.random.default_rng(3).normal(size=(200, 4)) @ np.random.default_rng(4).normal(size=(4, 4))
    precision = np.linalg.inv(np.corrcoef(stats.rankdata(values, axis=0), rowvar=False))
    expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert partial_spearman(values[:, 0], values[:, 1], values[:, 2:]) == pytest.approx(expected, abs=1e-10)


def test_partial_spearman_of_a_side_that_the_covariate_determines_is_zero():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=100), rng.normal(size=100)
    assert partial_spearman(np.exp(z), y, z) == 0.0


# ---- the score of a task -------------------------------------------------------------------------------------


def test_all_concatenates_and_the_means_do_not():
    rng = np.random.default_rng(0)
    gold, subset = rng.uniform(0, 5, 90), np.repeat(["a", "b", "c"], [20, 30, 40])
    predicted = gold + rng.normal(size=90) + 8 * (subset == "b")  # an offset of one subset
    per_subset = [stats.spearmanr(predicted[subset == s], gold[subset == s]).statistic for s in "abc"]
    assert sts_score(predicted, gold, subset=subset) == pytest.approx(stats.spearmanr(predicted, gold).statistic)
    assert sts_score(predicted, gold, subset=subset, aggregation="mean") == pytest.approx(np.mean(per_subset))
    weighted = np.average(per_subset, weights=[20, 30, 40])
    assert sts_score(predicted, gold, subset=subset, aggregation="weighted mean") == pytest.approx(weighted)
    assert sts_score(predicted, gold) < 0.8 * np.mean(per_subset)


def test_a_collapsed_encoder_scores_zero():
    assert sts_score(np.ones(10), np.arange(10)) == 0.0


# ---- the protocol ----------------------------------------------------------------------------------------------


def two_tasks(seed=0, n=80):
    rng = np.random.default_rng(seed)
    sentences = [f"sentence {i}" for i in range(40)]
    tasks = {}
    pairs = list(itertools.combinations(sentences, 2))  # none twice, none of a sentence with itself: no ties to break
    for name in ("one", "two"):
        first, second = zip(*(pairs[i] for i in rng.choice(len(pairs), n, replace=False)), strict=True)
        tasks[name] = Pairs(first, second, rng.uniform(0, 5, n), tuple(np.where(np.arange(n) < 30, "s", "t")))
    table = dict(zip(sentences, rng.normal(size=(40, 6)), strict=True))
    return tasks, table


def test_every_distinct_sentence_is_embedded_once_and_cosines_meet_the_gold():
    tasks, table = two_tasks()
    calls = []

    def embed(sentences):
        calls.append(sentences)
        return jnp.asarray([table[s] for s in sentences])

    result = evaluate_sts(embed, tasks)
    used = {s for task in tasks.values() for s in task.first + task.second}
    assert len(calls) == 1 and len(calls[0]) == len(used) == result.num_sentences and set(calls[0]) == used
    for name, task in tasks.items():
        cosines = [
            table[a] @ table[b] / np.linalg.norm(table[a]) / np.linalg.norm(table[b])
            for a, b in zip(task.first, task.second, strict=True)
        ]
        np.testing.assert_allclose(result.pairs[name].similarities, cosines, atol=1e-6)
        assert result.scores[name] == pytest.approx(stats.spearmanr(cosines, task.gold).statistic, abs=1e-6)
    assert result.average == pytest.approx(np.mean([*result.scores.values()]))


def test_row_numbers_serve_like_strings():
    tasks, table = two_tasks()
    names, vectors = list(table), np.array(list(table.values()))
    numbered = {
        name: task._replace(
            first=np.array([names.index(s) for s in task.first]), second=[names.index(s) for s in task.second]
        )
        for name, task in tasks.items()
    }
    by_number = evaluate_sts(lambda rows: vectors[rows], numbered, aggregation="mean")
    by_string = evaluate_sts(lambda sentences: [table[s] for s in sentences], tasks, aggregation="mean")
    assert by_number.scores == by_string.scores


def test_scores_do_not_depend_on_the_scale_of_embeddings_nor_on_the_order_within_a_pair():
    tasks, table = two_tasks()
    scale = dict(zip(table, np.random.default_rng(5).uniform(0.1, 9, len(table)), strict=True))
    plain = evaluate_sts(lambda sentences: [table[s] for s in sentences], tasks)
    swapped = {name: task._replace(first=task.second, second=task.first) for name, task in tasks.items()}
    scaled = evaluate_sts(lambda sentences: [scale[s] * table[s] for s in sentences], swapped)
    assert scaled.average == pytest.approx(plain.average, abs=1e-12)


def test_a_zero_embedding_has_cosine_zero():
    pairs = Pairs((0, 1, 1), (1, 2, 1), np.array([0.0, 2.0, 5.0]))
    result = evaluate_sts(lambda rows: np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])[rows], {"t": pairs})
    np.testing.assert_allclose(result.pairs["t"].similarities, [0.0, np.sqrt(0.5), 1.0])
    assert result.scores["t"] == pytest.approx(1.0)


# ---- intervals -----------------------------------------------------------------------------------------------------


def correlated_task(n, correlation, seed):
    """A task whose pairs (2i, 2i + 1) have cosines correlated with gold; embeddings on the circle."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=n)
    cosines = np.tanh(correlation * gold + np.sqrt(1 - correlation**2) * rng.normal(size=n))
    angle = np.arccos(cosines)
    vectors = np.stack([np.ones(n), np.zeros(n), np.cos(angle), np.sin(angle)], axis=1).reshape(2 * n, 2)
    return Pairs(np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2), gold), vectors


def test_interval_has_the_width_of_the_large_sample_law():
    pairs, vectors = correlated_task(800, 0.6, seed=0)
    result = evaluate_sts(lambda rows: vectors[rows], {"t": pairs})
    interval = similarity_intervals(result, resamples=600)["t"]
    # Bonett and Wright (2000): atanh(rho) has variance (1 + rho^2 / 2) / (n - 3).
    rho = result.scores["t"]
    half = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / 797)
    assert interval.estimate == rho
    np.testing.assert_allclose(
        [interval.low, interval.high], np.tanh([np.arctanh(rho) - half, np.arctanh(rho) + half]), atol=0.012
    )


def test_gain_is_paired_so_that_equal_models_have_an_interval_of_width_zero():
    pairs, vectors = correlated_task(300, 0.7, seed=1)
    noisy = vectors + 0.3 * np.random.default_rng(2).normal(size=vectors.shape)
    better, worse = (evaluate_sts(lambda rows, v=v: v[rows], {"t": pairs}) for v in (vectors, noisy))
    same = similarity_gain_intervals(better, better, resamples=100)["t"]
    gain = similarity_gain_intervals(better, worse, resamples=300)["t"]
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    assert gain.estimate == pytest.approx(better.average - worse.average) and gain.low > 0
    apart = [similarity_intervals(e, resamples=300)["t"] for e in (better, worse)]
    assert gain.high - gain.low < np.hypot(*(i.high - i.low for i in apart))


def test_intervals_follow_the_aggregation():
    tasks, table = two_tasks()
    result = evaluate_sts(lambda sentences: [table[s] for s in sentences], tasks, aggregation="weighted mean")
    intervals = similarity_intervals(result, resamples=100)
    assert {name: interval.estimate for name, interval in intervals.items()} == pytest.approx(result.scores)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spearman([1, 2, 3], [1, 2]), "lengths differ: x 3, y 2"),
        (lambda: spearman([1, np.nan], [1, 2]), "x has 1 NaN"),
        (lambda: pearson([1], [1]), "at least two pairs, got 1"),
        (lambda: partial_spearman([1, 2, 3], [1, 3, 2], [3, 2, 1]), "3 pairs leave no residual beside 1"),
        (lambda: partial_spearman([1, 2, 3], [1, 3, 2], [3, 2]), "lengths differ"),
        (lambda: sts_score([1, 2], [3, 3]), "all 2 gold scores"),
        (lambda: sts_score([1, 2, 3], [1, 2, 3], aggregation="median"), "aggregation must be"),
        (lambda: sts_score([1, 2, 3], [1, 2, 3], aggregation="mean"), "pass subset="),
        (
            lambda: sts_score([1, 2, 3], [1, 2, 3], subset=["a", "a", "b"], aggregation="mean"),
            "all 1 gold scores of a task or subset",
        ),
        (lambda: evaluate_sts(lambda s: np.ones((len(s), 2)), {}), "no tasks"),
        (lambda: evaluate_sts(lambda s: np.ones((len(s), 2)), {"t": Pairs((), (), np.zeros(0))}), "has 0 pairs"),
        (
            lambda: evaluate_sts(lambda s: np.ones((len(s), 2)), {"t": Pairs((1, 2), (3,), np.zeros(2))}),
            "t.second 1",
        ),
        (
            lambda: evaluate_sts(lambda s: np.ones((7, 2)), {"t": Pairs((1, 2), (3, 4), np.arange(2.0))}),
            r"embed must return \[4, dim\]",
        ),
        (
            lambda: evaluate_sts(lambda s: np.ones((4, 2)), {"t": Pairs(("a", 2), (3, 4), np.arange(2.0))}),
            "some pairs hold strings",
        ),
        (
            lambda: evaluate_sts(
                lambda s: [[np.nan if x == "bad" else 1.0] for x in s],
                {"t": Pairs(("good", "bad"), ("fine", "ok"), np.arange(2.0))},
            ),
            "1 of 4 embeddings are NaN or infinite, first that of 'bad'",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gains_between_different_tasks_are_refused():
    pairs, vectors = correlated_task(20, 0.5, seed=0)
    one = evaluate_sts(lambda rows: vectors[rows], {"t": pairs})
    with pytest.raises(ValueError, match="tasks differ"):
        similarity_gain_intervals(one, evaluate_sts(lambda rows: vectors[rows], {"u": pairs}))
    with pytest.raises(ValueError, match="other pairs or another aggregation"):
        other = pairs._replace(gold=pairs.gold + 1)
        similarity_gain_intervals(one, evaluate_sts(lambda rows: vectors[rows], {"t": other}))
