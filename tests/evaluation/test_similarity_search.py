"""Search without the score matrix: against a sort in NumPy, with ties, on meshes, in bounded memory; bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.similarity_search import target_ranks, top_k


def whole_numbers(seed, rows, dim=6, largest=3):
    """Vectors whose inner products are exact in float32, and full of ties."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, (rows, dim)).astype(np.float32)


def sorted_search(queries, keys, k):
    """Scores in float64 and the stable descending sort."""
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def counted(queries, keys, targets):
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    of_target = np.take_along_axis(scores, np.maximum(targets, 0), axis=1)
    above = (scores[:, None, :] > of_target[:, :, None]).sum(axis=2)
    equal = (scores[:, None, :] == of_target[:, :, None]).sum(axis=2) - 1
    return np.where(targets < 0, -1, above), np.where(targets < 0, 0, equal)


def some_targets(seed, num_queries, num_keys, width):
    """[n, width] distinct keys, padded with -1 behind the first."""
    rng = np.random.default_rng(seed)
    targets = np.stack([rng.permutation(num_keys)[:width] for _ in range(num_queries)])
    targets[:, 1:][rng.random((num_queries, width - 1)) < 0.3] = -1
    return targets


# ---- the k best keys -------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.data())
def test_equals_a_stable_sort_at_any_block_size(num_queries, num_keys, data):
    k = data.draw(st.integers(1, num_keys))
    query_block, key_block = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 100))
    queries, keys = whole_numbers(num_queries, num_queries), whole_numbers(num_keys, num_keys)
    found = top_k(queries, keys, k=k, normalize=False, query_block=query_block, key_block=key_block)
    scores, order = sorted_search(queries, keys, k)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("key_block", [4096, 3000, 5000])
def test_wide_tiles_with_ties_everywhere_equal_a_stable_sort(k, key_block):
    """Groups of neighbours are in use here: 3 x 10^3 keys, a handful of distinct scores."""
    queries, keys = whole_numbers(0, 50, dim=2, largest=1), whole_numbers(1, 7001, dim=2, largest=1)
    found = top_k(queries, keys, k=k, normalize=False, key_block=key_block)
    np.testing.assert_array_equal(found.indices, sorted_search(queries, keys, k)[1])


def test_cosines_of_real_vectors():
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(130, 32)) * 7, rng.normal(size=(5003, 32)) * rng.uniform(0.1, 9, (5003, 1))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys)]
    scores, order = sorted_search(*unit, 11)
    found = top_k(queries, keys, k=11, query_block=64, key_block=2048)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, scores, atol=3e-7)


def test_bfloat16_operands_are_multiplied_exactly_and_summed_in_float32():
    rng = np.random.default_rng(0)
    queries, keys = (jnp.asarray(rng.normal(size=(n, 256)), jnp.bfloat16) for n in (20, 3000))
    found = top_k(queries, keys, k=7, normalize=False)
    scores, order = sorted_search(np.asarray(queries, np.float64), np.asarray(keys, np.float64), 7)
    assert found.scores.dtype == jnp.float32
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)  # a bfloat16 sum would be off by 1e-2
    np.testing.assert_array_equal(found.indices, order)


def test_the_excluded_key_is_not_found_and_the_others_are():
    corpus = whole_numbers(0, 60)
    found = top_k(corpus, corpus, k=5, excluded=np.arange(60), normalize=False, key_block=16)
    scores = corpus.astype(np.float64) @ corpus.T
    np.fill_diagonal(scores, -np.inf)
    np.testing.assert_array_equal(found.indices, np.argsort(-scores, axis=1, kind="stable")[:, :5])


def test_a_zero_vector_has_cosine_zero():
    found = top_k(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0], [0.0, 0.0], [2.0, 2.0]]), k=3)
    np.testing.assert_array_equal(found.indices, [[2, 1, 0]])
    np.testing.assert_allclose(found.scores, [[math.sqrt(0.5), 0.0, -1.0]], atol=1e-7)


def test_serves_under_jit():
    queries, keys = whole_numbers(0, 9), whole_numbers(1, 30)
    inside = jax.jit(lambda q, c: top_k(q, c, k=4))(queries, keys)
    jax.tree.map(np.testing.assert_array_equal, inside, top_k(queries, keys, k=4))


# ---- the ranks of targets ------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 30), st.integers(4, 90), st.integers(1, 50), st.integers(1, 100))
def test_counts_equal_brute_force_at_any_block_size(num_queries, num_keys, query_block, key_block):
    queries, keys = whole_numbers(num_queries, num_queries), whole_numbers(num_keys, num_keys)
    targets = some_targets(num_keys, num_queries, num_keys, 4)
    counts = target_ranks(queries, keys, targets, normalize=False, query_block=query_block, key_block=key_block)
    above, equal = counted(queries, keys, targets)
    np.testing.assert_array_equal(counts.above, above)
    np.testing.assert_array_equal(counts.equal, equal)


def test_a_vector_of_targets_is_one_target_each():
    queries, keys = whole_numbers(0, 12), whole_numbers(1, 40)
    flat = target_ranks(queries, keys, np.arange(12), normalize=False)
    assert flat.above.shape == (12, 1)
    np.testing.assert_array_equal(flat.above, counted(queries, keys, np.arange(12)[:, None])[0])


def test_copies_of_the_target_count_as_equal_wherever_they_lie():
    """Widths and blocks that make one product round differently in different tiles."""
    rng = np.random.default_rng(0)
    queries, keys = (rng.normal(size=(n, 301)).astype(np.float32) for n in (37, 1013))
    targets = rng.integers(0, 500, 37)
    keys[500 + np.arange(37)] = keys[targets]
    keys[900 + np.arange(37)] = 3 * keys[targets]  # the same cosine, another norm
    counts = target_ranks(queries, keys, targets, query_block=17, key_block=129)
    unit = [x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, keys)]
    scores = unit[0] @ unit[1].T
    expected = (scores > scores[np.arange(37), targets][:, None] + 1e-6).sum(axis=1)
    np.testing.assert_array_equal(counts.above[:, 0], expected)
    assert (np.asarray(counts.equal) >= 2).all()


def test_tiles_wider_than_a_packed_count_are_counted_in_parts():
    queries, keys = whole_numbers(0, 3, dim=2), whole_numbers(1, 70_001, dim=2)
    counts = target_ranks(queries, keys, np.array([5, 6, 7]), normalize=False, key_block=1 << 17)
    above, equal = counted(queries, keys, np.array([[5], [6], [7]]))
    np.testing.assert_array_equal(counts.above, above)
    np.testing.assert_array_equal(counts.equal, equal)


def test_ranks_agree_with_places_in_the_search():
    queries, keys = np.random.default_rng(0).normal(size=(2, 25, 16))
    found = top_k(queries, keys, k=25)
    counts = target_ranks(queries, keys, np.asarray(found.indices))
    np.testing.assert_array_equal(counts.above, np.tile(np.arange(25), (25, 1)))


# ---- meshes and memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 4}, {"replica": 2, "data": 2, "tensor": 2}])
def test_a_mesh_changes_nothing(shape):
    config = MeshConfig(**{"replica": 1, "data": 1, "fsdp": 1, "tensor": 1, **shape})
    mesh = make_mesh(config, jax.devices()[: math.prod(shape.values())])
    queries, keys = whole_numbers(0, 45), whole_numbers(1, 203)  # neither divides over the devices
    targets = some_targets(2, 45, 203, 3)
    options = {"normalize": False, "query_block": 16, "key_block": 10, "mesh": mesh}
    found = top_k(queries, keys, k=30, excluded=np.arange(45), **options)
    jax.tree.map(
        np.testing.assert_array_equal, found, top_k(queries, keys, k=30, excluded=np.arange(45), normalize=False)
    )
    counts = target_ranks(queries, keys, targets, **options)
    above, equal = counted(queries, keys, targets)
    np.testing.assert_array_equal(counts.above, above)
    np.testing.assert_array_equal(counts.equal, equal)


def test_fewer_rows_than_devices():
    mesh = make_mesh(MeshConfig())
    found = top_k(whole_numbers(0, 3), whole_numbers(1, 5), k=4, normalize=False, mesh=mesh)
    np.testing.assert_array_equal(found.indices, sorted_search(whole_numbers(0, 3), whole_numbers(1, 5), 4)[1])


def million(dim=32):
    return jax.ShapeDtypeStruct((1 << 20, dim), jnp.float32)


def test_a_million_against_a_million_needs_a_few_tiles():
    """The score matrix would be 4 TiB; a tile is 128 MiB."""
    search = jax.jit(lambda q, c: top_k(q, c, k=10)).lower(million(), million()).compile()
    ranks = jax.jit(lambda q, c, t: target_ranks(q, c, t)).lower(
        million(), million(), jax.ShapeDtypeStruct((1 << 20, 5), jnp.int32)
    )
    for program in (search, ranks.compile()):
        assert program.memory_analysis().temp_size_in_bytes < 200 * 2**20


def test_memory_of_a_tile_follows_its_shape():
    def temporaries(query_block):
        search = jax.jit(lambda q, c: top_k(q, c, k=10, query_block=query_block, key_block=4096, normalize=False))
        return search.lower(*2 * [jax.ShapeDtypeStruct((1 << 16, 8), jnp.float32)]).compile().memory_analysis()

    small, large = (temporaries(size).temp_size_in_bytes for size in (256, 4096))
    results = 8 * 10 * (1 << 16)  # stacked by the loop over blocks before they are returned
    assert 8 * (small - results) < large - results


def test_a_mesh_divides_the_memory_of_keys_and_never_gathers_them():
    mesh = make_mesh(MeshConfig())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    wide = jax.ShapeDtypeStruct((1 << 20, 256), jnp.float32, sharding=rows)  # 1 GiB, 128 MiB per device
    search = jax.jit(lambda q, c: top_k(q, c, k=10, mesh=mesh, query_block=512, key_block=2048))
    memory = search.lower(wide, wide).compile().memory_analysis()
    assert memory.argument_size_in_bytes == 2 * 2**27
    assert memory.temp_size_in_bytes < 64 * 2**20


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, c: top_k(q, c, k=0), "k must be an integer >= 1"),
        (lambda q, c: top_k(q, c, k=9), "at most 8 for 8 keys, got 9"),
        (lambda q, c: top_k(q, c, k=8, excluded=np.arange(4)), "at most 7 for 8 keys"),
        (lambda q, c: top_k(q, c, k=2, excluded=np.arange(8)), r"excluded must be integers of shape \(4,\)"),
        (lambda q, c: top_k(q, c, k=2, excluded=np.full(4, 8)), r"excluded must lie in 0\.\.7"),
        (lambda q, c: top_k(q[:, :2], c, k=1), r"queries \(4, 2\) and keys \(8, 3\) differ in width"),
        (lambda q, c: top_k(q[:0], c, k=1), r"queries must be floating and \[rows, dim\]"),
        (lambda q, c: top_k(q.astype(int), c, k=1), "queries must be floating"),
        (lambda q, c: top_k(q, np.where(c == c[3], np.nan, c), k=1), "keys has 1 rows with NaN or infinity of 8"),
        (lambda q, c: top_k(q, c, k=1, key_block=0), "key_block must be an integer >= 1"),
        (lambda q, c: target_ranks(q, c, np.arange(3)), r"targets must be integers of shape \(4, 1\)"),
        (
            lambda q, c: target_ranks(q, c, np.array([0, 1, 2, 8])),
            r"targets must lie in -1\.\.7 for 8 keys, got 0\.\.8",
        ),
        (lambda q, c: target_ranks(q, c, np.array([[0, -1], [-1, -1]] * 2)), "2 queries have no target"),
        (
            lambda q, c: target_ranks(q, c, np.array([[0, 1], [1, 1]] * 2)),
            "2 queries name a target twice, first query 1",
        ),
        (lambda q, c: target_ranks(q, c, np.arange(4), tie_tolerance=-1.0), "tie_tolerance must be >= 0"),
        (lambda q, c: target_ranks(q, c, np.zeros((4, 1, 1), int)), r"targets must be \[n\] or \[n, p\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1).normal(size=(8, 3)))
