"""Centroid attribution and the N-way protocol against loops in float64, known worlds, and chance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import jaxcore.evaluation.attribution_accuracy as module
from jaxcore.evaluation import (
    anchor_replica_accuracy,
    bootstrap_interval,
    centroid_attribution,
    macro_f1_open_set,
    nway_grid,
    nway_protocol,
)


def world(authors=30, texts=12, dim=16, noise=1.0, seed=0):
    """Texts of authors as noisy copies of a direction each, shuffled, of all lengths."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.repeat(np.arange(authors), texts))
    centres = rng.normal(size=(authors, dim))
    vectors = centres[names] + noise * rng.normal(size=(len(names), dim))
    return vectors * rng.uniform(0.1, 10, size=(len(names), 1)), names


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_centroid_scores_equal_a_float64_loop():
    rng = np.random.default_rng(0)
    support, queries = (
        rng.normal(size=(4, 3, 8)) * rng.uniform(0.1, 10, size=(4, 3, 1)),
        rng.normal(size=(5, 8)),
    )
    expected = [
        [cosine(query, np.mean([text / np.linalg.norm(text) for text in texts], axis=0)) for texts in support]
        for query in queries
    ]
    np.testing.assert_allclose(centroid_attribution(support, queries), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(centroid_attribution)(support, queries), expected, atol=1e-6)


def test_centroid_is_of_normalised_texts_and_renormalised():
    support = jnp.array([[[100.0, 0.0], [0.0, 1.0]]])  # the long text must not dominate
    scores = centroid_attribution(support, jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(scores[:, 0], [1.0, np.sqrt(0.5)], atol=1e-6)  # 1, not the mean's norm 0.707


def test_zero_vectors_score_zero():
    scores = centroid_attribution(jnp.zeros((2, 1, 3)), jnp.ones((1, 3)))
    np.testing.assert_array_equal(scores, 0)


def test_bfloat16_embeddings_are_scored_in_float32():
    support, queries = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((1, 4), jnp.bfloat16)
    assert centroid_attribution(support, queries).dtype == jnp.float32


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_centroid_attribution_commutes_with_permutations_and_rotations(seed):
    rng = np.random.default_rng(seed)
    support, queries = rng.normal(size=(5, 3, 6)), rng.normal(size=(4, 6))
    scores = np.asarray(centroid_attribution(support, queries))
    authors, texts, asked = rng.permutation(5), rng.permutation(3), rng.permutation(4)
    moved = centroid_attribution(support[authors][:, texts], queries[asked])
    np.testing.assert_allclose(moved, scores[asked][:, authors], atol=1e-6)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    np.testing.assert_allclose(centroid_attribution(support @ rotation, 3 * queries @ rotation), scores, atol=1e-5)


@pytest.mark.parametrize(
    ("support", "queries", "message"),
    [
        ((3, 4), (2, 4), r"got \(3, 4\) and \(2, 4\)"),
        ((3, 2, 4), (2, 5), r"got \(3, 2, 4\) and \(2, 5\)"),
        ((3, 2, 4), (4,), r"got \(3, 2, 4\) and \(4,\)"),
        ((3, 0, 4), (2, 4), "support is empty"),
    ],
)
def test_centroid_attribution_refuses_other_shapes(support, queries, message):
    with pytest.raises(ValueError, match=message):
        centroid_attribution(jnp.ones(support), jnp.ones(queries))


def test_anchor_replica_accuracy_averages_both_directions():
    # Anchor 0 and anchor 1 both prefer replica 0; replica 0 prefers anchor 0, replica 1 anchor 1.
    anchors = jnp.array([[1.0, 0.0], [0.8, 0.6]])
    replicas = jnp.array([[0.98, 0.2], [0.0, 1.0]])
    assert float(anchor_replica_accuracy(anchors, replicas)) == pytest.approx((1 / 2 + 2 / 2) / 2)
    assert float(anchor_replica_accuracy(replicas, anchors)) == pytest.approx(3 / 4)
    assert float(jax.jit(anchor_replica_accuracy, static_argnames="top_k")(anchors, replicas, top_k=2)) == 1
    assert float(anchor_replica_accuracy(jnp.ones((4, 3)), jnp.ones((4, 3)), top_k=3)) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        anchor_replica_accuracy(anchors, jnp.ones((3, 2)))


# --- the N-way protocol


def test_protocol_equals_a_plain_loop_over_the_same_draws(monkeypatch):
    vectors, names = world(authors=9, noise=2.0)
    drawn, draw = [], module._draw_texts

    def recorded(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(module, "_draw_texts", recorded)
    result = nway_protocol(vectors, names, num_candidates=6, num_support=3, num_queries=2, draws=7, rng=0)
    top1, top5 = [], []
    for support, query in drawn:
        centroids = [np.mean([v / np.linalg.norm(v) for v in vectors[texts]], axis=0) for texts in support]
        ranks = [
            sum(cosine(vectors[q], c) > cosine(vectors[q], centroids[author]) for c in centroids)
            for author, texts in enumerate(query)
            for q in texts
        ]
        top1.append(np.mean([rank < 1 for rank in ranks]))
        top5.append(np.mean([rank < 5 for rank in ranks]))
    np.testing.assert_allclose(result.per_draw, top1)
    np.testing.assert_allclose(result.per_draw_top5, top5)
    assert result.mean == pytest.approx(np.mean(top1)) and result.sd == pytest.approx(np.std(top1, ddof=1))
    assert result.top5 == pytest.approx(np.mean(top5)) and 0.3 < result.mean < result.top5
    assert (result.chance, result.chance_top5) == (1 / 6, 5 / 6)
    interval = result.confidence_interval
    assert interval.low <= result.mean <= interval.high and interval.num_units == 7


def test_every_draw_is_of_new_authors_with_disjoint_texts_of_their_own(monkeypatch):
    vectors, names = world(authors=20, texts=5)
    drawn, draw = [], module._draw_texts
    monkeypatch.setattr(module, "_draw_texts", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    result = nway_protocol(vectors, names, num_candidates=8, num_support=3, num_queries=2, draws=40, rng=1)
    chosen = set()
    for row, (support, query) in enumerate(drawn):
        owners = names[support[:, 0]]
        assert len(set(owners)) == 8
        assert (names[support] == owners[:, None]).all() and (names[query] == owners[:, None]).all()
        for texts in np.concatenate([support, query], axis=1):
            assert len(set(texts)) == 5
        np.testing.assert_array_equal(result.authors[row], np.repeat(owners, 2))
        chosen.add(tuple(sorted(owners)))
    assert len(chosen) == 40  # 40 draws of 8 of 20 authors practically never repeat
    assert {author for authors in chosen for author in authors} == set(range(20))


def test_draws_are_uniform_over_authors_and_texts(monkeypatch):
    vectors, names = world(authors=6, texts=4)
    drawn, draw = [], module._draw_texts
    monkeypatch.setattr(module, "_draw_texts", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    nway_protocol(vectors, names, num_candidates=3, num_support=1, draws=2000, rng=2)
    for index in (0, 1):  # every text is support, and query, with probability 1/2 x 1/4
        counts = np.bincount(np.concatenate([pair[index].ravel() for pair in drawn]), minlength=24)
        assert abs(counts - 250).max() < 5 * np.sqrt(250)
    pairs = {(int(s[0]), int(q[0])) for support, query in drawn for s, q in zip(support, query, strict=True)}
    assert len(pairs) == 6 * 4 * 3  # every ordered pair of an author's texts occurs


masks = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(masks, min_size=2, max_size=2), support=st.integers(1, 3), queries=st.integers(1, 3))
def test_masks_are_obeyed_and_every_feasible_author_is_usable(rows, support, queries):
    """Feasibility against brute force over all choices; chosen texts obey masks and are disjoint."""
    names = np.repeat([0, 1], 6)
    may_support, may_query = np.array(rows).reshape(12, 2).T

    def feasible(author):
        own = np.flatnonzero(names == author)
        return any(
            may_query[[t for t in own if t not in texts]].sum() >= queries
            for texts in itertools.combinations(own[may_support[own]], support)
        )

    pool = module._text_pool(np.ones((12, 2)), names, may_support, may_query)
    if not (feasible(0) and feasible(1)):
        with pytest.raises(ValueError, match="num_candidates is 2, but only"):
            module._eligible(pool, 2, support, queries)
        return
    authors = module._eligible(pool, 2, support, queries)
    for seed in range(3):
        chosen, asked = module._draw_texts(pool, authors, support, queries, np.random.default_rng(seed))
        assert chosen.shape == (2, support) and asked.shape == (2, queries)
        assert may_support[chosen].all() and may_query[asked].all()
        for author in (0, 1):
            texts = [*chosen[author], *asked[author]]
            assert len(set(texts)) == support + queries and set(names[texts]) == {author}


def test_topic_shortcut_shows_up_only_when_topics_are_not_held_apart():
    """Authors write about two topics each; a query on the other topic than the support must be harder."""
    rng = np.random.default_rng(5)
    authors, topics = np.repeat(np.arange(40), 8), np.tile(np.arange(8), 40)
    style, topic = 0.2 * rng.normal(size=(40, 12)), rng.normal(size=(40, 2, 12))
    vectors = style[authors] + topic[authors, topics // 4] + 0.3 * rng.normal(size=(320, 12))
    options = {"num_candidates": 20, "num_support": 2, "draws": 30, "rng": 0}
    mixed = nway_protocol(vectors, authors, **options)
    apart = nway_protocol(vectors, authors, support_mask=topics < 4, query_mask=topics >= 4, **options)
    assert mixed.mean > apart.mean + 0.3


def test_accuracy_is_one_for_separable_authors_and_chance_for_noise_and_for_collapsed_embeddings():
    vectors, names = world(authors=40, noise=0.01)
    options = {"num_candidates": 10, "num_support": 2, "draws": 50, "rng": 0}
    assert nway_protocol(vectors, names, **options).mean == 1.0
    noise = nway_protocol(np.random.default_rng(0).normal(size=vectors.shape), names, **options)
    assert noise.mean == pytest.approx(0.1, abs=0.04) and noise.top5 == pytest.approx(0.5, abs=0.07)
    collapsed = nway_protocol(np.tile([1.0, 0.0], (480, 1)), names, **options)
    assert collapsed.mean == pytest.approx(collapsed.chance)
    assert collapsed.top5 == pytest.approx(collapsed.chance_top5)


def test_more_support_helps_and_more_candidates_hurt():
    vectors, names = world(authors=60, noise=2.5)
    grid = nway_grid(vectors, names, candidate_counts=(5, 20, 60), support_counts=(8, 1, 3), draws=60, rng=0)
    assert list(grid) == [(n, s) for n in (5, 20, 60) for s in (1, 3, 8)]
    for n in (5, 20, 60):
        assert grid[n, 1].mean < grid[n, 3].mean < grid[n, 8].mean
        np.testing.assert_array_equal(grid[n, 1].authors, grid[n, 8].authors)  # paired over draws
    for s in (1, 3, 8):
        assert grid[5, s].mean > grid[20, s].mean > grid[60, s].mean


def test_protocol_is_reproducible_and_accepts_names_and_generators():
    vectors, names = world()
    labels = np.array([f"author {name}" for name in names])
    options = {"num_candidates": 10, "num_support": 2, "draws": 20}
    first = nway_protocol(vectors, labels, rng=3, **options)
    again = nway_protocol(jnp.asarray(vectors), list(labels), rng=np.random.default_rng(3), **options)
    np.testing.assert_array_equal(first.per_draw, again.per_draw)
    assert set(first.authors.ravel()) <= set(labels)
    other = nway_protocol(vectors, labels, rng=4, **options)
    assert not np.array_equal(first.authors, other.authors)


def test_hits_can_be_resampled_by_author():
    vectors, names = world(authors=40, noise=2.0)
    result = nway_protocol(vectors, names, num_candidates=20, num_support=2, draws=50, rng=0)
    assert result.hits.shape == result.authors.shape == (50, 20)
    interval = bootstrap_interval(result.hits.ravel(), groups=result.authors.ravel())
    assert interval.estimate == pytest.approx(result.mean) and interval.num_units == 40
    # The pool of 40 authors says less about other authors than 50 draws from it suggest.
    assert interval.high - interval.low > result.confidence_interval.high - result.confidence_interval.low


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_candidates": 31},
            "num_candidates is 31, but only 30 of 30 authors have 2 support and 1 other query",
        ),
        ({"num_support": 12}, r"only 0 of 30 authors have 12 support .*\(at most 12 support"),
        ({"num_queries": 11}, "only 0 of 30 authors have 2 support and 11 other"),
        ({"query_mask": np.zeros(360)}, "and 0 query texts, 12 in all"),
        ({"support_mask": np.ones(3)}, "lengths differ: embeddings 360, support_mask 3"),
        ({"query_mask": np.full(360, 2)}, "query_mask must be 0 or 1"),
        ({"num_candidates": 1}, "num_candidates must be an integer >= 2, got 1"),
        ({"num_support": 0}, "num_support must be an integer >= 1, got 0"),
        ({"num_queries": 0}, "num_queries must be an integer >= 1"),
        ({"draws": 1}, "draws must be an integer >= 2"),
        ({"num_support": 2.0}, "num_support must be an integer"),
        ({"level": 2}, "level must lie strictly between 0 and 1"),
    ],
)
def test_protocol_refuses_what_the_pool_cannot_give(options, message):
    vectors, names = world()
    settled = {"num_candidates": 10, "num_support": 2, "draws": 3, "rng": 0} | options
    with pytest.raises(ValueError, match=message) as error:
        nway_protocol(vectors, names, **settled)
    assert "\n" not in str(error.value)


def test_protocol_refuses_bad_arrays_and_empty_grids():
    vectors, names = world()
    options = {"num_candidates": 10, "num_support": 2, "rng": 0}
    with pytest.raises(ValueError, match="embeddings has 1 NaN"):
        nway_protocol(np.where(np.arange(360 * 16).reshape(360, 16) == 5, np.nan, vectors), names, **options)
    with pytest.raises(ValueError, match="lengths differ: embeddings 360, authors 359"):
        nway_protocol(vectors, names[:-1], **options)
    with pytest.raises(ValueError, match="embeddings must have 2 axes"):
        nway_protocol(vectors[:, 0], names, **options)
    with pytest.raises(ValueError, match="the grid is empty"):
        nway_grid(vectors, names, candidate_counts=(), support_counts=(1,), rng=0)


# --- open sets


def test_open_set_macro_f1_hand_worked():
    true = ["a", "a", "b", "b", "<UNK>", "<UNK>"]
    predicted = ["a", "<UNK>", "b", "a", "b", "<UNK>"]
    # a: TP 1, FP 1 (the text of b), FN 1 -> 1/2. b: TP 1, FP 1 (the unknown author's text), FN 1 -> 1/2.
    assert macro_f1_open_set(true, predicted, unknown="<UNK>") == pytest.approx(0.5)
    rejected = ["a", "<UNK>", "b", "a", "<UNK>", "<UNK>"]
    # Rejecting the unknown text restores the precision of b: 2/3; UNK itself is never averaged.
    assert macro_f1_open_set(true, rejected, unknown="<UNK>") == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_open_set_predictions_outside_the_candidates_count_as_unknown():
    true = ["a", "b", "?"]
    assert macro_f1_open_set(true, ["a", "stranger", "?"], unknown="?") == macro_f1_open_set(
        true, ["a", "?", "?"], unknown="?"
    )
    assert macro_f1_open_set(true, ["a", "stranger", "?"], unknown="?") == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_open_set_macro_f1_equals_the_class_by_class_definition(rows, seed):
    true, predicted = (list(column) for column in zip(*rows, strict=True))
    authors = sorted(set(true) - {0})
    if not authors:
        with pytest.raises(ValueError, match="no true author besides 0"):
            macro_f1_open_set(true, predicted, unknown=0)
        return
    expected = np.mean(
        [f1_score([t == c for t in true], [p == c for p in predicted], zero_division=0) for c in authors]
    )
    assert macro_f1_open_set(true, predicted, unknown=0) == pytest.approx(expected)
    order = np.random.default_rng(seed).permutation(len(rows))
    moved = macro_f1_open_set([true[i] for i in order], [predicted[i] for i in order], unknown=0)
    assert moved == pytest.approx(expected)


def test_open_set_macro_f1_refuses_different_lengths():
    with pytest.raises(ValueError, match="lengths differ: true 2, predicted 1"):
        macro_f1_open_set(["a", "b"], ["a"], unknown="?")
