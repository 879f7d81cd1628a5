"""The pair engine itself: any terms, any reductions, annotations with gradients, blocks, rings, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import Extreme, Reduction, Side, reduce_pairs, symmetric_info_nce, unit_vectors
from jaxcore.losses.pair_blocks import Blocks, fit_blocks
from jaxcore.losses.pairs import piece_size
from jaxcore.training import cached_gradients

EVERYTHING = {
    "a": Reduction("row", "log_sum_exp"),
    "b": Reduction("row", "sum"),
    "c": Reduction("row", "max"),
    "d": Reduction("column", "log_sum_exp"),
    "e": Reduction("column", "sum"),
    "f": Reduction("column", "max"),
}


def terms(similarity, of_rows, of_columns, shared):
    logits = similarity / shared["t"] + of_columns["bias"] * of_rows["weight"]
    match = of_rows["label"] == of_columns["label"]
    second = of_rows["code"] @ of_columns["code"].T
    return {
        "a": jnp.where(match, -jnp.inf, logits),
        "b": jnp.where(match, logits * second, 0.0),
        "c": jnp.where(match, -jnp.inf, -logits),
        "d": logits,
        "e": logits**2,
        "f": jnp.where(match, logits, -jnp.inf),
    }


def problem(seed, rows, columns, dim=4):
    rng = np.random.default_rng(seed)
    floats = {
        "r": rng.standard_normal((rows, dim)),
        "c": rng.standard_normal((columns, dim)),
        "bias": rng.standard_normal(columns),
        "weight": rng.standard_normal(rows),
        "code_r": rng.standard_normal((rows, 3)),
        "code_c": rng.standard_normal((columns, 3)),
        "t": np.array(0.7),
    }
    labels = rng.integers(0, 3, rows), rng.integers(0, 3, columns)
    pick = {n: rng.standard_normal(rows if r.per == "row" else columns) for n, r in EVERYTHING.items()}
    return {k: jnp.asarray(v, jnp.float32) for k, v in floats.items()}, labels, pick


def sides(p, labels):
    rows = Side(p["r"], {"label": jnp.asarray(labels[0]), "weight": p["weight"], "code": p["code_r"]})
    columns = Side(p["c"], {"label": jnp.asarray(labels[1]), "bias": p["bias"], "code": p["code_c"]})
    return rows, columns


def total(results, pick):
    values = {n: r.value if isinstance(r, Extreme) else r for n, r in results.items()}
    return sum(jnp.sum(jnp.where(jnp.isfinite(v), v, 0) * pick[n]) for n, v in values.items())


def streamed(p, labels, pick, **options):
    rows, columns = sides(p, labels)
    return total(reduce_pairs(terms, EVERYTHING, rows, columns, shared={"t": p["t"]}, **options), pick)


def whole(p, labels, pick):
    rows, columns = sides(p, labels)
    spread = lambda x, axis: jnp.expand_dims(x, axis) if x.ndim == 1 else x  # noqa: E731
    block = terms(
        jnp.matmul(p["r"], p["c"].T, precision="highest"),
        jax.tree.map(lambda x: spread(x, 1), rows.known),
        jax.tree.map(lambda x: spread(x, 0), columns.known),
        {"t": p["t"]},
    )
    reduce = {"log_sum_exp": jax.nn.logsumexp, "sum": jnp.sum, "max": jnp.max}
    return total({n: reduce[r.kind](block[n], axis=r.axis) for n, r in EVERYTHING.items()}, pick)


def assert_trees_close(ours, reference):
    for name in reference:
        scale = np.abs(reference[name]).max() + 1e-6
        np.testing.assert_allclose(ours[name] / scale, reference[name] / scale, atol=2e-5, err_msg=name)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    block=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    kept_share=st.sampled_from([0, 0.5, 1]),
)
def test_any_shape_in_any_blocks_gives_values_and_gradients_of_the_whole_matrix(seed, rows, columns, block, kept_share):
    p, labels, pick = problem(seed, rows, columns)
    keep = int(kept_share * 4 * (rows + block[0]) * (columns + block[1]))
    value, gradient = jax.value_and_grad(streamed)(p, labels, pick, blocks=Blocks(*block), keep_bytes=keep)
    reference, reference_gradient = jax.value_and_grad(whole)(p, labels, pick)
    assert value == pytest.approx(float(reference), rel=1e-4, abs=1e-4)
    assert_trees_close(gradient, reference_gradient)


@pytest.mark.parametrize("keep_blocks", [0, 2, 5])
def test_kept_similarities_change_nothing_and_are_as_many_as_asked_for(keep_blocks):
    """10 x 9 in blocks of 4 x 5: three rows of two blocks each, so 5 blocks' worth keeps two rows of blocks."""
    p, labels, pick = problem(2, 10, 9)
    options = {"blocks": Blocks(4, 5), "keep_bytes": keep_blocks * 4 * 5 * 4}
    value, gradient = jax.value_and_grad(streamed)(p, labels, pick, **options)
    reference, reference_gradient = jax.value_and_grad(whole)(p, labels, pick)
    assert value == pytest.approx(float(reference), rel=1e-4)
    assert_trees_close(gradient, reference_gradient)
    residuals = jax.tree.leaves(jax.vjp(lambda p: streamed(p, labels, pick, **options), p)[1])
    assert [x.shape[0] for x in residuals if x.ndim == 3] == [keep_blocks // 2 * 2]


def test_pieces_divide_the_columns_and_are_not_small():
    assert [piece_size(n, 1024) for n in (4096, 1000, 1536, 1025, 1031)] == [1024, 1000, 768, 1025, 1031]


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 2), (4, 1, 2), (2, 4, 1)])
def test_any_mesh_and_exchange_gives_the_same(shape, exchange):
    p, labels, pick = problem(1, 16, 32)
    reference, reference_gradient = jax.value_and_grad(whole)(p, labels, pick)
    mesh = make_mesh(MeshConfig(data=shape[0], fsdp=shape[1], tensor=shape[2]), jax.devices()[: np.prod(shape)])
    call = jax.jit(
        jax.value_and_grad(lambda p: streamed(p, labels, pick, mesh=mesh, exchange=exchange, blocks=Blocks(3, 5)))
    )
    value, gradient = call(p)
    assert value == pytest.approx(float(reference), rel=1e-4)
    assert_trees_close(gradient, reference_gradient)


def first_index(similarity, of_rows, of_columns, shared):
    return {"row": similarity, "column": similarity}


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_an_extreme_names_the_first_index_wherever_it_lies(exchange):
    """Two equal columns: the lower index wins, across blocks and devices too."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((16, 3)).astype(np.float32)
    columns[13] = columns[2]
    rows = rng.standard_normal((8, 3)).astype(np.float32)
    reductions = {"row": Reduction("row", "max"), "column": Reduction("column", "max")}
    similarity = rows @ columns.T
    for mesh in (None, make_mesh(MeshConfig(data=8))):
        found = reduce_pairs(
            first_index, reductions, Side(rows), Side(columns), mesh=mesh, exchange=exchange, blocks=Blocks(3, 3)
        )
        np.testing.assert_array_equal(found["row"].place, similarity.argmax(1))
        np.testing.assert_array_equal(found["column"].place, similarity.argmax(0))


def nothing(similarity, of_rows, of_columns, shared):
    return {name: jnp.full_like(similarity, -jnp.inf) for name in ("lse", "max")}


def test_rows_with_everything_excluded_are_minus_infinity_with_zero_gradient():
    reductions = {"lse": Reduction("row", "log_sum_exp"), "max": Reduction("row", "max")}

    def loss(x):
        found = reduce_pairs(nothing, reductions, Side(x), Side(x), blocks=Blocks(2, 2))
        assert not isinstance(found["lse"], Extreme)
        return jnp.sum(jnp.where(jnp.isfinite(found["lse"]), found["lse"], 0)), found

    x = jnp.ones((5, 2))
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    assert np.all(np.isneginf(found["lse"])) and np.all(np.isneginf(found["max"].value))
    np.testing.assert_array_equal(found["max"].place, -1)
    np.testing.assert_array_equal(gradient, 0)


def test_small_losses_keep_their_digits():
    """Nearly solved pairs: the textbook's difference of two numbers near 20 would leave none of them."""
    q = np.eye(4, dtype=np.float64) * 1.0
    with jax.enable_x64(True):
        logits = jnp.asarray(q @ q.T / 0.05)
        reference = float(-jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1))))
    value = symmetric_info_nce(jnp.asarray(q, jnp.float32), jnp.asarray(q, jnp.float32), temperature=0.05)
    assert reference < 1e-8
    assert float(value) == pytest.approx(reference, rel=1e-5)


def test_float64_stays_float64():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k = (jnp.asarray(rng.standard_normal((9, 5))) for _ in range(2))
        value = symmetric_info_nce(q, k, temperature=0.1)
        u = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(q), np.asarray(k))]
        logits = u[0] @ u[1].T / 0.1
        expected = -np.mean([np.diagonal(jax.nn.log_softmax(x, axis=1)) for x in (logits, logits.T)])
        assert value.dtype == jnp.float64
        assert float(value) == pytest.approx(expected, rel=1e-13)


def test_float16_gradients_of_a_large_batch_do_not_vanish():
    """A gradient of 1 / N per row times a probability is below float16's smallest number; it is formed in float32."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2048, 8)), jnp.float16) for _ in range(2))
    gradient = jax.grad(lambda q: 1024 * symmetric_info_nce(q, k, temperature=1.0))(q)
    exact = jax.grad(lambda q: 1024 * symmetric_info_nce(q, k.astype(jnp.float32), temperature=1.0))(
        q.astype(jnp.float32)
    )
    np.testing.assert_allclose(gradient, exact, rtol=2e-2, atol=1e-4 * np.abs(exact).max() + 1e-7)


def test_no_array_of_all_pairs_exists():
    """The compiled program of 16,384 x 16,384 pairs needs far less than the matrix's gigabyte."""
    vectors = jax.ShapeDtypeStruct((16384, 64), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda q, k: symmetric_info_nce(q, k, temperature=0.05), (0, 1)))
    memory = step.lower(vectors, vectors).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200 * 2**20


def test_the_ring_needs_memory_for_its_own_rows_only():
    """Per device: four arrays that are split (inputs, gradients), and the work of a block, whatever the batch."""
    rows, dim = 262144, 64
    vectors = jax.ShapeDtypeStruct((rows, dim), jnp.float32)

    def peak(devices, exchange):
        mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        step = jax.jit(
            jax.value_and_grad(
                lambda q, k: symmetric_info_nce(q, k, temperature=0.05, normalize=False, mesh=mesh, exchange=exchange),
                (0, 1),
            ),
            in_shardings=(split, split),
            out_shardings=(None, (split, split)),
        )
        memory = step.lower(vectors, vectors).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    blocks = 4 * 1024 * 1024 * 4  # one block, its derivatives and the pieces that travel
    shard = rows // 8 * dim * 4
    assert peak(8, "ring") < 4.4 * shard + blocks
    assert peak(8, "gather") > peak(8, "ring") + 5 * shard


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_gradient_caching_with_dropout_composes_with_the_engine_on_a_mesh(exchange):
    """Micro-batches of the encoder, blocks of the matrix and eight devices: still the gradient of the whole batch."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((6, 5)), jnp.float32)}
    batch = {"x": jnp.asarray(rng.standard_normal((64, 6)), jnp.float32)}
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    keep = 0.8

    def encode(params, batch, key):
        dropped = jax.random.bernoulli(key, keep, batch["x"].shape) * batch["x"] / keep
        return jnp.tanh(dropped @ params["w"])

    def loss(embeddings, batch, mesh=mesh):
        return symmetric_info_nce(embeddings[::2], embeddings[1::2], temperature=0.2, mesh=mesh, exchange=exchange)

    key = jax.random.key(3)
    value, gradient = jax.jit(cached_gradients(encode, loss, micro_batch=16))(params, batch, key)

    def at_once(params):
        """The same dropout draws, nothing cached, nothing streamed, in one piece."""
        chunks = [encode(params, {"x": batch["x"][c::4]}, jax.random.fold_in(key, c)) for c in range(4)]
        embeddings = jnp.stack(chunks, axis=1).reshape(64, -1)
        u = unit_vectors(embeddings)
        logits = jnp.matmul(u[::2], u[1::2].T, precision="highest") / 0.2
        rows, columns = (jnp.diagonal(jax.nn.log_softmax(x, axis=1)) for x in (logits, logits.T))
        return -jnp.mean(rows + columns) / 2

    expected, expected_gradient = jax.value_and_grad(at_once)(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient["w"], expected_gradient["w"], rtol=1e-4, atol=1e-6)


def test_blocks_fit_the_matrix():
    assert fit_blocks(Blocks(1024, 1024), 100, 4096) == Blocks(100, 1024)
    assert fit_blocks(Blocks(1024, 1024), 1030, 1025) == Blocks(520, 520)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reduce_pairs(first_index, {}, Side(jnp.ones((3, 2))), Side(jnp.ones((3, 4)))),
            r"\(3, 2\) and \(3, 4\)",
        ),
        (lambda: reduce_pairs(first_index, {}, Side(jnp.ones((0, 2))), Side(jnp.ones((3, 2)))), "n and m positive"),
        (
            lambda: reduce_pairs(
                first_index, {}, Side(jnp.ones((3, 2)), {"label": jnp.ones(4)}), Side(jnp.ones((3, 2)))
            ),
            r"known of 3 vectors .* got \(4,\)",
        ),
        (
            lambda: symmetric_info_nce(
                jnp.ones((4, 2)), jnp.ones((4, 2)), temperature=1.0, mesh=make_mesh(MeshConfig(data=8))
            ),
            "4 rows cannot be split over the 8 devices",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
