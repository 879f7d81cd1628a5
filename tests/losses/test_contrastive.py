"""InfoNCE and SupCon against double loops in float64, hand-worked numbers, invariances and a mesh of eight."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import (
    feature_normalized_contrastive,
    info_nce,
    supervised_contrastive,
    symmetric_info_nce,
    unit_vectors,
)


def unit64(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce_loop(queries, keys, temperature):
    """The definition, one query and one key at a time."""
    q, k = unit64(queries), unit64(keys)
    total = 0.0
    for i in range(len(q)):
        logits = [q[i] @ k[j] / temperature for j in range(len(k))]
        total -= logits[i] - np.log(sum(np.exp(logits)))
    return total / len(q)


def supervised_contrastive_loop(embeddings, labels, temperature):
    """The definition of star.md section 2.3, as a double loop."""
    u = unit64(embeddings)
    losses = []
    for i in range(len(u)):
        others = [a for a in range(len(u)) if a != i]
        positives = [a for a in others if labels[a] == labels[i]]
        if not positives:
            continue
        log_normalizer = np.log(sum(np.exp(u[i] @ u[a] / temperature) for a in others))
        losses.append(-np.mean([u[i] @ u[p] / temperature - log_normalizer for p in positives]))
    return np.mean(losses)


def random_batch(seed, rows, dim, classes):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dim)).astype(np.float32), rng.integers(0, classes, rows)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("extra", [0, 5])
def test_info_nce_equals_the_double_loop(temperature, extra):
    queries, _ = random_batch(0, 7, 5, 3)
    keys, _ = random_batch(1, 7 + extra, 5, 3)
    expected = info_nce_loop(queries, keys, temperature)
    assert info_nce(queries, keys, temperature=temperature) == pytest.approx(expected, rel=1e-5)


def test_symmetric_info_nce_is_the_mean_of_both_directions():
    queries, _ = random_batch(0, 6, 4, 3)
    keys, _ = random_batch(1, 6, 4, 3)
    expected = (info_nce_loop(queries, keys, 0.1) + info_nce_loop(keys, queries, 0.1)) / 2
    assert symmetric_info_nce(queries, keys, temperature=0.1) == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_identical_orthogonal_pairs_by_hand():
    """Two orthogonal unit vectors, tau = 1: every row is log(e + 1) - 1."""
    pair = jnp.eye(2)
    assert info_nce(pair, pair, temperature=1.0) == pytest.approx(np.log(np.e + 1) - 1, rel=1e-6)


def test_without_normalisation_the_dot_products_are_taken_as_they_are():
    queries = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    expected = np.mean([np.log(np.exp(4) + 1) - 4, np.log(np.exp(9) + 1) - 9])
    assert info_nce(queries, queries, temperature=1.0, normalize=False) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrastive_equals_the_double_loop(temperature):
    embeddings, labels = random_batch(2, 24, 6, 5)
    expected = supervised_contrastive_loop(embeddings, labels, temperature)
    value = supervised_contrastive(embeddings, labels, temperature=temperature)
    assert value == pytest.approx(expected, rel=1e-6)


def test_supervised_contrastive_gradient_equals_finite_differences_of_the_loop():
    embeddings, labels = random_batch(3, 6, 3, 2)
    gradient = jax.grad(lambda e: supervised_contrastive(e, labels, temperature=0.3))(embeddings)
    step = 1e-5
    for i, d in itertools.product(range(6), range(3)):
        moved = [np.array(embeddings, np.float64) for _ in range(2)]
        moved[0][i, d] += step
        moved[1][i, d] -= step
        up, down = (supervised_contrastive_loop(m, labels, 0.3) for m in moved)
        assert gradient[i, d] == pytest.approx((up - down) / (2 * step), abs=2e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_supervised_contrastive_does_not_depend_on_row_order(seed):
    """Author-major and view-major rows, or any other order, give one value."""
    embeddings, labels = random_batch(seed, 12, 4, 3)
    order = np.random.default_rng(seed).permutation(12)
    value = supervised_contrastive(embeddings, labels, temperature=0.1)
    permuted = supervised_contrastive(embeddings[order], labels[order], temperature=0.1)
    assert permuted == pytest.approx(float(value), rel=2e-5)


def test_the_self_pair_is_in_neither_sum():
    """Two identical items of one class and one of another: by hand, with s = 1 between twins and 0 to the third."""
    embeddings = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected = np.log(np.exp(2.0) + 1.0) - 2.0  # candidates of a twin: the other twin (1 / 0.5) and the third (0)
    value = supervised_contrastive(embeddings, jnp.array([0, 0, 1]), temperature=0.5)
    assert value == pytest.approx(expected, rel=1e-6)


def test_an_anchor_without_positives_is_a_candidate_only():
    embeddings, _ = random_batch(4, 5, 3, 2)
    labels = np.array([0, 0, 1, 1, 2])
    assert supervised_contrastive(embeddings, labels, temperature=0.2) == pytest.approx(
        supervised_contrastive_loop(embeddings, labels, 0.2), rel=1e-5
    )
    alone = supervised_contrastive(embeddings, np.arange(5), temperature=0.2)
    assert alone == 0.0


def test_a_zero_vector_has_finite_value_and_gradient():
    embeddings = jnp.zeros((4, 3)).at[1:].set(random_batch(5, 3, 3, 2)[0])
    value, gradient = jax.value_and_grad(lambda e: supervised_contrastive(e, jnp.array([0, 0, 1, 1]), temperature=0.1))(
        embeddings
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(unit_vectors(jnp.zeros((1, 3))), 0)


def test_bfloat16_inputs_are_accumulated_in_float32():
    embeddings, labels = random_batch(6, 64, 32, 8)
    value = supervised_contrastive(jnp.asarray(embeddings, jnp.bfloat16), labels, temperature=0.1)
    assert value.dtype == jnp.float32
    assert value == pytest.approx(supervised_contrastive_loop(embeddings, labels, 0.1), rel=1e-2)


def test_the_temperature_is_learnable():
    embeddings, labels = random_batch(7, 12, 4, 3)
    gradient = jax.grad(lambda t: supervised_contrastive(embeddings, labels, temperature=t))(0.2)
    up, down = (supervised_contrastive_loop(embeddings, labels, 0.2 + h) for h in (1e-5, -1e-5))
    assert gradient == pytest.approx((up - down) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2)])
def test_a_mesh_changes_neither_value_nor_gradient(shape):
    embeddings, labels = random_batch(8, 32, 8, 6)
    mesh = make_mesh(MeshConfig(data=shape[0], fsdp=shape[1], tensor=shape[2]))

    def loss(e, mesh=None):
        return supervised_contrastive(e, jnp.asarray(labels), temperature=0.1, mesh=mesh)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(embeddings))
    on_mesh, mesh_gradient = jax.jit(jax.value_and_grad(lambda e: loss(e, mesh)))(jnp.asarray(embeddings))
    assert on_mesh == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(mesh_gradient, gradient, rtol=1e-4, atol=1e-7)
    nce = lambda e, mesh=None: symmetric_info_nce(e[:16], e[16:], temperature=0.1, mesh=mesh)  # noqa: E731
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda e: nce(e, mesh)))(jnp.asarray(embeddings)),
        jax.grad(nce)(jnp.asarray(embeddings)),
        rtol=1e-4,
        atol=1e-7,
    )


def literal_loop(embeddings, labels, scale=100.0):
    """What the released code computes, spelled out (star.md section 2.3)."""
    e = np.asarray(embeddings, np.float64)
    left, right = e / np.linalg.norm(e, axis=1, keepdims=True), e / np.linalg.norm(e, axis=0, keepdims=True)
    logits = scale * left @ right.T
    total = 0.0
    for i in range(len(e)):
        row = logits[i] - logits[i].max()
        others = [a for a in range(len(e)) if a != i]
        positives = [a for a in others if labels[a] == labels[i]]
        log_normalizer = np.log(sum(np.exp(row[a]) for a in others) + 1e-12)
        total -= np.mean([row[p] - log_normalizer for p in positives])
    return total / len(e)


def test_the_literal_variant_equals_its_definition_and_differs_from_supcon():
    embeddings, _ = random_batch(9, 16, 8, 4)
    labels = np.repeat(np.arange(4), 4)
    value = feature_normalized_contrastive(embeddings, labels, scale=20.0)
    assert value == pytest.approx(literal_loop(embeddings, labels, 20.0), rel=1e-4)
    assert abs(value - supervised_contrastive(embeddings, labels, temperature=1 / 20)) > 0.1


def test_the_literal_variant_equals_the_same_formula_in_torch():
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    embeddings, _ = random_batch(10, 12, 6, 3)
    labels = np.repeat(np.arange(3), 4)
    e = torch.tensor(embeddings)
    functional = torch.nn.functional
    logits = 100 * functional.normalize(e, dim=1) @ functional.normalize(e.T, dim=1)
    logits = logits - logits.max(dim=1, keepdim=True).values
    not_self = 1 - torch.eye(len(e))
    positive = (torch.tensor(labels)[:, None] == torch.tensor(labels)[None]).float() * not_self
    log_probability = logits - torch.log((torch.exp(logits) * not_self).sum(1, keepdim=True) + 1e-12)
    expected = -((positive * log_probability).sum(1) / positive.sum(1)).mean().item()
    assert feature_normalized_contrastive(embeddings, labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(jnp.ones((2, 3)), jnp.ones((2, 4)), temperature=0.1), "must be .n, dim."),
        (lambda: info_nce(jnp.ones((3, 2)), jnp.ones((2, 2)), temperature=0.1), "every query needs its key"),
        (
            lambda: info_nce(jnp.ones((2, 2)), jnp.ones((2, 2)), temperature=0.0),
            "temperature must be positive",
        ),
        (lambda: symmetric_info_nce(jnp.ones((2, 2)), jnp.ones((3, 2)), temperature=1.0), "as many keys"),
        (
            lambda: supervised_contrastive(jnp.ones((3, 2)), jnp.ones(2), temperature=1.0),
            r"got \(3, 2\) and \(2,\)",
        ),
        (lambda: supervised_contrastive(jnp.ones((1, 2)), jnp.ones(1), temperature=1.0), "at least two"),
        (lambda: supervised_contrastive(jnp.ones((2, 2)), jnp.ones(2), temperature=-1.0), "temperature"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
