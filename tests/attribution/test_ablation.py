"""Leaving things out, against captum in float64, loops in numpy, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.ablation import (
    feature_ablation,
    feature_permutation,
    leave_one_span_out,
    occlusion,
    sliding_spans,
)
from jaxcore.attribution.feature_groups import token_groups

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.standard_normal((12, 5)), RNG.standard_normal((5, 1))
BATCH, BASELINE = RNG.standard_normal((3, 4, 3)), RNG.standard_normal((3, 4, 3))


def network(x):
    first, second = jnp.asarray(FIRST, x.dtype), jnp.asarray(SECOND, x.dtype)
    return (jnp.tanh(x.reshape(len(x), -1) @ first) ** 2 @ second)[:, 0]


def torch_network(torch):
    first, second = torch.tensor(FIRST), torch.tensor(SECOND)
    return lambda x: (torch.tanh(x.reshape(len(x), -1) @ first) ** 2 @ second)[:, 0]


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr", reason="the torch extra is not installed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("grouped", [False, True])
def test_feature_ablation_equals_captum(captum, torch, grouped):
    ids = RNG.integers(0, 5, (3, 4, 3)) if grouped else None
    mask = None if ids is None else torch.tensor(ids)
    method = captum.FeatureAblation(torch_network(torch))
    expected = method.attribute(torch.tensor(BATCH), torch.tensor(BASELINE), feature_mask=mask)
    with jax.enable_x64(True):
        values = feature_ablation(network, jnp.asarray(BATCH), baseline=BASELINE, groups=ids, chunk_size=5)
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("windows", "strides"), [((2, 3), 1), ((2, 2), (2, 1)), ((3, 2), (2, 2)), ((4, 3), 4), ((1, 1), 1)]
)
def test_occlusion_equals_captum(captum, torch, windows, strides):
    """To captum's own precision, which divides by a float32 count."""
    method = captum.Occlusion(torch_network(torch))
    expected = method.attribute(torch.tensor(BATCH), windows, strides, torch.tensor(BASELINE))
    with jax.enable_x64(True):
        values = occlusion(
            network, jnp.asarray(BATCH), windows=windows, strides=strides, baseline=BASELINE, chunk_size=4
        )
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_occlusion_of_two_arrays_equals_captum(captum, torch):
    other = RNG.standard_normal((3, 2, 5))
    mixing = RNG.standard_normal((10, 1))
    method = captum.Occlusion(
        lambda x, y: torch_network(torch)(x) * torch.sin(y.reshape(3, -1) @ torch.tensor(mixing))[:, 0]
    )
    expected = method.attribute((torch.tensor(BATCH), torch.tensor(other)), ((2, 1), (1, 2)), ((1, 1), (1, 2)))
    score = lambda pair: network(pair[0]) * jnp.sin(pair[1].reshape(3, -1) @ mixing)[:, 0]  # noqa: E731
    with jax.enable_x64(True):
        inputs = (jnp.asarray(BATCH), jnp.asarray(other))
        values = occlusion(score, inputs, windows=((2, 1), (1, 2)), strides=(1, (1, 2)), chunk_size=8)
        for ours, theirs in zip(values, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6)


def test_ablation_of_a_linear_score_is_weight_times_difference():
    weights = jnp.array([1.0, -2.0, 0.5])
    inputs, baseline = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), jnp.array([0.5, 0.0, -1.0])
    values = feature_ablation(lambda x: x @ weights, inputs, baseline=baseline, chunk_size=3)
    np.testing.assert_allclose(values, weights * (inputs - baseline), rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, None])
def test_the_chunk_does_not_change_results(chunk_size):
    inputs = jnp.asarray(BATCH, jnp.float32)
    groups = token_groups(jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]))
    options = {"groups": groups, "chunk_size": chunk_size}
    ablated = feature_ablation(network, inputs, **options)
    np.testing.assert_allclose(ablated, feature_ablation(network, inputs, groups=groups, chunk_size=4), atol=1e-6)
    windows = occlusion(network, inputs, windows=(2, 3), chunk_size=chunk_size)
    np.testing.assert_allclose(windows, occlusion(network, inputs, windows=(2, 3), chunk_size=3), atol=1e-6)


def test_padding_is_never_touched_and_gets_exactly_nothing():
    """A score that blows up when padding changes shows any touch; each row is as it would be alone and unpadded."""
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]])
    inputs = jnp.where(mask[..., None] != 0, jnp.asarray(BATCH, jnp.float32), 77.0)
    touched = lambda x: jnp.any((x != 77.0) & (mask[..., None] == 0), axis=(1, 2))  # noqa: E731
    score = lambda x: jnp.where(touched(x), jnp.nan, jnp.sum(jnp.where(x == 77.0, 0, x**3), axis=(1, 2)))  # noqa: E731
    values = jax.jit(lambda x: feature_ablation(score, x, groups=token_groups(mask), chunk_size=2))(inputs)
    per_token = np.sum(np.asarray(inputs) ** 3, axis=2, keepdims=True) * np.asarray(mask)[..., None]
    np.testing.assert_allclose(values, np.broadcast_to(per_token, values.shape), rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(values)[np.asarray(mask) == 0] == 0)


def test_spans_by_hand():
    inputs = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 99.0]])
    groups = jnp.array([[0, 1, 2, 3], [0, 1, 2, -1]])
    spans = jnp.array([[[0, 1], [1, 3], [0, 4]], [[2, 4], [0, 0], [3, 4]]])
    score = lambda x: jnp.sum(x, axis=1) ** 2  # noqa: E731
    values = leave_one_span_out(score, inputs, spans, groups=groups, chunk_size=2)
    whole, other = 15.0**2, 106.0**2
    np.testing.assert_allclose(values, [[whole - 14**2, whole - 9**2, whole], [other - 102**2, 0, 0]])


def test_sliding_spans_cover_everything_once_cut():
    np.testing.assert_array_equal(sliding_spans(5, width=2, stride=2), [[0, 2], [2, 4], [4, 5]])
    np.testing.assert_array_equal(sliding_spans(4, width=3), [[0, 3], [1, 4]])
    np.testing.assert_array_equal(sliding_spans(2, width=5), [[0, 2]])


def test_permutation_takes_the_value_of_another_example():
    """Of two examples each takes the other's: nothing is left to chance, and captum agrees."""
    weights = jnp.array([1.0, -2.0, 0.5])
    inputs = jnp.array([[1.0, 2.0, 3.0], [0.0, 5.0, -1.0]])
    values = feature_permutation(lambda x: x @ weights, inputs, jax.random.key(0), chunk_size=3)
    np.testing.assert_allclose(values, weights * (inputs - inputs[::-1]), rtol=1e-5)


def test_permutation_of_two_examples_equals_captum(captum, torch):
    expected = captum.FeaturePermutation(torch_network(torch)).attribute(torch.tensor(BATCH[:2]))
    with jax.enable_x64(True):
        values = feature_permutation(network, jnp.asarray(BATCH[:2]), jax.random.key(0), chunk_size=6)
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-9, atol=1e-12)


def test_permutations_average_to_the_mean_over_other_examples():
    inputs = jax.random.normal(jax.random.key(1), (4, 2))
    score = lambda x: jnp.sum(x**3, axis=1)  # noqa: E731
    values = feature_permutation(score, inputs, jax.random.key(2), num_permutations=3000, chunk_size=1000)
    others = (np.sum(np.asarray(inputs) ** 3, axis=0) - np.asarray(inputs) ** 3) / 3
    spread = np.std(np.asarray(inputs) ** 3, axis=0)
    assert np.all(np.abs(values - (np.asarray(inputs) ** 3 - others)) < 4 * spread / np.sqrt(3000))


def test_permutation_exchanges_only_what_both_examples_have():
    inputs = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    groups = jnp.array([[0, 1], [0, -1], [0, 1]])
    values = feature_permutation(lambda x: jnp.sum(x, axis=1), inputs, jax.random.key(0), groups=groups, chunk_size=2)
    np.testing.assert_allclose(values[:, 1], [-20, 0, 20])
    np.testing.assert_allclose(np.sum(values[:, 0]), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: occlusion(network, x, windows=(5, 3)), r"1 to that of its axis, \(4, 3\)"),
        (lambda x: occlusion(network, x, windows=(2, 1), strides=3), "strides must be 1 to the window's size"),
        (lambda x: occlusion(network, x, windows=(2,)), "one size for each axis"),
        (lambda x: occlusion(lambda t: network(t[0]), (x,), windows=(2,)), "one size for each axis"),
        (lambda x: occlusion(lambda t: network(t[0]), (x,), windows={}), "structure of the inputs"),
        (lambda x: feature_ablation(network, x, chunk_size=0), "chunk_size must be at least 1"),
        (lambda x: feature_ablation(lambda x: jnp.log(network(x) * 0 - 1), x), "not finite in 3 of 3"),
        (lambda x: feature_permutation(network, x[:1], jax.random.key(0)), "at least 2"),
        (
            lambda x: feature_permutation(
                network,
                x,
                jax.random.key(0),
                groups=token_groups(jnp.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]])),
            ),
            "a position one feature",
        ),
        (lambda x: leave_one_span_out(network, x, jnp.ones((2, 2)), groups=None), "spans must be integers"),
        (lambda x: leave_one_span_out(network, x, jnp.ones((2, 4, 2), int), groups=None), r"or \[3, spans, 2\]"),
        (lambda x: sliding_spans(4, width=1, stride=2), "stride must not exceed"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(BATCH, jnp.float32))
