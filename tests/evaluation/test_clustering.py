"""Clustering measures against hand-worked cases and literal definitions; clustering against scikit-learn."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, average_precision_score

from jaxcore.evaluation import (
    agglomerative_cosine,
    bcubed,
    cosine_links,
    link_average_precision,
    links_within_classes,
    tune_threshold,
)


def literal_bcubed(true, predicted):
    """The definition, document by document."""
    n = range(len(true))
    precision = np.mean(
        [np.mean([true[e] == true[d] for e in n if predicted[e] == predicted[d]]) for d in n], dtype=float
    )
    recall = np.mean([np.mean([predicted[e] == predicted[d] for e in n if true[e] == true[d]]) for d in n], dtype=float)
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_bcubed_hand_worked():
    # Classes {a, b, c}, {d, e}; clusters {a, b}, {c, d}, {e}.
    scores = bcubed([0, 0, 0, 1, 1], [7, 7, 8, 8, 9])
    precision = (1 + 1 + 1 / 2 + 1 / 2 + 1) / 5
    recall = (2 / 3 + 2 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / 5
    assert scores == pytest.approx((precision, recall, 2 * precision * recall / (precision + recall)))
    per_document = [(1, 2 / 3), (1, 2 / 3), (1 / 2, 1 / 3), (1 / 2, 1 / 2), (1, 1 / 2)]
    mean_of_f = np.mean([2 * p * r / (p + r) for p, r in per_document])
    assert abs(scores.f - mean_of_f) > 1e-3  # F of the averages, not the average of F


def test_bcubed_of_the_degenerate_partitions():
    true = [0] * 4 + [1] * 3 + [2]
    singletons, everything = bcubed(true, range(8)), bcubed(true, [5] * 8)
    assert singletons[:2] == pytest.approx((1.0, 3 / 8))  # every class contributes 1 in all: 3 classes of 8
    assert everything[:2] == pytest.approx(((16 + 9 + 1) / 64, 1.0))
    assert bcubed(true, ["x"] * 4 + ["y"] * 3 + ["z"]) == (1.0, 1.0, 1.0)
    assert bcubed(["only"], [0]) == (1.0, 1.0, 1.0)


def test_bcubed_missing_documents_become_singletons():
    true = {"a": 0, "b": 0, "c": 0, "d": 1}
    expected = bcubed([0, 0, 0, 1], [0, 0, 1, 2])
    assert bcubed(true, {"b": 5, "a": 5}) == expected
    assert bcubed([0, 0, 0, 1], ["k", "k", None, None]) == expected
    assert bcubed(true, {}) == bcubed(true, {d: d for d in true})


labellings = st.integers(1, 25).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2))


@settings(max_examples=100, deadline=None)
@given(labellings, st.randoms(use_true_random=False))
def test_bcubed_equals_its_definition_and_knows_no_order_and_no_names(pair, random):
    true, predicted = pair
    scores = bcubed(true, predicted)
    assert scores == pytest.approx(literal_bcubed(true, predicted))
    swapped = bcubed(predicted, true)
    assert (swapped.recall, swapped.precision, swapped.f) == pytest.approx(tuple(scores))
    order = list(range(len(true)))
    random.shuffle(order)
    renamed = [f"cluster {predicted[i] * 17}" for i in order]
    assert bcubed([true[i] for i in order], renamed) == pytest.approx(tuple(scores))
    assert bcubed(np.array(true), jnp.array(predicted)) == pytest.approx(tuple(scores))


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0, 1], [0], "lengths differ: true 2, predicted 1"),
        ([], [], "at least one document, got 0"),
        ([0, None], [0, 1], "a label for every document"),
        ({"a": 0}, [0], "one is a mapping"),
        ({"a": 0}, {"b": 0}, "1 predicted documents are not in true .*'b'"),
    ],
)
def test_bcubed_refuses_bad_input(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        bcubed(true, predicted)


def test_link_average_precision_hand_worked():
    truth = [("a", "b"), ("c", "d"), ("e", "f")]
    ranked = [("b", "a", 0.9), ("a", "c", 0.8), ("c", "d", 0.7), ("b", "c", 0.1)]
    # Correct at ranks 1 and 3; (e, f) is never listed.
    assert link_average_precision(ranked, truth) == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert link_average_precision(ranked[::-1], truth) == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert link_average_precision([], truth) == 0
    assert link_average_precision([("a", "c", 1.0)], truth) == 0
    assert link_average_precision([(*link, 1.0) for link in truth], truth) == pytest.approx(1)


def test_link_average_precision_keeps_the_first_of_duplicates_and_drops_self_pairs():
    truth = [("a", "b"), ("c", "d")]
    base = [("a", "b", 0.2), ("a", "c", 0.5), ("c", "d", 0.9)]
    expected = (1 / 1 + 2 / 3) / 2
    assert link_average_precision(base, truth) == pytest.approx(expected)
    assert link_average_precision([*base, ("b", "a", 1.0)], truth) == pytest.approx(expected)
    assert link_average_precision([("b", "a", 1.0), *base], truth) == pytest.approx(1.0)  # here 1.0 comes first
    assert link_average_precision([("a", "a", 2.0), *base], truth) == pytest.approx(expected)
    assert link_average_precision(base, [*truth, ("b", "a")]) == pytest.approx(expected)


def test_link_average_precision_ranks_equal_scores_as_listed():
    truth = [("a", "b")]
    assert link_average_precision([("a", "b", 0.5), ("a", "c", 0.5)], truth) == 1
    assert link_average_precision([("a", "c", 0.5), ("a", "b", 0.5)], truth) == 0.5


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([("a", "b", 1.0)], [], "no true links"),
        ([("a", "b", 1.0)], [("a", "a")], "pairs a document with itself"),
        ([("a", "b", float("nan"))], [("a", "b")], "score of link .* is nan"),
    ],
)
def test_link_average_precision_refuses_bad_input(scores, truth, message):
    with pytest.raises(ValueError, match=message):
        link_average_precision(scores, truth)


def planted(authors=6, texts=5, dim=16, noise=0.25, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(authors, dim))
    labels = rng.permutation(np.repeat(np.arange(authors), texts))
    scale = rng.uniform(0.5, 5, size=(len(labels), 1))  # cosine must not see lengths
    return (centres[labels] + noise * rng.normal(size=(len(labels), dim))) * scale, labels


def test_complete_link_list_scores_as_sklearn_average_precision():
    embeddings, labels = planted(noise=1.0)
    links, truth = cosine_links(embeddings), links_within_classes(labels)
    assert len(links) == 30 * 29 // 2 and len(truth) == 6 * 10
    expected = average_precision_score([labels[i] == labels[j] for i, j, _ in links], [s for *_, s in links])
    assert 0.3 < expected < 0.99
    assert link_average_precision(links, truth) == pytest.approx(expected)


def test_cosine_links_and_class_links_hand_worked():
    links = cosine_links([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert [(i, j) for i, j, _ in links] == [(0, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose([s for *_, s in links], [0, 0.5**0.5, 0.5**0.5], atol=1e-12)
    assert links_within_classes(["x", "y", "x", "x"]) == [(0, 2), (0, 3), (2, 3)]


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 1.0])
def test_clusters_equal_those_of_sklearn(linkage, threshold):
    embeddings, _ = planted(noise=0.7)
    reference = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage=linkage, distance_threshold=threshold
    ).fit_predict(embeddings)
    labels = agglomerative_cosine(embeddings, threshold=threshold, linkage=linkage)
    assert adjusted_rand_score(reference, labels) == 1.0
    first = [int(np.flatnonzero(labels == k)[0]) for k in range(labels.max() + 1)]
    assert first == sorted(first)  # numbered in order of appearance, without gaps


def test_threshold_zero_joins_only_equal_directions_and_two_joins_everything():
    embeddings = np.array([[1.0, 2.0, 3.0], [-1.0, 0.2, 0.0], [2.0, 4.0, 6.0], [0.3, 0.1, 0.9]])
    np.testing.assert_array_equal(agglomerative_cosine(embeddings, threshold=0.0), [0, 1, 0, 2])
    np.testing.assert_array_equal(agglomerative_cosine(embeddings, threshold=2.0), [0, 0, 0, 0])
    np.testing.assert_array_equal(agglomerative_cosine(embeddings[:1], threshold=0.5), [0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0.01, 1.5))
def test_clustering_ignores_the_order_of_texts(seed, threshold):
    embeddings, _ = planted(noise=0.8, seed=seed)
    order = np.random.default_rng(seed).permutation(len(embeddings))
    here = agglomerative_cosine(embeddings, threshold=threshold)
    there = agglomerative_cosine(embeddings[order], threshold=threshold)
    assert adjusted_rand_score(here[order], there) == 1.0


def test_tuned_threshold_carries_over_to_unseen_problems():
    training = [planted(seed=seed) for seed in range(3)]
    tuned = tune_threshold(training)
    assert tuned.f == pytest.approx(max(tuned.mean_f)) and tuned.f > 0.95
    at = list(tuned.thresholds).index(tuned.threshold)
    by_hand = np.mean([bcubed(y, agglomerative_cosine(e, threshold=tuned.threshold)).f for e, y in training])
    assert tuned.mean_f[at] == pytest.approx(by_hand)
    embeddings, labels = planted(seed=99)
    assert bcubed(labels, agglomerative_cosine(embeddings, threshold=tuned.threshold)).f > 0.95


def test_tuning_takes_the_middle_of_the_first_best_stretch():
    # Two tight pairs at right angles: any threshold between the tiny and the right-angle distance is perfect.
    embeddings = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    tuned = tune_threshold([(embeddings, [0, 0, 1, 1])], thresholds=[0.5, 0.1, 0.3, 0.2, 0.4, 1.5])
    assert (tuned.f, tuned.threshold) == (1.0, 0.3)
    np.testing.assert_array_equal(tuned.thresholds, [0.1, 0.2, 0.3, 0.4, 0.5, 1.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agglomerative_cosine([[1.0, 0.0], [0.0, 0.0]], threshold=0.1), r"zero vector \(row 1\)"),
        (lambda: agglomerative_cosine([[1.0, np.nan]], threshold=0.1), "1 NaN"),
        (lambda: agglomerative_cosine([1.0, 2.0], threshold=0.1), "2 axes"),
        (lambda: agglomerative_cosine([[1.0, 0.0]], threshold=-0.1), "threshold must be a cosine distance"),
        (lambda: agglomerative_cosine([[1.0, 0.0]], threshold=float("nan")), "threshold must be"),
        (lambda: agglomerative_cosine([[1.0, 0.0]], threshold=0.1, linkage="ward"), "linkage must be"),
        (lambda: tune_threshold([]), "no training problems"),
        (lambda: tune_threshold([([[1.0, 0.0]], [0])]), "training problem 0 has a single text"),
        (lambda: tune_threshold([(np.eye(3), [0, 1])]), "lengths differ"),
        (lambda: tune_threshold([(np.eye(2), [0, 1])], thresholds=[-1.0]), "threshold must be"),
    ],
)
def test_clustering_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_partitions_of_four_documents_never_beat_the_truth():
    true = [0, 0, 1, 1]
    for predicted in itertools.product(range(4), repeat=4):
        scores = bcubed(true, list(predicted))
        perfect = adjusted_rand_score(true, predicted) == 1.0
        assert (scores.f == pytest.approx(1.0)) == perfect
