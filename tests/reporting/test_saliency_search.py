"""Searches in saliency maps against brute force over windows, closed forms, and the faults of the released code."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.reporting.saliency_search import (
    Snippet,
    binary_filters,
    centred_spans,
    common_snippets,
    coverage,
    coverage_at_k,
    is_verbalisable,
    normalise,
    search_snippets,
    summarise_runs,
    threshold_mean_top,
    threshold_n_std,
    threshold_quantile,
    threshold_variance,
    top_tokens,
    window_search,
)

LENGTHS = np.concatenate([[12, 9, 6, 5, 4, 3, 2, 1], np.random.default_rng(1).integers(1, 13, 52)])
MASK = np.arange(12) < LENGTHS[:, None]
RNG = np.random.default_rng(4)
WAVES = np.sin(np.arange(12) + RNG.uniform(0, 7, (60, 1)))  # neighbours agree, so that snippets stand out
SCORES = np.round(WAVES + RNG.normal(0.1, 0.4, MASK.shape), 3) * MASK
RULES = {
    "mean_top": (threshold_mean_top, lambda s: np.sort(s)[::-1][: max(1, math.floor(0.4 * len(s)))].mean()),
    "mean_most": (
        partial(threshold_mean_top, fraction=0.9),
        lambda s: np.sort(s)[::-1][: max(1, math.floor(0.9 * len(s)))].mean(),
    ),
    "n_std": (partial(threshold_n_std, factor=0.5), lambda s: 0.5 * s.std()),
    "variance": (partial(threshold_variance, factor=0.5), lambda s: 0.5 * s.var()),
    "quantile": (partial(threshold_quantile, quantile=0.6), lambda s: np.quantile(s, 0.6)),
}


def brute_force(text, filters, rule, *, sign=1):
    """Snippets of one text of real tokens, from the definitions: {indices: value}."""
    evidence = sign * np.asarray(text, np.float64)
    evidence = evidence / evidence.max() if evidence.max() > 0 else evidence
    beta, n, length = rule(evidence), len(text), filters.shape[1]
    starts = range(n - length + 1) if n >= length else [-((length - n) // 2)]
    found = {}
    for f, start in itertools.product(filters, starts):
        indices = tuple(i + start for i in np.flatnonzero(f) if 0 <= i + start < n)
        if indices and evidence[list(indices)].min() >= 0 and evidence[list(indices)].mean() > beta:
            found[indices] = evidence[list(indices)].mean()
    return found


def test_filters_are_the_papers():
    filters = binary_filters()
    assert filters.shape == (20, 5) and len({tuple(f) for f in filters}) == 20
    assert sorted(filters.sum(1)) == [2] * 10 + [3] * 10
    np.testing.assert_array_equal(centred_spans(), np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool))
    np.testing.assert_array_equal(centred_spans(4), np.array([[0, 1, 1, 0], [1, 1, 1, 1]], bool))
    for bad in (lambda: binary_filters(3, (4,)), lambda: binary_filters(3, ()), lambda: centred_spans(1)):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_on_real_tokens_only(rule):
    threshold, expected = RULES[rule]
    padded = np.where(MASK, SCORES, 77.0)
    got = jax.jit(threshold)(padded, MASK)
    np.testing.assert_allclose(got, [expected(s[:n]) for s, n in zip(SCORES, LENGTHS, strict=True)], atol=1e-5)


def test_mean_top_counts_as_exact_arithmetic_does():
    lengths = np.arange(1, 60)
    falling = lengths[:, None] - np.arange(59.0)
    mask = np.arange(59) < lengths[:, None]
    beta = np.asarray(threshold_mean_top(falling, mask, fraction=0.7), np.float64)
    counts = [round(2 * (n - b) + 1) for n, b in zip(lengths, beta, strict=True)]  # mean of n, ..., n-k+1: n - (k-1)/2
    assert counts == [max(1, math.floor(0.7 * n)) for n in range(1, 60)]


@pytest.mark.parametrize("rule", ("mean_most", "n_std"))
@pytest.mark.parametrize("family", (binary_filters, centred_spans))
@pytest.mark.parametrize("sign", ("positive", "negative"))
def test_search_finds_what_brute_force_finds(rule, family, sign):
    threshold, plain = RULES[rule]
    found = search_snippets(SCORES, family(), MASK, threshold=threshold, sign=sign)
    total = 0
    for text, length, snippets in zip(SCORES, LENGTHS, found, strict=True):
        factor = 1 if sign == "positive" else -1
        expected = brute_force(text[:length], family(), plain, sign=factor)
        assert {s.indices for s in snippets} == set(expected) and len(snippets) == len(expected)
        mass = np.maximum(factor * text, 0).sum()
        for s in snippets:
            assert s.value == pytest.approx(expected[s.indices], abs=1e-5)
            assert s.coverage == pytest.approx(factor * text[list(s.indices)].sum() / mass)
        order = [(-s.coverage, s.indices) for s in snippets]
        assert order == sorted(order)
        total += len(snippets)
    assert total > 10


def test_the_last_window_is_searched():
    """The released loop, range(n - L), stops one window short."""
    scores = np.array([[0, 0, 0, 0, 0, 0, 0, 1.0, 1.0, 1.0]])
    assert search_snippets(scores, centred_spans(), threshold=0.5)[0][0].indices == (5, 6, 7, 8, 9)
    accepted, value = window_search(scores, np.ones((1, 10), bool), np.array([[0, 0, 1, 1, 1]]), 0.5)
    assert accepted.shape == value.shape == (1, 1, 6)
    np.testing.assert_array_equal(np.flatnonzero(accepted[0, 0]), [4, 5])
    np.testing.assert_allclose(value[0, 0], [0, 0, 0, 1 / 3, 2 / 3, 1], atol=1e-6)


@pytest.mark.parametrize("n", (1, 2, 3, 4, 5))
def test_short_texts_have_windows(n):
    scores = np.zeros((1, n))
    scores[0, -2:] = 1.0
    named = {s.indices for s in search_snippets(scores, binary_filters(), threshold=0.9)[0]}
    assert (0,) in named if n == 1 else (n - 2, n - 1) in named
    assert summarise_runs(scores)[0][0].indices == tuple(range(max(0, n - 2), n))


def test_padding_and_neighbours_change_nothing():
    alone = [search_snippets(s[None, :n], binary_filters())[0] for s, n in zip(SCORES, LENGTHS, strict=True)]
    wide = np.pad(np.where(MASK, SCORES, np.nan), ((0, 0), (3, 4)), constant_values=9.0)
    mask = np.pad(MASK, ((0, 0), (3, 4)))
    for one, other in zip(alone, search_snippets(wide, binary_filters(), mask), strict=True):
        assert [tuple(i - 3 for i in s.indices) for s in other] == [s.indices for s in one]
    first = {s.indices for s in search_snippets(SCORES, binary_filters(), MASK)[0]}
    assert len(first) == len(search_snippets(SCORES[:1], binary_filters(), MASK[:1])[0])


def test_negative_evidence_can_be_accepted_by_filters_with_zeros():
    scores = np.array([[0.5, -1.0, 0.3, -0.9, 0.1, 0.2]])
    assert search_snippets(scores, binary_filters(), sign="negative", threshold=0.5)[0][0].indices == (1, 3)


def test_no_positive_value():
    for row in (np.zeros(7), -np.arange(1.0, 8.0)):
        scores = row[None]
        assert np.isfinite(normalise(scores, np.ones((1, 7), bool))).all()
        assert search_snippets(scores, binary_filters()) == search_snippets(scores, centred_spans()) == [[]]
        assert top_tokens(scores) == summarise_runs(scores) == [[]]
        np.testing.assert_array_equal(coverage(np.ones((1, 7), bool), scores), [0])
        np.testing.assert_array_equal(coverage_at_k(np.ones((1, 7), bool), scores, (1, 5)), [[0, 0]])
    assert summarise_runs(np.ones((1, 3)), np.zeros((1, 3), bool)) == [[]]


def test_coverage_counts_both_ends_and_only_selected_tokens():
    """The released coverage sums S[first:last]: 0.375 and 0 for these two instead of 0.571 and 0.25."""
    scores = np.array([[0.0, 3.0, -1.0, 0.0, 4.0, 1.0]])
    masks = np.array([[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    got = jax.jit(coverage)(masks, np.repeat(scores, 4, 0))
    np.testing.assert_allclose(got, [7 / 8, 0, 0, 7 / 8], atol=1e-6)  # never below 0; the whole keeps its negatives
    single = np.array([[0, 0, 0, 0, 0, 1]], bool)
    np.testing.assert_allclose(coverage(single, scores), [1 / 8], atol=1e-6)
    assert [s.coverage for s in top_tokens(scores, k=2)[0]] == pytest.approx([4 / 8, 3 / 8])


def test_coverage_at_k_by_hand():
    scores = np.array([[0.1, 0.4, -2.0, 0.3, 0.2, 0.0]])
    cited = np.array([[1, 0, 1, 1, 0, 1]], bool)
    got = jax.jit(partial(coverage_at_k, ks=(1, 2, 3, 4, 50)))(cited, scores)
    np.testing.assert_allclose(got, [[0, 0.3, 0.3, 0.4, 0.4]], atol=1e-6)
    tied = np.array([[1.0, 1.0, 1.0]])
    np.testing.assert_allclose(coverage_at_k(np.array([[0, 1, 0]], bool), tied, (1, 2)), [[0, 1 / 3]], atol=1e-6)
    with pytest.raises(ValueError, match="ks must be positive"):
        coverage_at_k(cited, scores, (0, 1))


def test_top_tokens_fall_by_value_then_position():
    scores = np.array([[0.2, 0.5, -9.0, 0.5, 0.2, 0.1, 0.4]])
    found = top_tokens(scores, k=5)[0]
    assert [s.indices for s in found] == [(1,), (3,), (6,), (0,), (4,)]
    assert [s.value for s in found] == pytest.approx([1, 1, 0.8, 0.4, 0.4])
    assert [s.indices for s in top_tokens(scores, sign="negative")[0]] == [(2,)]


def test_summary_is_its_definition():
    scores = SCORES[:3]
    for text, length, runs in zip(scores, LENGTHS, summarise_runs(scores, MASK[:3]), strict=False):
        text = text[:length]
        mass = np.maximum(text, 0).sum()

        def share(indices, text=text, mass=mass):
            return text[list(indices)].sum() / mass

        candidates = set()
        for filters in (binary_filters(), centred_spans()):
            found = brute_force(text, filters, RULES["mean_top"][1])
            candidates |= set(itertools.chain(*sorted(found, key=lambda i: (-share(i), i))[:5]))
        candidates |= {i for i in np.argsort(-text, kind="stable")[:5] if text[i] > 0}
        cuts = [i for i in sorted(candidates) if i - 1 not in candidates]
        expected = [tuple(itertools.takewhile(candidates.__contains__, itertools.count(int(start)))) for start in cuts]
        bound = np.quantile([share(run) for run in expected], 0.75)
        kept = sorted((run for run in expected if share(run) >= bound), key=lambda run: (-share(run), run))
        assert [run.indices for run in runs] == kept
        assert [run.coverage for run in runs] == pytest.approx([share(run) for run in kept])


def test_summary_does_not_favour_the_first_tokens():
    """With the released coverage every single word scores 0, and tokens 0 to 4 enter every summary."""
    scores = np.full((1, 30), 0.01)
    scores[0, [12, 13, 20]] = 1.0, 0.9, 0.8
    named = {i for run in summarise_runs(scores)[0] for i in run.indices}
    assert {12, 13} <= named and not named & set(range(5))


def test_ties_keep_every_run_in_order_of_position():
    scores = np.zeros((1, 20))
    scores[0, [3, 10, 17]] = 1.0
    assert [run.indices for run in summarise_runs(scores, threshold=0.9)[0]] == [(3,), (10,), (17,)]


def test_common_snippets_and_the_filter_of_instances():
    a, b, c = (Snippet((i, i + 1), 0.5, 0.1 * i) for i in range(3))
    assert common_snippets([c, a, b], [a, c]) == [c, a]
    assert is_verbalisable([b, c], num_tokens=99) and not is_verbalisable([b, c], num_tokens=100)
    assert not is_verbalisable([a, b], num_tokens=20) and not is_verbalisable([], num_tokens=20)


def test_search_is_one_program_for_all_texts():
    traced = []

    def rule(evidence, mask):
        traced.append(evidence.shape)
        return threshold_mean_top(evidence, mask)

    run = jax.jit(partial(window_search, threshold=rule))
    for seed in range(3):
        run(np.random.default_rng(seed).normal(size=MASK.shape), MASK, jnp.asarray(binary_filters()))
    assert traced == [MASK.shape]


def test_bad_input():
    nan = np.where(MASK, SCORES, 0)
    nan[1, 2] = np.nan
    with pytest.raises(ValueError, match="text 1 has values that are not"):
        summarise_runs(nan, MASK)
    with pytest.raises(ValueError, match="those of text 0 are not"):
        search_snippets(np.ones((1, 4)), binary_filters(), np.array([[1, 0, 1, 1]], bool))
    with pytest.raises(ValueError, match=r"\[batch, time\]"):
        top_tokens(np.ones(4))
    with pytest.raises(ValueError, match="mask must have the shape"):
        top_tokens(np.ones((2, 4)), np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="sign must be"):
        coverage(np.ones((1, 2), bool), np.ones((1, 2)), sign="+")
    with pytest.raises(ValueError, match="fraction must be"):
        threshold_mean_top(np.ones((1, 2)), np.ones((1, 2), bool), fraction=0.0)
    with pytest.raises(ValueError, match="quantile must be"):
        summarise_runs(np.ones((1, 9)), quantile=75)
    with pytest.raises(ValueError, match="k must be"):
        top_tokens(np.ones((1, 9)), k=0)
