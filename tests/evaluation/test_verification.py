"""Verification metrics against the published PAN 2020 table, scikit-learn, hand counts; head, abstention."""

import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, f1_score, fbeta_score, roc_auc_score

from jaxcore.evaluation import (
    align_answers,
    brier_complement,
    c_at_1,
    calibrate_unanswered,
    f05u,
    f05u_published_2020,
    fit_verification_head,
    pair_features,
    read_pan_answers,
    read_pan_truth,
    verification_f1,
    verification_metrics,
)

# The PAN 2020 results as published (AUC, c@1, F1, F0.5u), then F0.5u by the current evaluator and the Brier
# complement of the same answers, and how many problems are unanswered.
PUBLISHED_2020 = {
    "boenninghoff20-large": (0.969237, 0.928269, 0.936349, 0.906665, 0.918191, 0.933, 648),
    "boenninghoff20-small": (0.939986, 0.889061, 0.905762, 0.853452, 0.868667, 0.902, 1082),
    "araujo20-small": (0.873920, 0.770037, 0.811372, 0.762223, 0.762223, 0.829, 0),
    "araujo20-large": (0.858709, 0.751310, 0.799527, 0.744638, 0.744638, 0.818, 0),
    "gagala20-small": (0.786438, 0.786458, 0.800340, 0.808773, 0.808773, 0.786, 0),
    "faber20-small": (0.293359, 0.331308, 0.261599, 0.313543, 0.294065, 0.610, 360),
}


@pytest.fixture(scope="module")
def pan20(shared_data, tmp_path_factory):
    archive = shared_data / "authorship" / "pan20_verification.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    folder = tmp_path_factory.mktemp("pan20")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("system", PUBLISHED_2020)
def test_published_pan_2020_table_is_reproduced_to_all_printed_digits(pan20, system):
    truth = read_pan_truth(pan20 / "datasets" / "pan20-authorship-verification-test" / "truth.jsonl")
    labels, probabilities = align_answers(truth, read_pan_answers(pan20 / "submissions" / system / "answers.jsonl"))
    assert len(labels) == 14311 and round(100 * labels.mean(), 4) == 54.4057
    scores = verification_metrics(labels, probabilities, year=2020)
    auc, correct, f1, published, now, brier, unanswered = PUBLISHED_2020[system]
    names = ("auc", "c_at_1", "f1", "f05u_published_2020", "f05u")
    got = tuple(round(scores[name], 6) for name in names)
    assert got == (auc, correct, f1, published, now)
    assert round(scores["brier"], 3) == brier
    assert np.count_nonzero(probabilities == 0.5) == unanswered
    assert scores["overall"] == pytest.approx(np.mean([auc, correct, f1, published]), abs=1e-6)
    later = verification_metrics(labels, probabilities, year=2021)
    assert later["overall"] == pytest.approx(np.mean([auc, correct, f1, now, scores["brier"]]), abs=1e-6)


def test_answers_left_out_score_as_unanswered(pan20):
    truth = read_pan_truth(pan20 / "datasets" / "pan20-authorship-verification-test" / "truth.jsonl")
    answers = read_pan_answers(pan20 / "submissions" / "boenninghoff20-large" / "answers.jsonl")
    answered = {problem: value for problem, value in answers.items() if value != 0.5}
    assert len(answers) - len(answered) == 648
    for year in (2020, 2021, 2024):
        whole = verification_metrics(*align_answers(truth, answers), year=year)
        assert verification_metrics(*align_answers(truth, answered), year=year) == whole


# Six problems worked by hand: TP 2, FP 1, FN 1, TN 1 among the answered, then one unanswered of each class.
LABELS = [1, 1, 0, 1, 0, 1, 0]
PROBABILITIES = [0.9, 0.6, 0.8, 0.2, 0.1, 0.5, 0.5]


def test_hand_worked_problems():
    n, correct, unanswered = 7, 3, 2
    assert c_at_1(LABELS, PROBABILITIES) == pytest.approx((correct + unanswered * correct / n) / n)
    assert verification_f1(LABELS, PROBABILITIES, year=2020) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert verification_f1(LABELS, PROBABILITIES, year=2023) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert verification_f1(LABELS, PROBABILITIES, year=2024) == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert f05u(LABELS, PROBABILITIES) == pytest.approx(2.5 / (2.5 + 0.25 * (1 + 2) + 1))
    assert f05u_published_2020(LABELS, PROBABILITIES) == pytest.approx(3.75 / (3.75 + 0.25 * 1 + 2))
    squares = [0.01, 0.16, 0.64, 0.64, 0.01, 0.25, 0.25]
    assert brier_complement(LABELS, PROBABILITIES) == pytest.approx(1 - sum(squares) / 7)
    # 4 positives x 3 negatives: .9 wins 3, .6 wins 2, .2 wins 1, .5 wins 1 and ties 1.
    assert verification_metrics(LABELS, PROBABILITIES)["auc"] == pytest.approx((3 + 2 + 1 + 1.5) / 12)


def test_overall_averages_four_scores_in_2020_and_five_later():
    y2020, y2021, y2024 = (verification_metrics(LABELS, PROBABILITIES, year=year) for year in (2020, 2021, 2024))
    assert y2020["overall"] == pytest.approx(
        np.mean([y2020[k] for k in ("auc", "c_at_1", "f1", "f05u_published_2020")])
    )
    for scores in (y2021, y2024):
        assert scores["overall"] == pytest.approx(
            np.mean([scores[k] for k in ("auc", "c_at_1", "f1", "f05u", "brier")])
        )
    assert y2021["f1"] == y2020["f1"] != y2024["f1"]


problems = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.49, 0.5, 0.51, 0.8, 1.0])), min_size=2, max_size=40
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@settings(max_examples=100, deadline=None)
@given(rows=problems, seed=st.integers(0, 2**32 - 1))
def test_metrics_ignore_the_order_of_problems_and_stay_in_range(rows, seed):
    labels, probabilities = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    order = np.random.default_rng(seed).permutation(len(rows))
    for year in (2020, 2022, 2024):
        scores = verification_metrics(labels, probabilities, year=year)
        shuffled = verification_metrics(labels[order], probabilities[order], year=year)
        assert shuffled == pytest.approx(scores)
        assert all(0 <= value <= 1 for value in scores.values())


@settings(max_examples=100, deadline=None)
@given(rows=problems)
def test_without_unanswered_problems_scores_are_the_textbook_ones(rows):
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([0.3 if p == 0.5 else p for _, p in rows])
    decisions, scores = probabilities > 0.5, verification_metrics(labels, probabilities)
    assert scores["auc"] == pytest.approx(roc_auc_score(labels, probabilities))
    assert scores["c_at_1"] == pytest.approx(np.mean(decisions == labels))
    assert scores["f1"] == pytest.approx(f1_score(labels, decisions, zero_division=0))
    assert scores["f05u"] == pytest.approx(fbeta_score(labels, decisions, beta=0.5, zero_division=0))
    assert scores["f05u_published_2020"] == pytest.approx(scores["f05u"])
    assert scores["brier"] == pytest.approx(1 - brier_score_loss(labels, probabilities))
    assert verification_f1(labels, probabilities, year=2024) == pytest.approx(scores["f1"])


def test_abstaining_pays_in_c_at_1_where_the_alternative_is_wrong():
    labels = np.array([1, 1, 1, 0])
    wrong, declined = [0.9, 0.9, 0.2, 0.1], [0.9, 0.9, 0.5, 0.1]
    assert c_at_1(labels, declined) > c_at_1(labels, wrong)
    assert c_at_1(labels, [0.5] * 4) == 0


def test_nothing_found_and_nothing_to_find_scores_zero():
    assert verification_f1([0, 0], [0.1, 0.2]) == 0
    assert f05u([0, 0], [0.1, 0.2]) == 0
    assert verification_f1([1, 0], [0.5, 0.5]) == 0


def test_jax_arrays_and_booleans_are_accepted():
    labels, probabilities = jnp.array(LABELS, dtype=bool), jnp.array(PROBABILITIES, dtype=jnp.float32)
    assert verification_metrics(labels, probabilities) == pytest.approx(
        verification_metrics(LABELS, PROBABILITIES), abs=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([1, 0], [0.5, 1.2], r"probabilities must lie in \[0, 1\].*1\.2"),
        ([1, 0], [-0.5, 0.2], r"probabilities must lie in \[0, 1\]"),
        ([1, 0], [np.nan, 0.2], "probabilities has 1 NaN"),
        ([1, 2], [0.5, 0.2], "labels must be 0 or 1, found 2"),
        ([1, 0, 1], [0.5, 0.2], "lengths differ: labels 3, probabilities 2"),
        ([1, 1], [0.5, 0.2], "labels holds only class 1"),
        ([0, 0], [0.5, 0.2], "labels holds only class 0"),
        ([], [], "labels is empty"),
        ([[1, 0]], [0.5, 0.2], "labels must have 1 axes"),
        (["a", "b"], [0.5, 0.2], "labels must be an array of numbers"),
    ],
)
def test_bad_problems_are_refused_in_one_line(labels, probabilities, message):
    with pytest.raises(ValueError, match=message) as error:
        verification_metrics(labels, probabilities)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("year", [2019, 2021.0, True, "2021"])
def test_years_without_these_measures_are_refused(year):
    with pytest.raises(ValueError, match="PAN year from 2020 on"):
        verification_metrics([1, 0], [0.5, 0.2], year=year)
    with pytest.raises(ValueError, match="PAN year from 2020 on"):
        calibrate_unanswered([0.5, 0.2], [1, 0], year=year)


# --- pair features and the head


def test_pair_features_hand_worked():
    a, b = jnp.array([[1.0, -2.0]]), jnp.array([[3.0, 0.5]])
    np.testing.assert_allclose(pair_features(a, b)[0], [1, -2, 3, 0.5, 2, 2.5, 3, -1])
    np.testing.assert_allclose(pair_features(a, b, mode="absdiff")[0], [2, 2.5])
    np.testing.assert_allclose(jax.jit(pair_features)(a, b), pair_features(a, b))
    np.testing.assert_array_equal(pair_features(a, b, mode="absdiff"), pair_features(b, a, mode="absdiff"))


def test_pair_features_refuses_other_shapes_and_modes():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        pair_features(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        pair_features(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="'concat' or 'absdiff', got 'sum'"):
        pair_features(jnp.ones((2, 3)), jnp.ones((2, 3)), mode="sum")


def toy_pairs(n=300, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(loc=3.0, size=(n, dim)) * [1, 10, 0.01, 1, 1]
    features[:, 3] = 7.0  # constant
    return features, rng.random(n) < 1 / (1 + np.exp(-(features[:, 0] - 3 + 100 * (features[:, 2] - 0.03))))


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_head_meets_the_optimality_condition_of_its_objective(strength):
    """At the optimum the gradient of |w|^2/2 + C sum loss, in standardised features, vanishes."""
    features, labels = toy_pairs()
    head = fit_verification_head(features, labels, inverse_regularisation=strength)
    sd = features.std(axis=0)
    sd[3] = 1.0
    z, w = (features - features.mean(axis=0)) / sd, head.weights * sd
    residual = 1 / (1 + np.exp(-(features @ head.weights + head.bias))) - labels
    np.testing.assert_allclose(w + strength * z.T @ residual, 0, atol=2e-3 * strength * len(labels) ** 0.5)
    np.testing.assert_allclose(residual.sum(), 0, atol=2e-2)
    assert abs(w[0]) > 0.2 and w[3] == 0


def test_head_does_not_depend_on_the_units_of_the_features():
    features, labels = toy_pairs()
    scale, shift = np.array([1e-3, 5.0, 40.0, 1.0, 7.0]), np.array([0.0, 1.0, -3.0, 0.0, 2.0])
    here = fit_verification_head(features, labels).probabilities(features)
    there = features * scale + shift
    np.testing.assert_allclose(fit_verification_head(there, labels).probabilities(there), here, atol=1e-4)


def test_head_separates_same_author_pairs_of_held_out_authors():
    rng = np.random.default_rng(1)

    def pairs(n):
        author = rng.normal(size=(n, 16))
        same = rng.random(n) < 0.5
        other = np.where(same[:, None], author, rng.normal(size=(n, 16)))
        return [x + 0.3 * rng.normal(size=(n, 16)) for x in (author, other)], same

    (a, b), train = pairs(400)
    (c, d), test = pairs(400)
    head = fit_verification_head(pair_features(a, b, mode="absdiff"), train)
    auc = verification_metrics(test, head.probabilities(pair_features(c, d, mode="absdiff")))["auc"]
    shuffled = fit_verification_head(pair_features(a, b, mode="absdiff"), rng.permutation(train))
    chance = verification_metrics(test, shuffled.probabilities(pair_features(c, d, mode="absdiff")))["auc"]
    assert auc > 0.95 and chance < 0.8


def test_head_refuses_bad_input():
    features, labels = toy_pairs(20)
    with pytest.raises(ValueError, match="lengths differ"):
        fit_verification_head(features, labels[:-1])
    with pytest.raises(ValueError, match="only class 1"):
        fit_verification_head(features, np.ones(20))
    with pytest.raises(ValueError, match="inverse_regularisation must be > 0"):
        fit_verification_head(features, labels, inverse_regularisation=0)
    with pytest.raises(ValueError, match="features has 1 NaN"):
        fit_verification_head(np.where(np.arange(100).reshape(20, 5) == 7, np.nan, features), labels)
    with pytest.raises(ValueError, match=r"features must be \[n, 5\] as fitted, got \(20, 4\)"):
        fit_verification_head(features, labels).probabilities(features[:, :4])


# --- abstention


def mapped(score, lower, upper):
    """The survey's piecewise map, one score at a time."""
    if score <= lower:
        return 0.49 * score / lower
    if score < upper:
        return 0.5
    return 0.51 + (score - upper) / (1 - upper) * 0.49


def noisy_scores(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    # Two decimals: many ties, and scores exactly on the grid.
    return np.round(np.clip(0.45 + 0.15 * labels + 0.2 * rng.normal(size=n), 0, 1), 2), labels


@pytest.mark.parametrize("year", [2020, 2021, 2024])
@pytest.mark.parametrize("seed", [0, 1])
def test_calibration_finds_the_best_pair_of_an_exhaustive_search(year, seed):
    scores, labels = noisy_scores(60, seed)
    grid = [round(k * 0.05, 12) for k in range(1, 20)]
    overall = {
        (p1, p2): verification_metrics(labels, [mapped(s, p1, p2) for s in scores], year=year)["overall"]
        for i, p1 in enumerate(grid)
        for p2 in grid[i + 1 :]
    }
    best = max(overall.values())
    chosen = calibrate_unanswered(scores, labels, grid=0.05, year=year)
    assert chosen.overall == pytest.approx(best, abs=1e-12)
    first = next(pair for pair, value in overall.items() if value > best - 1e-12)
    assert (chosen.lower, chosen.upper) == first
    assert verification_metrics(labels, chosen.probabilities(scores), year=year)["overall"] == pytest.approx(best)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 100)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
def test_calibration_reports_the_overall_score_of_its_own_probabilities(rows):
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 100 for _, s in rows])
    chosen = calibrate_unanswered(scores, labels)
    probabilities = chosen.probabilities(scores)
    np.testing.assert_allclose(probabilities, [mapped(s, chosen.lower, chosen.upper) for s in scores], atol=1e-12)
    assert verification_metrics(labels, probabilities)["overall"] == pytest.approx(chosen.overall, abs=1e-9)
    assert 0 < chosen.lower < chosen.upper < 1
    order = np.argsort(scores, kind="stable")
    assert (np.diff(probabilities[order]) >= 0).all() and probabilities.max() <= 1


def test_calibration_abstains_on_the_confusable_scores_and_beats_no_abstention():
    rng = np.random.default_rng(3)
    sure = rng.random(200)
    labels = np.concatenate([sure > 0.5, rng.random(200) < 0.5])
    scores = np.concatenate(
        [np.where(sure > 0.5, 0.8, 0.2) + 0.1 * rng.normal(size=200), 0.5 + 0.02 * rng.normal(size=200)]
    )
    chosen = calibrate_unanswered(np.clip(scores, 0, 1), labels)
    unanswered = chosen.probabilities(np.clip(scores, 0, 1)) == 0.5
    assert unanswered[200:].mean() > 0.9 and unanswered[:200].mean() < 0.1


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.1, -0.2], [0, 1], {}, r"scores must lie in \[0, 1\].*cosine"),
        ([0.1, 0.2], [1, 1], {}, "only class 1"),
        ([0.1, 0.2, 0.3], [1, 0], {}, "lengths differ: labels 2, scores 3"),
        ([0.1, 0.2], [1, 0], {"grid": 0.0}, "grid must lie in"),
        ([0.1, 0.2], [1, 0], {"grid": 0.5}, "grid must lie in"),
    ],
)
def test_calibration_refuses_bad_input(scores, labels, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate_unanswered(scores, labels, **options)
