"""Partitions: scores against their definitions, clusterings against exhaustive search and their criteria; bad input."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.evaluation.partitions import (
    evaluate_partitions,
    kmeans_clusters,
    linkage_clusters,
    partition_scores,
)


def entropy(labels):
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -(shares * np.log(shares)).sum()


def conditional_entropy(of, given_labels):
    return sum(np.mean(given_labels == g) * entropy(of[given_labels == g]) for g in np.unique(given_labels))


def defined_scores(true, predicted):
    """V-measure, h, c, geometric NMI, adjusted Rand, purity, assignment, each from its definition, slowly."""
    n = len(true)
    homogeneity = 1 - conditional_entropy(true, predicted) / entropy(true)
    completeness = 1 - conditional_entropy(predicted, true) / entropy(predicted)
    information = entropy(true) - conditional_entropy(true, predicted)
    pairs = list(itertools.combinations(range(n), 2))
    same_class = np.array([true[i] == true[j] for i, j in pairs])
    same_cluster = np.array([predicted[i] == predicted[j] for i, j in pairs])
    expected = same_class.sum() * same_cluster.sum() / len(pairs)
    largest = (same_class.sum() + same_cluster.sum()) / 2
    classes, clusters = np.unique(true), np.unique(predicted)
    table = np.array([[np.sum((true == a) & (predicted == b)) for b in clusters] for a in classes])
    table = table if len(classes) <= len(clusters) else table.T
    assignment = max(
        sum(table[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(table.shape[1]), table.shape[0])
    )
    return {
        "homogeneity": homogeneity,
        "completeness": completeness,
        "v_measure": 2 * information / (entropy(true) + entropy(predicted)),
        "normalized_mutual_information": information / math.sqrt(entropy(true) * entropy(predicted)),
        "adjusted_rand_index": (np.sum(same_class & same_cluster) - expected) / (largest - expected),
        "purity": sum(max(np.sum((predicted == b) & (true == a)) for a in classes) for b in clusters) / n,
        "assignment_accuracy": assignment / n,
    }


# ---- scores --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=4, max_size=25))
def test_scores_are_their_definitions(labels):
    true, predicted = np.array(labels).T
    if len(np.unique(true)) < 2 or len(np.unique(predicted)) < 2 or len(np.unique(true)) == len(true):
        return
    scores = partition_scores(true, predicted)._asdict()
    for name, value in defined_scores(true, predicted).items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name


def test_names_of_clusters_do_not_matter_and_equal_partitions_score_one():
    true = np.array(["a", "b", "b", "c", "c", "c"])
    assert partition_scores(true, [9, 4, 4, 7, 7, 7]) == pytest.approx([1.0] * 8)


def test_adjusted_scores_of_a_random_fine_partition_are_zero_where_the_others_flatter_it():
    rng = np.random.default_rng(0)
    scores = partition_scores(rng.integers(5, size=400), rng.integers(200, size=400))
    assert abs(scores.adjusted_mutual_information) < 0.05 and abs(scores.adjusted_rand_index) < 0.05
    assert scores.homogeneity > 0.4 and scores.purity > 0.5  # by chance: 0 and 0.2


def test_adjusted_mutual_information_subtracts_the_mean_over_permutations():
    true, predicted = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 0])
    information = [
        entropy(true) - conditional_entropy(true, np.array(order)) for order in set(itertools.permutations(predicted))
    ]
    expected, top = np.mean(information), (entropy(true) + entropy(predicted)) / 2
    measured = entropy(true) - conditional_entropy(true, predicted)
    score = partition_scores(true, predicted).adjusted_mutual_information
    assert score == pytest.approx((measured - expected) / (top - expected), abs=1e-9)


def test_a_single_cluster_or_class_is_finite_and_carries_no_information():
    one_cluster = partition_scores([0, 0, 1, 1, 1], [0] * 5)
    assert (one_cluster.v_measure, one_cluster.normalized_mutual_information) == (0.0, 0.0)
    assert (one_cluster.purity, one_cluster.assignment_accuracy, one_cluster.adjusted_rand_index) == (0.6, 0.6, 0.0)
    one_class = partition_scores([0] * 4, [0, 0, 1, 1])
    assert (one_class.v_measure, one_class.normalized_mutual_information, one_class.purity) == (0.0, 0.0, 1.0)
    assert partition_scores([3], [8]) == pytest.approx([1.0] * 8)


# ---- clusterings ---------------------------------------------------------------------------------------------------


def sum_of_squares(rows, labels):
    return sum(((rows[labels == c] - rows[labels == c].mean(axis=0)) ** 2).sum() for c in np.unique(labels))


def test_kmeans_finds_the_best_of_all_partitions_of_a_few_rows():
    rows = np.random.default_rng(0).normal(size=(9, 2))
    best = min(
        sum_of_squares(rows, np.array(labels))
        for labels in itertools.product(range(3), repeat=9)
        if len(set(labels)) == 3
    )
    found = kmeans_clusters(rows, num_clusters=3, restarts=20, normalize=False)
    assert sum_of_squares(rows, found) == pytest.approx(best)


def directions(seed=0, per_class=40, spread=0.15):
    """Three directions, lengths over two decades: apart by angle, mixed by distance."""
    rng = np.random.default_rng(seed)
    angles = np.repeat([0.2, 1.2, 2.6], per_class) + spread * rng.normal(size=3 * per_class)
    lengths = 10 ** rng.uniform(-1, 1, 3 * per_class)
    return lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), np.repeat([5, 6, 7], per_class)


@pytest.mark.parametrize("batch_size", [None, 32])
def test_normalising_finds_directions_whatever_the_lengths(batch_size):
    rows, labels = directions()
    found = kmeans_clusters(rows, num_clusters=3, batch_size=batch_size)
    assert partition_scores(labels, found).adjusted_rand_index > 0.95
    raw = kmeans_clusters(rows, num_clusters=3, batch_size=batch_size, normalize=False)
    assert partition_scores(labels, raw).adjusted_rand_index < 0.7


def test_restarts_and_seed_decide_the_result_and_nothing_else_does():
    rows = np.random.default_rng(1).normal(size=(200, 6))
    one, many = (kmeans_clusters(rows, num_clusters=12, restarts=r, normalize=False) for r in (1, 20))
    assert sum_of_squares(rows, many) < sum_of_squares(rows, one)
    np.testing.assert_array_equal(many, kmeans_clusters(rows, num_clusters=12, restarts=20, normalize=False))


def test_linkages_separate_a_chain_from_blobs():
    """Points along an arc with one gap: single linkage cuts at the gap, complete linkage by extent."""
    angles = np.concatenate([np.linspace(0, 1.4, 29), np.linspace(1.55, 1.7, 4)])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    single = linkage_clusters(rows, num_clusters=2, linkage="single")
    assert np.flatnonzero(np.diff(single)).tolist() == [28]
    complete = linkage_clusters(5 * rows, num_clusters=2, linkage="complete")
    assert len(np.flatnonzero(np.diff(complete))) == 1 and np.flatnonzero(np.diff(complete))[0] < 28


@pytest.mark.parametrize("linkage", ["average", "complete", "ward"])
def test_linkage_finds_directions(linkage):
    rows, labels = directions(spread=0.1)
    scores = partition_scores(labels, linkage_clusters(rows, num_clusters=3, linkage=linkage))
    assert scores.v_measure > 0.95 and scores.assignment_accuracy > 0.95


def test_evaluation_takes_as_many_clusters_as_classes():
    rows, labels = directions()
    scores = evaluate_partitions(rows, labels, linkages=("average", "ward"))
    assert list(scores) == ["kmeans", "average", "ward"]
    assert scores["kmeans"] == partition_scores(labels, kmeans_clusters(rows, num_clusters=3))
    finer = evaluate_partitions(rows, labels, num_clusters=12, linkages=())
    assert finer["kmeans"].completeness < scores["kmeans"].completeness


# ---- bad input -----------------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(5, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition_scores([1, 2], [1]), "true 2, predicted 1"),
        (lambda: partition_scores([], []), "true must be a non-empty vector"),
        (lambda: partition_scores([1.0, np.nan], [1, 2]), "true has NaN"),
        (lambda: kmeans_clusters(ROWS, num_clusters=6), "5 rows cannot form 6 clusters"),
        (lambda: kmeans_clusters(ROWS, num_clusters=0), "num_clusters must be an integer >= 1"),
        (lambda: kmeans_clusters(ROWS, num_clusters=2, restarts=0), "restarts must be"),
        (lambda: kmeans_clusters(ROWS, num_clusters=2, batch_size=0), "batch_size must be"),
        (lambda: kmeans_clusters(ROWS[0], num_clusters=1), "embeddings must have 2 axes"),
        (lambda: linkage_clusters(ROWS * np.nan, num_clusters=2), "embeddings has 10 NaN"),
        (lambda: linkage_clusters(ROWS, num_clusters=2, linkage="median"), "linkage must be"),
        (lambda: evaluate_partitions(ROWS, [1, 2]), "embeddings 5, labels 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
