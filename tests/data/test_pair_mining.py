"""Nearest neighbours against brute force, on any mesh and block size; mined candidates and their features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.data.pair_mining import (
    AT_RANDOM,
    BY_MEANING,
    BY_SURFACE,
    _nearest,
    duplicate_groups,
    mine_candidates,
    nearest_by_meaning,
    random_pairs,
)
from jaxcore.data.surface_similarity import surface_similarity
from jaxcore.distributed import MeshConfig, make_mesh

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(101, 12)).astype(np.float32)


def brute_force(vectors, queries, k, allowed):
    unit = lambda x: x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)  # noqa: E731
    scores = np.where(allowed, unit(queries) @ unit(vectors).T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    return np.where(np.isfinite(best), order, -1), np.where(np.isfinite(best), best, -1)


@pytest.mark.parametrize("block", [1, 7, 50, 101, 4096])
def test_equals_brute_force_at_every_block_size(block):
    found = nearest_by_meaning(jnp.asarray(VECTORS), 6, block=block)
    indices, similarity = brute_force(VECTORS, VECTORS, 6, ~np.eye(101, dtype=bool))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(data=2, fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_a_mesh_gives_the_same_neighbours(config):
    one = nearest_by_meaning(jnp.asarray(VECTORS), 9, block=5)
    spread = nearest_by_meaning(jnp.asarray(VECTORS), 9, block=5, mesh=make_mesh(config))
    np.testing.assert_array_equal(spread.indices, one.indices)
    np.testing.assert_allclose(spread.similarity, one.similarity, atol=1e-6)


def test_groups_gate_and_queries():
    queries = RNG.normal(size=(13, 12)).astype(np.float32)
    groups, query_groups = np.arange(101) % 10, np.arange(13) % 10 - 1
    options = {"groups": jnp.asarray(groups), "query_groups": jnp.asarray(query_groups), "max_similarity": 0.4}
    found = nearest_by_meaning(jnp.asarray(VECTORS), 70, queries=jnp.asarray(queries), block=16, **options)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    allowed = (query_groups[:, None] != groups) & (unit(queries) @ unit(VECTORS).T <= 0.4)
    indices, similarity = brute_force(VECTORS, queries, 70, allowed)
    np.testing.assert_array_equal(np.asarray(found.indices) == -1, indices == -1)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    assert (np.asarray(found.similarity) <= 0.4).all()


def test_ties_go_to_the_lower_index_on_any_mesh():
    vectors = jnp.ones((33, 3))
    for mesh in (None, make_mesh(MeshConfig())):
        found = nearest_by_meaning(vectors, 4, block=3, mesh=mesh)
        assert found.indices[0].tolist() == [1, 2, 3, 4] and found.indices[2].tolist() == [0, 1, 3, 4]


def test_bfloat16_and_zero_vectors():
    rounded = jnp.asarray(VECTORS, jnp.bfloat16).at[5].set(0)
    found = nearest_by_meaning(rounded, 3)
    assert found.similarity.dtype == jnp.float32
    np.testing.assert_allclose(found.similarity[5], 0)
    exact = nearest_by_meaning(rounded.astype(jnp.float32), 3)
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=2e-2)


def test_a_million_rows_need_no_score_matrix():
    count, dim, k = 1_000_000, 64, 32
    shape = lambda *dims, dtype=jnp.float32: jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
    ids = shape(count, dtype=jnp.int32)
    compiled = _nearest.lower(
        shape(count, dim), ids, shape(count, dim), ids, shape(), k=k, block=1024, mesh=None
    ).compile()
    vectors_and_answer = count * (2 * dim + 4 * k) * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * vectors_and_answer  # all pairs: 4 TB


def corpus(count=200, seed=1):
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 120, (count, 8)) * (np.arange(8) < rng.integers(3, 9, (count, 1)))
    words[10] = words[11] = words[12]
    return rng.normal(size=(count, 6)).astype(np.float32), words.astype(np.int32)


def mine(**options):
    vectors, words = corpus()
    return mine_candidates(vectors, words, **({"num_meaning": 6, "num_surface": 4, "num_random": 5} | options))


def test_candidates_are_distinct_and_never_duplicates_of_the_anchor():
    _, words = corpus()
    mined = mine()
    assert mined.ids.shape == (200, 15) and mined.ids.dtype == np.int32 and (mined.ids >= 0).all()
    for anchor, row in enumerate(mined.ids):
        assert len(set(row)) == 15
        assert not any((words[anchor] == words[other]).all() for other in row)


def test_features_are_those_of_the_pairs_and_lists_are_the_nearest():
    vectors, words = corpus()
    mined = mine()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    anchors = np.repeat(np.arange(200), 15)
    partners = mined.ids.reshape(-1)
    lengths = (words > 0).sum(1)
    gap = np.abs(lengths[anchors] - lengths[partners]) / np.maximum(lengths[anchors], lengths[partners])
    for name, expected in (
        ("meaning", (unit[anchors] * unit[partners]).sum(1)),
        ("surface", surface_similarity(words[anchors], words[partners])),
        ("length_gap", gap),
    ):
        assert getattr(mined, name).dtype == np.float16
        np.testing.assert_allclose(getattr(mined, name).reshape(-1), expected, atol=1e-3)
    same = (words[:, None] == words[None]).all(2)
    indices, _ = brute_force(vectors, vectors, 6, ~same)
    np.testing.assert_array_equal(mined.ids[:, :6], indices)
    assert (mined.source[:, :6] == BY_MEANING).all()
    found = mined.source == BY_SURFACE
    assert (found.sum(1) <= 4).all() and found.sum() > 600
    assert mined.surface[found].mean() > 3 * mined.surface[mined.source == AT_RANDOM].mean()


def test_mining_is_deterministic_whatever_the_mesh_and_is_cached(tmp_path, monkeypatch):
    first = mine(seed=3)
    spread = mine(seed=3, mesh=make_mesh(MeshConfig()), block=8, cache_dir=str(tmp_path))
    for name in first._fields:
        np.testing.assert_array_equal(getattr(spread, name), getattr(first, name))
    monkeypatch.setattr("jaxcore.data.pair_mining.nearest_by_surface", None)  # calling it would fail
    cached = mine(seed=3, cache_dir=str(tmp_path))
    np.testing.assert_array_equal(cached.ids, first.ids)
    assert isinstance(cached.ids, np.memmap)
    with pytest.raises(TypeError):
        mine(seed=4, cache_dir=str(tmp_path))


def test_a_corpus_with_few_different_sentences_leaves_places_empty():
    words = np.repeat(np.array([[1, 2, 0], [3, 4, 0], [5, 6, 7]]), 10, axis=0)
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    mined = mine_candidates(vectors, words, num_meaning=10, num_surface=5, num_random=10)
    for anchor, row in enumerate(mined.ids):
        found = row[row >= 0]
        assert 15 <= len(found) <= 20 and len(set(found)) == len(found)
        assert (found // 10 != anchor // 10).all()
    assert (mined.meaning[mined.ids < 0] == -1).all()


def test_duplicate_groups_ignore_padding():
    rows = np.array([[4, 5, 0], [0, 4, 5], [5, 4, 0], [4, 5, 0]])
    assert duplicate_groups(rows).tolist() == [0, 0, 1, 0]


def test_random_pairs_are_of_different_groups_and_uniform():
    groups = np.array([0, 0, 1, 2])
    first, second = random_pairs(4, num_pairs=20_000, seed=0, groups=groups)
    assert (groups[first] != groups[second]).all()
    counts = np.bincount(first * 4 + second, minlength=16).reshape(4, 4)
    expected = 20_000 / 10
    allowed = groups[:, None] != groups
    assert (np.abs(counts[allowed] - expected) < 5 * np.sqrt(expected)).all()
    with pytest.raises(ValueError, match="two different rows"):
        random_pairs(3, num_pairs=1, seed=0, groups=np.zeros(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_by_meaning(jnp.zeros((3, 2)), 4), "k must be in 1..3"),
        (lambda: nearest_by_meaning(jnp.zeros((3, 2)), 1, block=0), "block must be"),
        (lambda: nearest_by_meaning(jnp.zeros(3), 1), "must be floating .n, dim."),
        (lambda: nearest_by_meaning(jnp.zeros((3, 2)), 1, queries=jnp.zeros((3, 4))), r"queries must be \[q, 2\]"),
        (lambda: nearest_by_meaning(jnp.zeros((3, 2)), 1, groups=jnp.zeros(4)), r"groups must be \[3\]"),
        (lambda: nearest_by_meaning(jnp.zeros((3, 2)), 1, query_groups=jnp.zeros(3)), "belong to queries"),
        (lambda: mine(num_meaning=-1), "not all 0"),
        (lambda: mine(num_meaning=199), "need more than 200 sentences"),
        (lambda: mine_candidates(np.zeros((4, 2)), np.zeros((5, 2), int)), "are needed"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
