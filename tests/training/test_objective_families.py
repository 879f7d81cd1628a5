"""Families of objectives: each loss against its definition, equal terms for all, and the step with a memory by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore import losses
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.models import BagOfWordsConfig, BagOfWordsEncoder
from jaxcore.training import abstract_state, create_state, make_train_step
from jaxcore.training import objective_families as families
from jaxcore.training.objective_families import FAMILIES, Views, family_claim_rows, family_gradients, family_views

ROWS, LENGTH, VOCAB, DIM = 16, 10, 40, 8
MODEL = BagOfWordsEncoder(BagOfWordsConfig(vocab_size=VOCAB, hidden_sizes=(12,), embedding_size=DIM, dropout=0.2))
MESH = make_mesh(MeshConfig())
OPTIMIZER = optax.adam(1e-2)
LOSSES = [name for name, family in FAMILIES.items() if family.loss is not None]


def batch(seed=0, rows=ROWS):
    """Two halves that share half of their words."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCAB, (rows, LENGTH))
    second = np.where(rng.random(ids.shape) < 0.5, ids, rng.integers(1, VOCAB, ids.shape))
    ones = np.ones_like(ids)
    labels = np.arange(rows) % 5
    made = {"first_ids": ids, "first_mask": ones, "second_ids": second, "second_mask": ones, "labels": labels}
    made |= {"title_ids": labels[:, None] + 1, "title_mask": np.ones((rows, 1))}
    return {name: value.astype(np.int32) for name, value in made.items()}


def initialize(key):
    return MODEL.init(key, jnp.zeros((1, LENGTH), jnp.int32))["params"]


def start():
    return create_state(initialize, OPTIMIZER, MESH, seed=0)


VECTORS = np.random.default_rng(3).standard_normal((2, ROWS, DIM))
VIEWS = Views(*(jnp.asarray(v, jnp.float32) for v in VECTORS), jnp.arange(ROWS) % 5)
UNITS = VECTORS / np.linalg.norm(VECTORS, axis=2, keepdims=True)
COSINES = UNITS[0] @ UNITS[1].T
OTHERS = ~np.eye(ROWS, dtype=bool)


def binary(tau=0.05):
    positive, negative = np.diagonal(COSINES) / tau, COSINES / tau
    return np.mean(np.logaddexp(0, -positive) + (np.logaddexp(0, negative) * OTHERS).sum(axis=1))


def margins(reduce):
    hinges = np.maximum(0, 0.2 - np.diagonal(COSINES)[:, None] + COSINES) * OTHERS
    return np.mean(reduce(hinges, axis=1))


def donsker_varadhan(tau=0.05):
    return -(np.diagonal(COSINES).mean() / tau - np.log(np.exp(COSINES[OTHERS] / tau).mean()))


def jensen_shannon(tau=0.05):
    return np.logaddexp(0, -np.diagonal(COSINES) / tau).mean() + np.logaddexp(0, COSINES[OTHERS] / tau).mean()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("binary_matching", binary),
        ("margin_sum", lambda: margins(np.sum)),
        ("margin_hardest", lambda: margins(np.max)),
        ("donsker_varadhan", donsker_varadhan),
        ("jensen_shannon", jensen_shannon),
    ],
)
def test_losses_made_here_are_their_equations(name, expected):
    assert FAMILIES[name].loss(VIEWS, None) == pytest.approx(expected(), rel=1e-4)


def test_pair_labels_make_a_two_view_loss_of_a_labelled_one():
    """SupCon with a label per text is NT-Xent: the labelled families here do get the pairs they say."""
    both, labels = families._both(VIEWS), families._pairs(VIEWS)
    supervised = losses.supervised_contrastive(both, labels, temperature=0.05)
    assert FAMILIES["nt_xent"].loss(VIEWS, None) == pytest.approx(float(supervised), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_family_pulls_pairs_together(name):
    """Steepest descent on the vectors themselves makes partners closer than others, from scattered vectors."""

    def gap(views):
        a, b = (losses.unit_vectors(v) for v in views[:2])
        scores = np.asarray(a @ b.T)
        return np.diagonal(scores).mean() - scores[OTHERS].mean()

    views, loss = VIEWS, FAMILIES[name].loss
    if name in ("supervised_contrastive", "cluster_contrastive"):
        views = VIEWS._replace(labels=jnp.arange(ROWS))
    descend = jax.jit(jax.grad(lambda pair: loss(Views(*pair, views.labels), None)))
    pair = views[:2]
    for _ in range(20):
        slope = descend(pair)
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in slope))
        size = jnp.maximum(size, 1e-12)  # a hinge that every pair has passed has no slope left
        pair = tuple(v - 2.0 * g / size for v, g in zip(pair, slope, strict=True))
    assert all(np.isfinite(v).all() for v in pair)
    assert gap(pair) > gap(views[:2]) + 0.2


def test_views():
    made = {name: jnp.asarray(value) for name, value in batch().items()}
    first, second = family_views("twins", made)
    assert first is second
    np.testing.assert_array_equal(first[0][::2], made["first_ids"][::2])
    np.testing.assert_array_equal(first[0][1::2], made["second_ids"][1::2])
    assert family_views("text_and_title", made)[1][0] is made["title_ids"]
    assert family_views("halves", made)[1][0] is made["second_ids"]


def test_gradient_caching_and_the_mesh_do_not_change_a_family():
    state = start()
    rows = {name: jnp.asarray(value) for name, value in batch().items()}
    still = BagOfWordsEncoder(BagOfWordsConfig(vocab_size=VOCAB, hidden_sizes=(12,), embedding_size=DIM))
    results = [
        family_gradients("nt_xent", still, mesh, micro_batch=micro)(state.params, rows, jax.random.key(0))
        for mesh, micro in ((None, 0), (None, 4), (MESH, 0))
    ]
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(float(results[0][0]), rel=1e-5)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, results[0][1])


def test_a_family_trained_here_is_the_train_step_on_the_same_batches():
    batches = [batch(seed) for seed in range(3)]
    beginning = start()
    params, seconds = families.train_family("info_nce", MODEL, OPTIMIZER, beginning, batches, MESH)
    state = start()
    step = make_train_step(family_gradients("info_nce", MODEL, MESH), OPTIMIZER, state, MESH)
    for rows in batches:
        state, _ = step(state, jax.device_put(rows, families.batch_sharding(MESH)))
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert seconds > 0
    untrained, none = families.train_family("untrained", MODEL, OPTIMIZER, beginning, batches, MESH)
    jax.tree.map(np.testing.assert_array_equal, untrained, start().params)
    assert none == 0


def test_the_queue_step_is_moco_by_hand():
    """Two steps: nothing to contrast with, then the first batch's keys, encoded by the moved target."""
    state, batches = start(), [batch(seed) for seed in range(2)]
    memory = families.empty_memory(state.params, MESH, size=32, dim=DIM)
    step = families.make_queue_step(MODEL, OPTIMIZER, state, MESH, momentum=0.9)
    target, online, keys_seen = state.params, state.params, None
    target, online = (jax.tree.map(np.asarray, tree) for tree in (target, online))
    for number, rows in enumerate(batches):
        of_queries, of_keys = jax.random.split(state.step_key)
        encode = functools.partial(families._encode, MODEL)
        queries = encode(online, rows["first_ids"], rows["first_mask"], of_queries)
        keys = encode(target, rows["second_ids"], rows["second_mask"], of_keys)
        expected = 0.0
        if keys_seen is not None:
            expected = losses.queue_info_nce(queries, keys, keys_seen, temperature=0.05)
        state, memory, metrics = step(state, memory, jax.device_put(rows, families.batch_sharding(MESH)))
        assert metrics["loss"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        online = jax.tree.map(np.asarray, state.params)
        target = jax.tree.map(lambda slow, fast: 0.9 * slow + 0.1 * fast, target, online)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), memory.target, target)
        assert int(memory.queue.filled) == ROWS * (number + 1)
        keys_seen = keys
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(online))
    params, _ = families.train_family("momentum_queue", MODEL, OPTIMIZER, start(), batches, MESH, momentum=0.9)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, online)


def test_every_family_is_compared_with_another_and_claims_follow_the_numbers():
    for name, family in FAMILIES.items():
        assert name == "untrained" or (family.against in FAMILIES and family.against != name and family.statement)
    metrics = {f"families/{name}/recall_at_1": value for name, value in (("info_nce", 0.3), ("simcse", 0.2))}
    (row,) = family_claim_rows(metrics)
    assert row[0] == "info_nce" and row[3:] == (0.3, "simcse", 0.2, "yes")
    (row,) = family_claim_rows({**metrics, "families/info_nce/recall_at_1": 0.1})
    assert row[-1] == "no"


def test_the_program_of_a_family_needs_no_data():
    state = abstract_state(initialize, OPTIMIZER, MESH)
    step = make_train_step(family_gradients("sigmoid", MODEL, MESH), OPTIMIZER, state, MESH)
    rows = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch().items()}
    step.lower(state, rows)


def test_bad_input():
    for name in ("moco", "momentum_queue", "untrained"):
        with pytest.raises(
            ValueError, match=f"no family '{name}' with a loss of its batch alone: expected one of simcse"
        ):
            family_gradients(name, MODEL, MESH)
    with pytest.raises(FloatingPointError, match="the loss of info_nce is not finite after 2 steps"):
        broken = start()
        params = jax.tree.map(lambda leaf: leaf * jnp.nan, broken.params)
        families.train_family("info_nce", MODEL, OPTIMIZER, broken.replace(params=params), [batch()] * 2, MESH)
