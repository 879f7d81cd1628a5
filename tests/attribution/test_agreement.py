"""Agreement of explanations against scipy, at every length, with ties; constant vectors are undefined and counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from jaxcore.attribution import agreement
from jaxcore.attribution.agreement import agreement_matrix, kendall_tau, pearson, spearman, weighted_kendall
from jaxcore.attribution.top_k_agreement import top_k_overlap

TIME = 9
REFERENCES = {
    kendall_tau: lambda a, b: stats.kendalltau(a, b).statistic,
    spearman: lambda a, b: stats.spearmanr(a, b).statistic,
    pearson: lambda a, b: stats.pearsonr(a, b).statistic,
    weighted_kendall: lambda a, b: stats.weightedtau(a, b).statistic,
}


def by_scipy(measure, a, b, mask):
    values = []
    for first, second, row in zip(a, b, mask, strict=True):
        first, second = first[row].astype(np.float64), second[row].astype(np.float64)
        undefined = len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0
        values.append(np.nan if undefined else REFERENCES[measure](first, second))
    return np.array(values)


def texts(seed, instances=40, levels=None):
    """Scores of texts of every length, those of few levels full of ties; NaN where there is no token."""
    rng = np.random.default_rng(seed)
    shape = (instances, TIME)
    a, b = (rng.integers(0, levels, shape) * 0.1 if levels else rng.normal(size=shape) for _ in range(2))
    mask = rng.permuted(np.arange(TIME) < rng.integers(0, TIME + 1, (instances, 1)), axis=1)
    return *(np.where(mask, scores, np.nan).astype(np.float32) for scores in (a, b)), mask


@pytest.mark.parametrize("measure", REFERENCES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 2, 3]))
def test_equals_scipy_with_masks_and_ties(measure, seed, levels):
    a, b, mask = texts(seed, levels=levels)
    expected = by_scipy(measure, a, b, mask)
    assert np.isnan(expected).any() and not np.isnan(expected).all()
    np.testing.assert_allclose(measure(a, b, mask), expected, atol=2e-6)


def test_exact_in_float64():
    a, b, mask = texts(3)
    with jax.enable_x64(True):
        for measure in REFERENCES:
            wide = [scores.astype(np.float64) for scores in (a, b)]
            np.testing.assert_allclose(measure(*wide, mask), by_scipy(measure, a, b, mask), atol=1e-13)


def test_other_weights_equal_scipy():
    a, b, _ = texts(5, levels=4)
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    values = weighted_kendall(a, b, exponent=2.5)
    expected = [
        stats.weightedtau(*map(np.float64, pair), weigher=lambda r: 1 / (r + 1) ** 2.5).statistic
        for pair in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(values, expected, atol=2e-6)
    np.testing.assert_allclose(weighted_kendall(a, b, exponent=0.0), kendall_tau(a, b), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_attributions_of_any_size_correlate(scale):
    a, b, _ = np.random.default_rng(0).normal(size=(3, 4, TIME)).astype(np.float32)
    np.testing.assert_allclose(pearson(a * np.float32(scale), b), pearson(a, b), rtol=1e-5)


def test_a_constant_is_undefined_even_where_its_mean_rounds():
    constant = np.full((1, 7), 0.1, np.float32)
    other = np.arange(7, dtype=np.float32)[None]
    for measure in REFERENCES:
        assert np.isnan(measure(constant, other)).all() and np.isnan(measure(constant, constant)).all()


def test_the_matrix_averages_the_defined_and_counts_the_rest():
    a, b, mask = texts(7)
    scores = {"one": a, "uniform": np.ones_like(a), "two": b}
    for measure in (kendall_tau, spearman, pearson, weighted_kendall):
        result = agreement_matrix(scores, mask, measure=measure)
        expected = by_scipy(measure, a, b, mask)
        assert result.names == ("one", "uniform", "two")
        np.testing.assert_allclose(result.per_instance[:, 0, 2], expected, atol=2e-6)
        np.testing.assert_allclose(result.per_instance[:, 2, 0], expected, atol=2e-6)
        np.testing.assert_allclose(result.mean[0, 2], np.nanmean(expected), atol=2e-6)
        np.testing.assert_allclose(result.std[0, 2], np.nanstd(expected), atol=2e-6)
        np.testing.assert_allclose(np.asarray(result.mean)[[0, 2], [0, 2]], 1, atol=2e-6)
        assert result.undefined[0, 2] == np.isnan(expected).sum()
        assert np.isnan(result.mean[1]).all() and (result.undefined[1] == len(a)).all()


def test_the_matrix_takes_measures_with_options():
    a, b, mask = texts(8)
    result = agreement_matrix({"one": a, "two": b}, mask, measure=functools.partial(top_k_overlap, k=3))
    np.testing.assert_array_equal(result.per_instance[:, 0, 1], top_k_overlap(a, b, mask, k=3))


def test_permuted_scores_agree_by_chance_only():
    """The specification's negative control."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 20)).astype(np.float32)
    assert abs(agreement_matrix({"a": a, "shuffled": rng.permuted(a, axis=1)}).mean[0, 1]) < 0.05


@pytest.mark.parametrize("measure", [kendall_tau, weighted_kendall])
def test_neither_chunks_nor_jit_nor_shards_change_the_result(measure):
    a, b, mask = texts(9)
    whole = measure(a, b, mask)
    np.testing.assert_allclose(measure(a, b, mask, chunk_size=7), whole, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(measure)(a, b, mask), whole, rtol=1e-6)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec("d"))
    np.testing.assert_allclose(measure(*(jax.device_put(x, sharding) for x in (a, b, mask))), whole, rtol=1e-6)


def test_is_compiled_once_for_each_shape():
    a, b, mask = texts(10)
    agreement_matrix({"a": a, "b": b}, mask, measure=weighted_kendall)
    compiled = agreement._chunked._cache_size()
    agreement_matrix({"a": b, "b": a}, mask, measure=weighted_kendall)
    weighted_kendall(a, b, mask, exponent=3.0)
    assert compiled >= 1 and agreement._chunked._cache_size() == compiled


@pytest.mark.parametrize(
    ("a", "b", "mask", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), None, r"share one shape .* \[2, 3\] and \[2, 4\]"),
        (jnp.ones(3), jnp.ones(3), None, r"\[instances, time\]"),
        (jnp.ones((0, 3)), jnp.ones((0, 3)), None, "not empty"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 2)), r"mask must be \[2, 3\], .* got \[2, 2\]"),
        (jnp.array([[1, 2.0], [jnp.nan, 1]]), jnp.ones((2, 2)), None, r"finite: .* instances \[1\]"),
    ],
)
def test_bad_input_is_refused(a, b, mask, message):
    with pytest.raises(ValueError, match=message):
        kendall_tau(a, b, mask)


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match="no explanations"):
        agreement_matrix({})
