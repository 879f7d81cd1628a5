"""Retrieval measures against scikit-learn, against all orders of tied keys, and against brute force; bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.retrieval import (
    evaluate_cross_modal,
    evaluate_retrieval,
    mean_average_precision,
    mean_recall,
    mean_reciprocal_rank,
    ndcg_at_k,
    padded_relevance,
    ranks_from_counts,
    recall_at_k,
    relevant_share_at_k,
    retrieval_intervals,
)
from jaxcore.evaluation.similarity_search import RankCounts


def counts_of(scores, targets):
    """What the search counts, from a score matrix."""
    of_target = np.take_along_axis(scores, np.maximum(targets, 0), axis=1)
    above = (scores[:, None, :] > of_target[:, :, None]).sum(axis=2)
    equal = (scores[:, None, :] == of_target[:, :, None]).sum(axis=2) - 1
    return RankCounts(np.where(targets < 0, -1, above), np.where(targets < 0, 0, equal))


def graded_problem(seed=0, num_queries=40, num_keys=60, levels=None):
    """Scores (with `levels` distinct values: full of ties), padded targets, gains, and the dense relevance."""
    rng = np.random.default_rng(seed)
    shape = (num_queries, num_keys)
    scores = rng.normal(size=shape) if levels is None else rng.integers(levels, size=shape).astype(float)
    dense = np.zeros(shape)
    rows = [rng.permutation(num_keys)[: rng.integers(1, 7)] for _ in range(num_queries)]
    for row, relevant in zip(dense, rows, strict=True):
        row[relevant] = rng.integers(1, 4, len(relevant))
    targets = padded_relevance(rows)
    gains = np.take_along_axis(dense, np.maximum(targets, 0), axis=1)
    return scores, targets, gains, dense


# ---- against scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 8, 2, 1])
@pytest.mark.parametrize("k", [1, 5, 10, None])
def test_ndcg_is_that_of_scikit_learn_with_and_without_ties(levels, k):
    scores, targets, gains, dense = graded_problem(levels=levels)
    expected = ndcg_score(dense, scores, k=k)
    assert ndcg_at_k(counts_of(scores, targets), gains, k=k) == pytest.approx(expected, abs=1e-12)


def test_ndcg_without_gains_takes_every_target_alike():
    scores, targets, _, dense = graded_problem()
    assert ndcg_at_k(counts_of(scores, targets), k=7) == pytest.approx(ndcg_score(dense > 0, scores, k=7), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 8, 2, 1])
def test_map_is_that_of_scikit_learn_with_and_without_ties(levels):
    scores, targets, _, dense = graded_problem(levels=levels)
    counts = counts_of(scores, targets)
    each = [average_precision_score(truth > 0, row) for truth, row in zip(dense, scores, strict=True)]
    assert mean_average_precision(counts) == pytest.approx(np.mean(each), abs=1e-12)
    assert mean_average_precision(counts) == pytest.approx(
        label_ranking_average_precision_score(dense > 0, scores), abs=1e-12
    )


# ---- ties ------------------------------------------------------------------------------------------------------


def ranks_over_all_orders(scores, targets):
    """[orders, targets] ranks of the targets under every order of equal keys."""
    results = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            place = {key: rank for rank, key in enumerate(order, 1)}
            results.append(sorted(place[t] for t in targets))
    return np.array(results)


def test_ranks_of_ties_are_bounds_and_mean_over_all_orders():
    """Keys 1, 2, 4, 5 tie; 2 and 5 of them are relevant, and 6 below."""
    scores, relevant = np.array([3.0, 1.0, 1.0, 0.0, 1.0, 1.0, -1.0]), [2, 5, 6]
    counts = counts_of(scores[None], np.array([relevant]))
    every = ranks_over_all_orders(scores, relevant)
    for ties, reduce in (("pessimistic", np.max), ("average", np.mean), ("optimistic", np.min)):
        np.testing.assert_allclose(ranks_from_counts(counts, ties=ties)[0], reduce(every, axis=0))


def test_padding_and_the_order_of_targets_change_nothing():
    scores, targets, gains, _ = graded_problem(levels=5)
    shuffle = np.random.default_rng(1).permutation(targets.shape[1])
    wider = np.concatenate([targets[:, shuffle], np.full((len(targets), 3), -1)], axis=1)
    more_gains = np.concatenate([gains[:, shuffle], np.full((len(targets), 3), np.nan)], axis=1)
    plain, padded = counts_of(scores, targets), counts_of(scores, wider)
    for measure in (mean_reciprocal_rank, mean_average_precision, lambda c: recall_at_k(c, k=3)):
        assert measure(padded) == pytest.approx(measure(plain), abs=1e-15)
    assert ndcg_at_k(padded, more_gains) == pytest.approx(ndcg_at_k(plain, gains), abs=1e-15)


def test_a_collapsed_encoder_finds_nothing_unless_ties_are_broken_its_way():
    counts = RankCounts(np.zeros((6, 1), int), np.full((6, 1), 99))
    assert recall_at_k(counts, k=10) == 0.0
    assert recall_at_k(counts, k=10, ties="optimistic") == 1.0
    assert mean_reciprocal_rank(counts) == pytest.approx(0.01)
    assert mean_reciprocal_rank(counts, ties="average") == pytest.approx(1 / 50.5)


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    """Query 0: relevant keys at ranks 2 and 4; query 1: at rank 1, and no other."""
    counts = RankCounts(np.array([[3, 1], [0, -1]]), np.zeros((2, 2), int))
    assert recall_at_k(counts, k=1) == 0.5
    assert recall_at_k(counts, k=2) == 1.0
    assert relevant_share_at_k(counts, k=2) == 0.75
    assert mean_reciprocal_rank(counts) == 0.75
    assert mean_average_precision(counts) == pytest.approx((0.5 * (1 / 2 + 2 / 4) + 1) / 2)
    query = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert ndcg_at_k(counts, k=4) == pytest.approx((query + 1) / 2)
    one = RankCounts(np.array([[0], [9]]), np.zeros((2, 1), int))
    assert mean_recall(one, counts) == pytest.approx((0.5 + 0.5 + 1 + 0.5 + 1 + 1) / 6)


# ---- from embeddings ---------------------------------------------------------------------------------------------


def embeddings(seed=0, num_queries=70, num_keys=150, dim=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_queries, dim)).astype(np.float32), rng.normal(size=(num_keys, dim)).astype(np.float32)


def cosines(queries, keys):
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float64) @ (
        keys / np.linalg.norm(keys, axis=1, keepdims=True)
    ).T


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_evaluation_equals_measures_of_the_sorted_score_matrix(dtype):
    queries, keys = (jnp.asarray(x, dtype) for x in embeddings())
    _, targets, gains, dense = graded_problem(3, len(queries), len(keys))
    # Unit vectors of bfloat16 embeddings are bfloat16 again: the reference multiplies those.
    unit = [
        np.asarray((x / jnp.linalg.norm(x.astype(jnp.float32), axis=1, keepdims=True)).astype(dtype), np.float64)
        for x in (queries, keys)
    ]
    scores = unit[0] @ unit[1].T
    result = evaluate_retrieval(queries, keys, targets, gains=gains, ks=(1, 5, 20), query_block=32, key_block=64)
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_relevance = np.take_along_axis(dense > 0, order, axis=1)
    first = sorted_relevance.argmax(axis=1) + 1
    for k in (1, 5, 20):
        assert result.metrics[f"recall@{k}"] == pytest.approx((first <= k).mean())
        share = sorted_relevance[:, :k].sum(axis=1) / sorted_relevance.sum(axis=1)
        assert result.metrics[f"share@{k}"] == pytest.approx(share.mean())
        assert result.metrics[f"ndcg@{k}"] == pytest.approx(ndcg_score(dense, scores, k=k), abs=1e-9)
    assert result.metrics["mrr"] == pytest.approx((1 / first).mean())
    assert result.metrics["map"] == pytest.approx(label_ranking_average_precision_score(dense > 0, scores), abs=1e-9)
    assert result.metrics["median rank"] == np.median(first)
    for name, values in result.per_query.items():
        assert values.shape == (len(queries),)
        if name != "rank":
            assert values.mean() == result.metrics[name]


def test_ragged_lists_equal_their_padded_form():
    queries, keys = embeddings()
    _, targets, gains, _ = graded_problem(3, len(queries), len(keys))
    real = targets >= 0
    ragged = [row[mask].tolist() for row, mask in zip(targets, real, strict=True)]
    of_gains = [row[mask].tolist() for row, mask in zip(gains, real, strict=True)]
    padded = evaluate_retrieval(queries, keys, targets, gains=gains)
    assert evaluate_retrieval(queries, keys, ragged, gains=of_gains).metrics == padded.metrics
    mesh = make_mesh(MeshConfig())
    assert evaluate_retrieval(queries, keys, ragged, gains=of_gains, mesh=mesh).metrics == padded.metrics


def test_both_directions_of_images_with_several_captions():
    images, captions = embeddings(1, 30, 155)
    relevance = np.arange(150).reshape(30, 5)  # five captions each; the last five captions belong to none
    captions[:150] += 0.4 * np.repeat(images, 5, axis=0)
    result = evaluate_cross_modal(images, captions, relevance)
    scores = cosines(images, captions)
    of_images = [(np.argsort(-row)[:k] // 5 == i).any() for i, row in enumerate(scores) for k in (1, 5, 10)]
    of_captions = [c // 5 in np.argsort(-scores[:, c])[:k] for c in range(150) for k in (1, 5, 10)]
    assert len(result.backward.per_query["mrr"]) == 150
    assert result.mean_recall == pytest.approx((np.mean(of_images) + np.mean(of_captions)) / 2)
    assert 0.3 < result.mean_recall < 0.99
    both = mean_recall(result.forward.counts, result.backward.counts)
    assert both == pytest.approx(result.mean_recall)


def test_rotations_and_scales_change_nothing_under_cosine():
    queries, keys = embeddings()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    relevance = np.arange(len(queries))
    plain = evaluate_retrieval(queries, keys, relevance)
    turned = evaluate_retrieval(3 * queries @ rotation, keys @ rotation, relevance)
    assert turned.metrics == plain.metrics
    skewed = evaluate_retrieval(queries, keys * np.linspace(1, 9, len(keys))[:, None], relevance, normalize=False)
    assert skewed.metrics != plain.metrics


def test_intervals_cover_every_mean_and_respect_groups():
    queries, keys = embeddings()
    result = evaluate_retrieval(queries, keys, np.arange(len(queries)))
    intervals = retrieval_intervals(result, resamples=300)
    assert set(intervals) == set(result.metrics) - {"median rank"}
    share = result.metrics["recall@10"]
    half = 1.96 * np.sqrt(share * (1 - share) / len(queries))
    interval = intervals["recall@10"]
    np.testing.assert_allclose([interval.low, interval.high], [share - half, share + half], atol=0.4 * half)
    grouped = retrieval_intervals(result, groups=np.arange(len(queries)) // 5, resamples=100)
    assert grouped["mrr"].num_units == 14


# ---- bad input -----------------------------------------------------------------------------------------------------

FINE = RankCounts(np.array([[0, 3], [1, -1]]), np.zeros((2, 2), int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_at_k(FINE, k=0), "k must be an integer >= 1"),
        (lambda: recall_at_k(FINE, k=1, ties="best"), "ties must be"),
        (lambda: recall_at_k(RankCounts(FINE.above[0], FINE.equal[0]), k=1), r"two integer \[n, p\] arrays"),
        (lambda: recall_at_k(RankCounts(FINE.above * 1.0, FINE.equal), k=1), "got float64"),
        (lambda: mean_average_precision(RankCounts(FINE.above * 0 - 1, FINE.equal)), "2 queries have no target"),
        (lambda: mean_recall(FINE, FINE, ks=()), "ks is empty"),
        (lambda: ndcg_at_k(FINE, np.ones((2, 3))), r"shape of the targets \(2, 2\), got \(2, 3\)"),
        (lambda: ndcg_at_k(FINE, -np.ones((2, 2))), "finite and >= 0"),
        (lambda: ndcg_at_k(FINE, np.array([[1, 0], [0, 5]])), "1 queries have no key of positive gain, first query 1"),
        (lambda: padded_relevance([]), "relevance is empty"),
        (lambda: padded_relevance([[1], []]), "relevance of query 1"),
        (lambda: padded_relevance(np.ones((2, 2))), "got float64"),
        (
            lambda: evaluate_retrieval(*embeddings(), [[0]] * 3),
            r"targets must be integers of shape \(70, 1\), got int32 \(3, 1\)",
        ),
        (lambda: evaluate_retrieval(*embeddings(), [[150]] * 70), r"targets must lie in -1\.\.149"),
        (lambda: evaluate_retrieval(*embeddings(), [[1, 2]] * 70, gains=[[1]] * 70), "their lengths differ"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_counts_on_device_serve_like_numpy():
    assert mean_average_precision(jax.tree.map(jnp.asarray, FINE)) == mean_average_precision(FINE)
