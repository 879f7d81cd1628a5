"""Propensities by hand and by numpy; sampling frequencies against the exact weights; what weighting achieves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from jaxcore.data.propensity import (
    effective_sample_size,
    fit_logistic_propensity,
    frequency_histogram,
    importance_propensity,
    importance_target_histogram,
    inverse_propensity_sample,
    propensity_histogram,
    propensity_lookup,
)
from jaxcore.distributed import BATCH_AXES, MeshConfig, make_mesh


def test_histogram_by_hand():
    """Bins of width 1/4: (0.1, 0.2 | 0.3 | | 0.8, 1.0) with selection (0.1, 0.3 | 0.4 | | 0.002, 0)."""
    phi = np.array([[0.1, 0.2, 0.3], [0.8, 1.0, 7.0]])
    selection = np.array([[0.1, 0.3, 0.4], [0.002, 0.0, 50.0]])
    table = propensity_histogram(
        phi, selection, num_bins=4, minimum=0.02, valid=np.array([[True] * 3, [True, True, False]])
    )
    np.testing.assert_allclose(table, [0.5, 1.0, 0.02, 0.02])
    np.testing.assert_allclose(propensity_lookup(table, jnp.asarray(phi)), [[0.5, 0.5, 1.0], [0.02, 0.02, 0.02]])


def test_frequencies_by_hand():
    phi = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.99, 1.0])
    np.testing.assert_allclose(frequency_histogram(phi, num_bins=2, minimum=0.1), [1.0, 0.75])
    np.testing.assert_allclose(frequency_histogram(np.zeros(9), num_bins=3, minimum=0.1), [1.0, 0.1, 0.1])


def test_tables_of_two_features_equal_numpy_histograms():
    rng = np.random.default_rng(0)
    phi, psi, selection = rng.uniform(0, 1, 500), rng.uniform(-1, 1, 500), rng.uniform(0, 1, 500)
    options = {"num_bins": (3, 5), "ranges": ((0, 1), (-1, 1))}
    chosen, *edges = np.histogram2d(phi, psi, (3, 5), ((0, 1), (-1, 1)), weights=selection)
    present, *_ = np.histogram2d(phi, psi, (3, 5), ((0, 1), (-1, 1)))
    rate = chosen / present
    table = propensity_histogram((phi, psi), selection, minimum=0.01, **options)
    np.testing.assert_allclose(table, rate / rate.max(), rtol=1e-6)
    i, j = np.digitize(phi, edges[0][1:-1]), np.digitize(psi, edges[1][1:-1])
    found = jax.jit(lambda *x: propensity_lookup(table, x, ranges=options["ranges"]))(phi, psi)
    np.testing.assert_allclose(found, table[i, j])
    target = importance_target_histogram(phi, psi, num_bins=(3, 5), smoothing=2.0)
    np.testing.assert_allclose(target, (present + 2) / (500 + 2 * 15), rtol=1e-6)


def test_importance_weights_turn_the_naive_distribution_into_the_target():
    naive, target = np.array([[0.4, 0.1], [0.2, 0.3]]), np.array([[0.1, 0.2], [0.3, 0.4]])
    table = importance_propensity(naive, target, minimum=0.01)
    reweighted = naive / table
    np.testing.assert_allclose(reweighted / reweighted.sum(), target, rtol=1e-6)
    assert importance_propensity(naive, target, minimum=0.5).min() == 0.5


def test_draws_follow_the_weights_and_never_pass_a_shut_gate():
    gate = np.array([[1.0, 1.0, 0.0, 2.0, 1.0]])
    propensity = np.array([[0.5, 0.1, 0.02, 1.0, 0.25]])
    rows = 40_000
    sampled = inverse_propensity_sample(
        jax.random.key(0), jnp.tile(gate, (rows, 1)), jnp.tile(propensity, (rows, 1)), 2
    )
    weights = (gate / propensity)[0]
    probability = weights / weights.sum()
    counts = np.bincount(np.asarray(sampled.indices[:, 0]), minlength=5)
    assert counts[2] == 0
    kept = probability > 0
    assert scipy.stats.chisquare(counts[kept], rows * probability[kept]).pvalue > 1e-3
    second = np.bincount(np.asarray(sampled.indices[:, 1]), minlength=5)
    without = [
        sum(probability[i] * probability[j] / (1 - probability[i]) for i in range(5) if i != j) for j in range(5)
    ]
    assert scipy.stats.chisquare(second[kept], rows * np.array(without)[kept]).pvalue > 1e-3
    assert (sampled.indices[:, 0] != sampled.indices[:, 1]).all()


def test_rows_without_enough_candidates_say_so():
    gate = jnp.array([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0]])
    sampled = jax.jit(inverse_propensity_sample, static_argnums=3)(
        jax.random.key(1), gate, jnp.full((3, 3), 0.5, jnp.float16), 2
    )
    assert sampled.fallback.tolist() == [True, False, False]
    assert sampled.indices[0].tolist() == [-1, -1] and sampled.indices[1].tolist() == [1, -1]
    assert sorted(sampled.indices[2].tolist())[0] >= 0


def test_draws_do_not_depend_on_the_devices():
    gate, propensity = jax.random.uniform(jax.random.key(2), (2, 64, 12))
    expected = inverse_propensity_sample(jax.random.key(3), gate, propensity, 3)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    on_mesh = jax.jit(inverse_propensity_sample, static_argnums=3)(
        jax.random.key(3), *(jax.device_put(x, split) for x in (gate, propensity)), 3
    )
    np.testing.assert_array_equal(on_mesh.indices, expected.indices)


def test_inverse_propensity_makes_selection_independent_of_the_feature():
    """Pairs offered by a rule that likes large phi: weighted by 1/e, every bin of phi is chosen equally often."""
    rng = np.random.default_rng(4)
    phi = rng.uniform(0, 1, (4000, 40))
    naive = np.exp(3 * phi)
    naive /= naive.sum(1, keepdims=True)
    table = propensity_histogram(phi, naive, num_bins=10, minimum=0.02)
    propensity = np.asarray(propensity_lookup(table, jnp.asarray(phi)), np.float64)
    means = {}
    for name, weights in (("inverse", naive / propensity), ("naive", naive), ("direct", naive * propensity)):
        expected = np.histogram(phi, 10, (0, 1), weights=weights / weights.sum(1, keepdims=True))[0]
        gate = jnp.asarray(naive, jnp.float32)
        drawn = inverse_propensity_sample(jax.random.key(7), gate, gate / jnp.asarray(weights), 1).indices
        selected = np.take_along_axis(phi, np.asarray(drawn), 1)
        found = np.histogram(selected, 10, (0, 1))[0]
        assert scipy.stats.chisquare(found, expected).pvalue > 1e-3, name
        means[name] = selected.mean()
        if name == "inverse":  # not exactly: weights are normalised over 40 candidates, and bins have a width
            assert np.abs(expected / 4000 - 0.1).max() < 0.006
    assert abs(means["inverse"] - 0.5) < 0.02
    assert means["naive"] > 0.65 and means["direct"] > 0.75


def test_effective_sample_size_of_equal_and_of_lopsided_weights():
    weights = jnp.array([[1.0, 1, 1, 1], [7, 0, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    np.testing.assert_allclose(effective_sample_size(weights), [4, 1, 0, 16 / 10], rtol=1e-6)
    np.testing.assert_allclose(effective_sample_size(weights * 1e30), [4, 1, 0, 1.6], rtol=1e-6)


def test_logistic_model_recovers_the_rule_that_made_the_selection():
    rng = np.random.default_rng(6)
    features = rng.uniform(0, 1, (200, 50, 3)) * [1, 10, 0.1]
    logits = features @ np.array([2.0, -0.3, 5.0]) - 1
    probability = 1 / (1 + np.exp(-logits))
    model = fit_logistic_propensity(features, probability, minimum=0.02, regularization=1e6)
    np.testing.assert_allclose(model.weights, [2.0, -0.3, 5.0], rtol=0.02)
    found = jax.jit(model.lookup)(jnp.asarray(features))
    np.testing.assert_allclose(found, np.maximum(probability / probability.max(), 0.02), atol=0.01)
    assert float(found.max()) <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: propensity_histogram(np.zeros(3), np.ones(4)), r"shape \(3,\): got \(4,\)"),
        (lambda: propensity_histogram(np.zeros(3), -np.ones(3)), "must be >= 0"),
        (lambda: propensity_histogram(np.zeros(3), np.zeros(3)), "positive somewhere"),
        (lambda: propensity_histogram(np.zeros(3), np.ones(3), num_bins=0), "num_bins must be"),
        (lambda: propensity_histogram(np.zeros(3), np.ones(3), minimum=0), "minimum must be"),
        (lambda: propensity_histogram(np.full(3, np.nan), np.ones(3)), "finite"),
        (lambda: propensity_histogram(np.zeros(3), np.ones(3), ranges=((1, 0),)), "low < high"),
        (lambda: propensity_histogram((np.zeros(3), np.zeros(2)), np.ones(3)), "one shape"),
        (lambda: propensity_lookup(np.ones((2, 2)), jnp.zeros(3)), "2 dimensions needs as many features"),
        (lambda: importance_target_histogram(np.zeros(0), np.zeros(0)), "no labelled pairs"),
        (lambda: importance_target_histogram(np.zeros(1), np.zeros(1), smoothing=0), "smoothing must be"),
        (lambda: importance_propensity(np.ones(2), np.ones(3)), "one shape"),
        (lambda: importance_propensity(np.ones(2), np.array([0, 1])), "smooth it"),
        (lambda: inverse_propensity_sample(jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 4)), 1), "both be .n, K."),
        (lambda: inverse_propensity_sample(jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 3)), 4), "in 1..3"),
        (lambda: fit_logistic_propensity(np.zeros((4, 2)), np.zeros(4)), "neither all 0 nor all 1"),
        (lambda: fit_logistic_propensity(np.zeros((4, 2)), np.zeros(5)), "plus one axis"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
