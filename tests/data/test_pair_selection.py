"""Selection rules: what each may take and how often, against exact weights in numpy; thresholds; diagnostics."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from jaxcore.data.pair_mining import Candidates
from jaxcore.data.pair_selection import (
    PairFeatures,
    SelectionConfig,
    fit_selector,
    make_draw,
    naive_selection,
    selection_statistics,
)

NUM, K = 400, 20
RNG = np.random.default_rng(0)


def candidates_of(meaning, surface, gap=None):
    ids = (1000 + np.arange(meaning.size)).reshape(meaning.shape).astype(np.int32)
    gap = np.zeros_like(meaning) if gap is None else gap
    return Candidates(ids, *(x.astype(np.float16) for x in (meaning, surface, gap)), np.zeros(meaning.shape, np.int8))


SURFACE = RNG.uniform(0, 1, (NUM, K))
MEANING = np.clip(0.5 * SURFACE + RNG.uniform(-0.3, 0.6, (NUM, K)), -1, 1)
CANDIDATES = candidates_of(MEANING, SURFACE, RNG.uniform(0, 1, (NUM, K)))
RANDOM = PairFeatures(RNG.uniform(-0.5, 0.5, 5000), RNG.beta(1, 6, 5000), RNG.uniform(0, 1, 5000))
CONFIG = SelectionConfig(positive_threshold=0.5, negative_threshold=0.3)
SELECTOR = fit_selector(CONFIG, CANDIDATES, RANDOM)
MEANING, SURFACE = (x.astype(float) for x in (CANDIDATES.meaning, CANDIDATES.surface))
BINS = np.minimum((SURFACE * 10).astype(int), 9)


def positive_propensity():
    """debcse.md M3 in plain numpy."""
    pi = np.exp(MEANING / 0.1) / np.exp(MEANING / 0.1).sum(1, keepdims=True)
    rate = np.array([pi[b == BINS].sum() / (b == BINS).sum() for b in range(10)])
    return np.clip(rate / rate.max(), 0.02, 1)[BINS]


def negative_propensity():
    counts = np.histogram(RANDOM.surface, 10, (0, 1))[0]
    return np.clip(counts / counts.max(), 0.02, 1)[BINS]


EXPECTED_WEIGHTS = {
    "softmax": np.exp(MEANING / 0.1),
    "uniform": (MEANING > 0.5) * 1.0,
    "inverse": (MEANING > 0.5) / positive_propensity(),
    "inverted": (MEANING > 0.5) * positive_propensity(),
}


@pytest.mark.parametrize("rule", ["softmax", "uniform", "inverse", "inverted"])
def test_positives_follow_the_weights_of_their_rule(rule):
    """The surface of what is drawn, over 30 draws, against the exact expectation."""
    weights = EXPECTED_WEIGHTS[rule]
    open_rows = weights.sum(1) > 0
    probability = weights[open_rows] / weights[open_rows].sum(1, keepdims=True)
    draw = make_draw(SELECTOR, rule, "none", num_negatives=1, seed=3)
    counts = np.zeros(10)
    for number in range(30):
        drawn = draw(number)
        assert drawn.partners.shape == (NUM, 1)
        np.testing.assert_array_equal(drawn.places[:, 0] < 0, ~open_rows)
        places = drawn.places[open_rows, 0]
        assert (np.take_along_axis(weights[open_rows], places[:, None], 1) > 0).all()
        np.testing.assert_array_equal(drawn.partners[open_rows, 0], CANDIDATES.ids[open_rows, places])
        np.testing.assert_array_equal(drawn.partners[~open_rows, 0], -1)
        counts += np.bincount(BINS[open_rows, places], minlength=10)
    expected = 30 * np.bincount(BINS[open_rows].reshape(-1), probability.reshape(-1), 10)
    kept = expected > 5
    assert scipy.stats.chisquare(counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()).pvalue > 1e-3


def test_inverse_lowers_and_inverted_raises_the_surface_of_positives():
    surface = {
        rule: selection_statistics(SELECTOR, make_draw(SELECTOR, rule, "none", num_negatives=1, seed=0)(0), rule)
        for rule in ("inverse", "uniform", "inverted", "twin")
    }
    values = [surface[rule]["positive_surface"] for rule in ("inverse", "uniform", "inverted", "twin")]
    assert values == sorted(values) and values[1] - values[0] > 0.05 and values[3] == 1.0
    assert surface["twin"]["fallback_rate"] == 1.0
    assert surface["inverse"]["effective_sample_size"] < surface["uniform"]["effective_sample_size"] <= K


@pytest.mark.parametrize("rule", ["uniform", "inverse", "hardest"])
def test_negatives_stay_behind_their_gate_and_prefer_look_alikes(rule):
    drawn = make_draw(SELECTOR, "twin", rule, num_negatives=3, seed=1)(0)
    assert drawn.partners.shape == (NUM, 4) and (drawn.partners[:, 0] == -1).all()
    places = drawn.places[:, 1:]
    chosen = np.take_along_axis(MEANING, np.maximum(places, 0), 1)
    statistics = selection_statistics(SELECTOR, drawn, "twin")
    if rule == "hardest":
        np.testing.assert_allclose(np.sort(chosen, 1), np.sort(MEANING, 1)[:, -3:])
        assert statistics["false_negative_rate"] > 0.9
        return
    assert (chosen[places >= 0] < 0.3).all() and statistics["false_negative_rate"] == 0
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in places)
    weights = (MEANING < 0.3) / (negative_propensity() if rule == "inverse" else 1.0)
    draw = make_draw(SELECTOR, "twin", rule, num_negatives=1, seed=2)
    first = np.stack([draw(number).places[:, 1] for number in range(20)])
    expected = (weights / weights.sum(1, keepdims=True) * SURFACE).sum(1)
    found = np.take_along_axis(SURFACE, first.T, 1).mean(1)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.01)
    if rule == "inverse":
        uniform = ((MEANING < 0.3) * SURFACE).sum(1) / (MEANING < 0.3).sum(1)
        assert found.mean() > uniform.mean() + 0.05


def test_missing_negatives_are_replaced_by_random_anchors():
    few = candidates_of(np.full((50, 4), 0.9), np.full((50, 4), 0.5))
    few.meaning[:, 0] = 0.1
    selector = fit_selector(CONFIG, few, RANDOM)
    drawn = make_draw(selector, "twin", "inverse", num_negatives=3, seed=0)(0)
    assert (drawn.partners[:, 1] == few.ids[:, 0]).all() and (drawn.places[:, 2:] == -1).all()
    replaced = drawn.partners[:, 2:]
    assert ((replaced >= 0) & (replaced < 50)).all() and (replaced != np.arange(50)[:, None]).all()
    assert selection_statistics(selector, drawn, "twin")["negative_fallback_rate"] == pytest.approx(2 / 3)


def test_places_without_a_candidate_are_never_taken():
    ids = CANDIDATES.ids.copy()
    ids[:, 5:] = -1
    selector = fit_selector(CONFIG, CANDIDATES._replace(ids=ids), RANDOM)
    for positives in ("top", "softmax", "uniform", "inverse"):
        drawn = make_draw(selector, positives, "hardest", num_negatives=2, seed=0)(1)
        assert drawn.places.max() < 5


def test_draws_depend_on_seed_and_number_alone(monkeypatch):
    draw = make_draw(SELECTOR, "inverse", "inverse", num_negatives=2, seed=0)
    np.testing.assert_array_equal(draw(4).partners, draw(4).partners)
    again = make_draw(SELECTOR, "inverse", "inverse", num_negatives=2, seed=0)(4).partners
    np.testing.assert_array_equal(again, draw(4).partners)
    assert (draw(5).partners != again).mean() > 0.3
    other = make_draw(SELECTOR, "inverse", "inverse", num_negatives=2, seed=1)(4).partners
    assert (other != again).mean() > 0.3
    monkeypatch.setattr("jaxcore.data.pair_selection._ANCHORS_AT_ONCE", 150)  # several blocks: same shape, own draws
    assert make_draw(SELECTOR, "inverse", "inverse", num_negatives=2, seed=0)(4).partners.shape == (NUM, 3)


def test_thresholds_come_from_random_pairs_unless_given():
    selector = fit_selector(SelectionConfig(), CANDIDATES, RANDOM)
    assert selector.positive_threshold == pytest.approx(np.percentile(RANDOM.meaning, 97) + 0.2)
    assert selector.negative_threshold == pytest.approx(selector.positive_threshold - 0.1)


def test_logistic_propensity_reacts_to_both_features():
    gap = CANDIDATES.length_gap.astype(float)
    meaning = np.clip(0.8 * SURFACE - 0.5 * gap + 0.1 * RNG.normal(size=SURFACE.shape), -1, 1)
    config = dataclasses.replace(CONFIG, propensity="logistic")
    selector = fit_selector(config, candidates_of(meaning, SURFACE, gap), RANDOM)
    low, high = np.float32(0.1), np.float32(0.9)
    assert selector.positive(0.0, high, low) > 2 * selector.positive(0.0, low, low)
    assert selector.positive(0.0, high, low) > 1.5 * selector.positive(0.0, high, high)
    assert selector.negative(0.0, low, low) > 2 * selector.negative(0.0, high, low)  # random pairs look different


def test_supervised_target_makes_positives_look_like_labelled_pairs():
    rng = np.random.default_rng(5)
    labelled = PairFeatures(rng.uniform(0.5, 0.95, 4000), rng.uniform(0.2, 0.5, 4000), np.zeros(4000))
    negatives = PairFeatures(rng.uniform(-0.3, 0.2, 4000), rng.uniform(0.5, 0.9, 4000), np.zeros(4000))
    config = dataclasses.replace(CONFIG, target="supervised", num_bins=5, minimum=0.002)
    selector = fit_selector(config, CANDIDATES, RANDOM, labelled_positives=labelled, labelled_negatives=negatives)
    drawn = make_draw(selector, "inverse", "inverse", num_negatives=1, seed=0)(0)
    statistics = selection_statistics(selector, drawn, "inverse")
    plain = selection_statistics(
        SELECTOR, make_draw(SELECTOR, "uniform", "uniform", num_negatives=1, seed=0)(0), "uniform"
    )
    assert abs(statistics["positive_surface"] - 0.35) < 0.12 < abs(plain["positive_surface"] - 0.35)
    assert statistics["negative_surface"] > plain["negative_surface"] + 0.1


def test_naive_selection_is_a_softmax_over_valid_candidates():
    meaning, valid = np.array([[0.1, 0.3, 0.2], [0.5, 0.5, 0.5]]), np.array([[True, True, False], [False] * 3])
    expected = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    np.testing.assert_allclose(naive_selection(meaning, valid, 0.1), [[*expected, 0], [0, 0, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SelectionConfig(minimum=0), "minimum in"),
        (lambda: SelectionConfig(positive_threshold=0.3, negative_threshold=0.4), "must not exceed"),
        (lambda: SelectionConfig(propensity="logistic", target="supervised"), "weights by a histogram"),
        (lambda: fit_selector(CONFIG, CANDIDATES, PairFeatures(*[np.zeros(0)] * 3)), "random pairs are needed"),
        (lambda: fit_selector(dataclasses.replace(CONFIG, target="supervised"), CANDIDATES, RANDOM), "labelled pairs"),
        (lambda: make_draw(SELECTOR, "best", "none", num_negatives=1, seed=0), "unknown rule 'best'"),
        (lambda: make_draw(SELECTOR, "twin", "all", num_negatives=1, seed=0), "unknown rule 'all'"),
        (lambda: make_draw(SELECTOR, "twin", "uniform", num_negatives=21, seed=0), "in 1..20"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
