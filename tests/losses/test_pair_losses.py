"""Every pairwise loss against its textbook form in float64: values, gradients, precisions, blocks and meshes."""

import functools

import dense_references as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore import losses
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import pairs
from jaxcore.losses.pair_blocks import Blocks

N, DIM, FURTHER, PER_QUERY = 24, 8, 40, 3
RNG = np.random.default_rng(0)
LABELS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5] * 2)
LABELS[5] = 9  # now two anchors have no positive
ITEMS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 0, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
MEMORY_LABELS = RNG.integers(-1, 6, FURTHER)
INPUTS = {
    "q": RNG.standard_normal((N, DIM)),
    "k": RNG.standard_normal((N, DIM)) + 0.3,
    "queue": RNG.standard_normal((FURTHER, DIM)),
    "hard": RNG.standard_normal((N, PER_QUERY, DIM)),
    "log_weights": RNG.standard_normal(N),
    "row_weights": RNG.uniform(0.1, 2, N),
    "temperature": np.array(0.2),
    "bias": np.array(-1.5),
}
TEACHER = RNG.standard_normal((N, 5)), RNG.standard_normal((N, 5))
TEACHER_EXCLUDES = (np.asarray(dense.cosines(*map(jnp.asarray, TEACHER))) > 0.4) & ~np.eye(N, dtype=bool)
ITEM_EXCLUDES = (ITEMS[:, None] == ITEMS[None]) & ~np.eye(N, dtype=bool)


def both(loss, **options):
    return lambda p, **o: loss(p["q"], p["k"], temperature=p["temperature"], **options, **o)


def labelled(loss, **options):
    return lambda p, **o: loss(p["q"], jnp.asarray(LABELS), **options, **o)


CASES = {
    "info_nce": (both(losses.info_nce), dense.info_nce),
    "info_nce_items": (
        both(losses.info_nce, items=jnp.asarray(ITEMS)),
        functools.partial(dense.info_nce, excluded=ITEM_EXCLUDES),
    ),
    "info_nce_reference": (
        both(losses.info_nce, reference=tuple(jnp.asarray(t, jnp.float32) for t in TEACHER), reference_threshold=0.4),
        functools.partial(dense.info_nce, excluded=TEACHER_EXCLUDES),
    ),
    "hard_negatives": (
        lambda p, **o: losses.info_nce(
            p["q"], p["k"], temperature=p["temperature"], negatives=p["hard"], own_negative_log_weight=0.7, **o
        ),
        functools.partial(dense.hard_negatives, own_weight=0.7),
    ),
    "symmetric_info_nce": (both(losses.symmetric_info_nce), dense.symmetric),
    "queue": (
        lambda p, **o: losses.queue_info_nce(p["q"], p["k"], p["queue"], temperature=p["temperature"], **o),
        dense.queue,
    ),
    "nt_xent": (both(losses.nt_xent), dense.nt_xent),
    "decoupled": (both(losses.decoupled_contrastive), dense.decoupled),
    "debiased": (
        both(losses.debiased_contrastive, positive_prior=0.1),
        functools.partial(dense.debiased, prior=0.1, beta=0.0),
    ),
    "hardened": (
        both(losses.debiased_contrastive, positive_prior=0.05, concentration=0.5),
        functools.partial(dense.debiased, prior=0.05, beta=0.5),
    ),
    "weighted": (
        lambda p, **o: losses.weighted_info_nce(
            p["q"],
            p["k"],
            temperature=p["temperature"],
            negative_log_weights=p["log_weights"],
            query_weights=p["row_weights"],
            **o,
        ),
        dense.weighted,
    ),
    "angular_margin": (
        both(losses.angular_margin_info_nce, margin=0.2),
        functools.partial(dense.angular, margin=0.2),
    ),
    "sigmoid": (
        lambda p, **o: losses.sigmoid_contrastive(p["q"], p["k"], temperature=p["temperature"], bias=p["bias"], **o),
        dense.sigmoid,
    ),
    "sigmoid_items": (
        lambda p, **o: losses.sigmoid_contrastive(
            p["q"], p["k"], temperature=p["temperature"], bias=p["bias"], items=jnp.asarray(ITEMS), **o
        ),
        functools.partial(dense.sigmoid, items=ITEMS),
    ),
    "supcon_out": (
        lambda p, **o: labelled(losses.supervised_contrastive)(p, temperature=p["temperature"], **o),
        functools.partial(dense.supervised, labels=LABELS, form="out"),
    ),
    "supcon_in": (
        lambda p, **o: labelled(losses.supervised_contrastive, positives="in")(p, temperature=p["temperature"], **o),
        functools.partial(dense.supervised, labels=LABELS, form="in"),
    ),
    "cross_batch_memory": (
        lambda p, **o: losses.supervised_contrastive(
            p["q"],
            jnp.asarray(LABELS),
            temperature=p["temperature"],
            memory=(p["queue"], jnp.asarray(MEMORY_LABELS)),
            **o,
        ),
        functools.partial(dense.supervised_with_memory, labels=LABELS, memory_labels=MEMORY_LABELS),
    ),
    "multi_similarity": (
        labelled(losses.multi_similarity, mining_margin=0.1),
        functools.partial(dense.multi_similarity, labels=LABELS, epsilon=0.1),
    ),
    "multi_similarity_all_pairs": (
        labelled(losses.multi_similarity, mining_margin=None),
        functools.partial(dense.multi_similarity, labels=LABELS, epsilon=None),
    ),
    "circle": (
        labelled(losses.circle, scale=16.0, margin=0.25),
        lambda p: dense.circle(p, LABELS, 16.0, 0.25) * N / (N - 2),  # the mean is over anchors that have a positive
    ),
    "cross_supervised": (
        lambda p, **o: losses.cross_supervised_contrastive(
            p["q"],
            p["queue"],
            jnp.asarray(LABELS),
            jnp.asarray(MEMORY_LABELS),
            temperature=p["temperature"],
            **o,
        ),
        functools.partial(dense.cross_supervised, query_labels=LABELS, key_labels=MEMORY_LABELS),
    ),
    "cluster": (
        lambda p, **o: losses.cluster_contrastive(
            p["q"], p["k"], jnp.asarray(LABELS), temperature=p["temperature"], **o
        ),
        functools.partial(dense.cluster, labels=LABELS),
    ),
    "uniformity": (
        lambda p, **o: losses.uniformity(p["q"], **o),
        functools.partial(dense.uniformity, scale=2.0),
    ),
}
for _mining in ("hard", "semi_hard", "all"):
    for _margin in (0.3, None):
        CASES[f"triplet_{_mining}_{'soft' if _margin is None else 'hinge'}"] = (
            labelled(losses.triplet, margin=_margin, mining=_mining),
            functools.partial(dense.triplet, labels=LABELS, margin=_margin, mining=_mining, distance="euclidean"),
        )
for _distance in ("cosine", "squared_euclidean"):
    CASES[f"triplet_hard_{_distance}"] = (
        labelled(losses.triplet, mining="hard", distance=_distance),
        functools.partial(dense.triplet, labels=LABELS, margin=0.2, mining="hard", distance=_distance),
    )


@functools.cache
def expected(name):
    """Value and gradients of the textbook form in float64."""
    with jax.enable_x64(True):
        inputs = {key: jnp.asarray(value, jnp.float64) for key, value in INPUTS.items()}
        value, gradient = jax.jit(jax.value_and_grad(CASES[name][1]))(inputs)
        return float(value), {key: np.asarray(g) for key, g in gradient.items()}


def inputs_in(dtype):
    return {k: jnp.asarray(v, dtype if np.ndim(v) > 1 else jnp.float32) for k, v in INPUTS.items()}


def assert_equal_to_dense(name, value, gradient, tolerance):
    reference, reference_gradient = expected(name)
    assert float(value) == pytest.approx(reference, rel=tolerance)
    for key, of_input in gradient.items():
        scale = max(np.abs(reference_gradient[key]).max(), 1e-12)
        error = np.abs(np.asarray(of_input, np.float64) - reference_gradient[key]).max()
        if np.abs(reference_gradient[key]).max() == 0:
            assert error < 1e-6, key
        else:
            assert error / scale < tolerance, (key, error / scale)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that do not divide the batch, so that every walk has several of them and padding."""
    monkeypatch.setitem(pairs._LARGEST_BLOCKS, "cpu", Blocks(7, 10))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_textbook_form_in_float64(name, small_blocks):
    value, gradient = jax.jit(jax.value_and_grad(CASES[name][0]))(inputs_in(jnp.float32))
    assert value.dtype == jnp.float32
    assert_equal_to_dense(name, value, gradient, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_inputs_are_close(name):
    """Against the textbook form of the rounded inputs: what remains is the engine's own rounding.

    Mining picks pairs by comparing similarities, which rounding may reorder; its gradient is not compared.
    """
    rounded = {k: np.asarray(v, np.float64) for k, v in inputs_in(jnp.bfloat16).items()}
    with jax.enable_x64(True):
        reference = float(jax.jit(CASES[name][1])({k: jnp.asarray(v, jnp.float64) for k, v in rounded.items()}))
    value = jax.jit(CASES[name][0])(inputs_in(jnp.bfloat16))
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(reference, rel=1e-2)


def check_on_mesh(name, devices, **options):
    config = MeshConfig(data=devices // 2, fsdp=2) if devices > 2 else MeshConfig(data=2)
    mesh = make_mesh(config, jax.devices()[:devices])
    call = functools.partial(CASES[name][0], mesh=mesh, **options)
    value, gradient = jax.jit(jax.value_and_grad(call))(inputs_in(jnp.float32))
    assert_equal_to_dense(name, value, gradient, 1e-5)


REDUCED = [name for name in CASES if not name.startswith(("triplet_semi", "triplet_all"))]
WHOLE_ROWS = [name for name in CASES if name not in REDUCED]


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", REDUCED)
def test_eight_devices_change_nothing(name, exchange):
    check_on_mesh(name, 8, exchange=exchange)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", ["symmetric_info_nce", "supcon_out", "triplet_hard_hinge"])
def test_fewer_devices_change_nothing(name, devices, exchange):
    check_on_mesh(name, devices, exchange=exchange)


@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_eight_devices_change_nothing_where_whole_rows_are_needed(name):
    check_on_mesh(name, 8)


@pytest.mark.parametrize("name", CASES)
def test_zero_vectors_give_finite_values_and_gradients(name):
    inputs = inputs_in(jnp.float32)
    inputs |= {key: inputs[key].at[3].set(0.0) for key in ("q", "k", "queue", "hard")}
    value, gradient = jax.jit(jax.value_and_grad(CASES[name][0]))(inputs)
    assert np.isfinite(value)
    for key, of_input in gradient.items():
        assert np.all(np.isfinite(of_input)), key


@pytest.mark.parametrize(
    "labels", [np.arange(N), np.zeros(N, int)], ids=["no positive anywhere", "no negative anywhere"]
)
@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(losses.supervised_contrastive, temperature=0.1),
        functools.partial(losses.supervised_contrastive, temperature=0.1, positives="in"),
        losses.multi_similarity,
        losses.circle,
        *(functools.partial(losses.triplet, mining=mining) for mining in ("hard", "semi_hard", "all")),
    ],
)
def test_labels_without_pairs_give_a_finite_value(loss, labels):
    """0 for the losses that average over anchors or triplets which a batch does not have."""
    value, gradient = jax.value_and_grad(lambda q: loss(q, jnp.asarray(labels)))(inputs_in(jnp.float32)["q"])
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    if labels[1] == 1 and getattr(loss, "func", loss) is not losses.multi_similarity:
        assert value == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda q: losses.info_nce(q.at[2, 0].set(jnp.nan), q, temperature=0.1),
            "queries must not be NaN: 1 of 24 rows",
        ),
        (lambda q: losses.info_nce(q, q, temperature=0.1, negatives=jnp.ones((5, 3))), r"negatives must be \[k, 8\]"),
        (lambda q: losses.info_nce(q, q, temperature=0.1, negatives=jnp.ones((5, 2, 8))), "hard negatives must be"),
        (lambda q: losses.info_nce(q, q, temperature=0.1, own_negative_log_weight=1.0), "needs negatives"),
        (lambda q: losses.info_nce(q, q, temperature=0.1, items=jnp.ones(3)), r"items must have shape \(24,\)"),
        (lambda q: losses.info_nce(q, q, temperature=float("nan")), "temperature must be positive"),
        (lambda q: losses.nt_xent(q, q[:5], temperature=0.1), "first and second must both be"),
        (lambda q: losses.decoupled_contrastive(q[:1], q[:1], temperature=0.1), "at least two items"),
        (lambda q: losses.debiased_contrastive(q, q, temperature=0.1, positive_prior=1.0), r"in \[0, 1\)"),
        (lambda q: losses.angular_margin_info_nce(q, q, temperature=0.1, margin=4.0), "margin must be in"),
        (lambda q: losses.sigmoid_contrastive(q, q[:3], temperature=0.1, bias=0.0), "queries and keys must both"),
        (lambda q: losses.triplet(q, jnp.arange(N), margin=-1.0), "margin must be >= 0"),
        (lambda q: losses.triplet(q, jnp.arange(3)), r"labels \[n\]: got \(24, 8\) and \(3,\)"),
        (lambda q: losses.uniformity(q[:1]), "at least 2"),
        (lambda q: losses.cluster_contrastive(q, q, jnp.arange(3), temperature=0.1), "labels must have shape"),
        (lambda q: losses.queue_info_nce(q, q, q[:, 0], temperature=0.1), r"queue must be \[n, dim\]"),
        (lambda q: losses.info_nce(q.astype(jnp.int32), q, temperature=0.1), "queries must be floating"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(inputs_in(jnp.float32)["q"])
