"""Probes: against scikit-learn's own estimators and a float64 loop, protocols that never see test rows, bad input."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.probes import cross_validated_linear_probe, knn_probe, linear_probe


def classes_in_noise(seed=0, rows=150, dim=8, num_classes=3, distance=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % num_classes
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    return distance * centres[labels] + rng.normal(size=(rows, dim)), np.array(["red", "green", "blue"])[labels]


# ---- linear ------------------------------------------------------------------------------------------------------


def test_fixed_penalty_is_the_minimum_of_the_documented_objective():
    """Gradient of sum_i nll_i + penalty / 2 |W|^2 vanishes at the coefficients that gave the predictions."""
    features, labels = classes_in_noise()
    tested, truth = classes_in_noise(1)
    result = linear_probe(features, labels, tested, truth, penalties=[4.0])
    reference = LogisticRegression(C=0.25, tol=1e-10, max_iter=10000).fit(features, labels)
    logits = features @ reference.coef_.T + reference.intercept_
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = probabilities - (labels[:, None] == reference.classes_)
    np.testing.assert_allclose(error.T @ features + 4.0 * reference.coef_, 0, atol=1e-4)
    np.testing.assert_array_equal(result.predictions, reference.predict(tested))
    assert result.accuracy.estimate == pytest.approx((reference.predict(tested) == truth).mean())
    assert result.penalties == (4.0,) and 0.4 < result.accuracy.estimate < 1.0


def test_penalty_is_chosen_on_validation_rows_and_the_fit_leaves_them_out():
    features, labels = classes_in_noise(rows=30, dim=40, distance=0.2)
    held_out, held_labels = classes_in_noise(5, dim=40, distance=0.2)
    tested, truth = classes_in_noise(6, dim=40, distance=0.2)
    grid = [1e-3, 1.0, 30.0, 1000.0]
    models = {p: LogisticRegression(C=1 / p, max_iter=5000, tol=1e-8).fit(features, labels) for p in grid}
    scores = {p: model.score(held_out, held_labels) for p, model in models.items()}
    best = max(sorted(grid, reverse=True), key=scores.get)
    result = linear_probe(features, labels, tested, truth, validation=(held_out, held_labels), penalties=grid)
    assert len(set(scores.values())) > 1 and result.penalties == (best,)
    assert (result.predictions == models[best].predict(tested)).mean() > 0.99


def test_penalty_is_chosen_by_cross_validation_without_a_validation_split():
    features, labels = classes_in_noise(rows=60, dim=30, distance=0.3)
    grid = [1e-3, 1.0, 30.0, 1000.0]
    codes = np.unique(labels, return_inverse=True)[1]
    right = {p: 0 for p in grid}
    for kept, held_out in StratifiedKFold(5, shuffle=True, random_state=3).split(codes, codes):
        for p in grid:
            model = LogisticRegression(C=1 / p, max_iter=5000, tol=1e-8).fit(features[kept], codes[kept])
            right[p] += (model.predict(features[held_out]) == codes[held_out]).sum()
    result = linear_probe(features, labels, *classes_in_noise(6, dim=30), penalties=grid, folds=5, seed=3)
    assert len(set(right.values())) > 1
    assert result.penalties == (max(sorted(grid, reverse=True), key=right.get),)


def test_labels_without_relation_to_features_are_at_chance_under_cross_validation():
    """A leak of held-out rows would show: 60 rows in 59 dimensions are separable for any labels."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 119)), np.repeat([0, 1], 60)
    result = cross_validated_linear_probe(features, labels, folds=5, inner_folds=3, penalties=[0.01, 1.0])
    assert abs(result.accuracy.estimate - 0.5) < 0.15
    assert len(result.penalties) == 5 and result.correct.shape == (120,)


def test_cross_validation_predicts_every_row_by_the_other_folds():
    features, labels = classes_in_noise(rows=90)
    result = cross_validated_linear_probe(features, labels, folds=3, penalties=[1.0], seed=7)
    codes = np.unique(labels, return_inverse=True)[1]
    expected = np.empty(90, dtype=object)
    for kept, held_out in StratifiedKFold(3, shuffle=True, random_state=7).split(codes, codes):
        expected[held_out] = (
            LogisticRegression(max_iter=1000).fit(features[kept], labels[kept]).predict(features[held_out])
        )
    np.testing.assert_array_equal(result.predictions, expected)
    np.testing.assert_array_equal(result.correct, expected == labels)


def test_a_label_that_training_lacks_is_wrong_and_nothing_else_changes():
    features, labels = classes_in_noise()
    tested, truth = classes_in_noise(1)
    plain = linear_probe(features, labels, tested, truth, penalties=[1.0])
    truth = np.where(np.arange(150) < 10, "violet", truth)
    stranger = linear_probe(features, labels, tested, truth, penalties=[1.0])
    assert not stranger.correct[:10].any()
    np.testing.assert_array_equal(stranger.correct[10:], plain.correct[10:])


# ---- nearest neighbours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 10.0])
@pytest.mark.parametrize("k", [1, 7, 150])
def test_knn_is_the_documented_vote(k, temperature):
    features, labels = classes_in_noise()
    tested, truth = classes_in_noise(1)
    result = knn_probe(features, labels, tested, truth, k=k, temperature=temperature, key_block=64)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (tested, features)]
    expected = []
    for row in unit[0] @ unit[1].T:
        nearest = np.argsort(-row)[:k]
        votes = {c: np.exp((row[nearest][labels[nearest] == c] - row.max()) / temperature).sum() for c in set(labels)}
        expected.append(max(votes, key=votes.get))
    np.testing.assert_array_equal(result.predictions, expected)
    assert result.accuracy.estimate == pytest.approx(np.mean(np.array(expected) == truth))


def test_knn_on_a_mesh():
    features, labels = classes_in_noise()
    tested, truth = classes_in_noise(1)
    plain = knn_probe(features, labels, tested, truth)
    spread = knn_probe(features, labels, tested, truth, mesh=make_mesh(MeshConfig()))
    np.testing.assert_array_equal(plain.predictions, spread.predictions)
    assert plain.accuracy.low < plain.accuracy.estimate < plain.accuracy.high


# ---- bad input -----------------------------------------------------------------------------------------------------

X, Y = classes_in_noise()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_probe(X, Y[:-1], X, Y), "train features 150, train labels 149"),
        (lambda: linear_probe(X, Y, X[:, :3], Y), "test features have width 3, training features 8"),
        (lambda: linear_probe(X, ["one"] * 150, X, Y), "only the class"),
        (lambda: linear_probe(np.where(X > 2, np.nan, X), Y, X, Y), "train features has"),
        (lambda: linear_probe(X, Y, X, Y, penalties=[]), "penalties must be"),
        (lambda: linear_probe(X, Y, X, Y, penalties=[0.0, 1.0]), "penalties must be"),
        (lambda: linear_probe(X[:9], Y[:9], X, Y), "has 3 training rows, fewer than 10 folds"),
        (lambda: cross_validated_linear_probe(X, Y, folds=1), "folds must be an integer >= 2"),
        (lambda: knn_probe(X, Y, X, Y, temperature=0.0), "temperature must be > 0"),
        (lambda: knn_probe(X, Y, X, Y, k=151), "k must be at most 150"),
        (lambda: knn_probe(X, Y, X[:1], Y[:1]), "at least two rows"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
