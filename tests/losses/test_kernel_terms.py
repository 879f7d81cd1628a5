"""Kernel terms against loops over pairs in float64, and the numbers of SepCLR's published functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import pairs, uniformity
from jaxcore.losses.kernel_terms import (
    kernel_joint_entropy,
    kernel_mutual_information,
    maximum_mean_discrepancy,
    shuffled_joint_mmd,
)
from jaxcore.losses.pair_blocks import Blocks

RNG = np.random.default_rng(0)
COMMON = RNG.standard_normal((24, 4))
SALIENT = np.where(np.arange(24)[:, None] % 3 == 0, 0.0, RNG.standard_normal((24, 3)) + 1)  # rows that coincide
OTHER = RNG.standard_normal((16, 4)) * 1.5 + 0.5


def array(x):
    return jnp.asarray(x, jnp.float32)


def dense_kernel(a, b, tau):
    return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / (2 * tau))


def dense_entropy(codes, taus):
    kernel = 1.0
    for code, tau in zip(codes, taus, strict=True):
        kernel = kernel * dense_kernel(code, code, tau)
    return -jnp.mean(jnp.log(jnp.mean(kernel, axis=1)))


def dense_information(codes, taus):
    return sum(dense_entropy([c], [t]) for c, t in zip(codes, taus, strict=True)) - dense_entropy(codes, taus)


def dense_mmd(x, y, taus, unbiased=False):
    def mean(a, b, same):
        kernel = sum(dense_kernel(a, b, tau) for tau in taus) / len(taus)
        if same and unbiased:
            return jnp.sum(jnp.where(jnp.eye(len(a), dtype=bool), 0, kernel)) / (len(a) * (len(a) - 1))
        return jnp.mean(kernel)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def dense_shuffled(c, s, taus):
    order = jax.random.permutation(jax.random.key(5), 24)
    return dense_mmd(jnp.concatenate([c, s], 1), jnp.concatenate([c, s[order]], 1), taus)


CASES = {
    "joint_entropy": (
        lambda c, s, o, **k: kernel_joint_entropy([c, s], **k),
        lambda c, s, o: dense_entropy([c, s], (0.5, 0.5)),
    ),
    "joint_entropy_variances": (
        lambda c, s, o, **k: kernel_joint_entropy([c, s], variances=(2.0, 0.3), **k),
        lambda c, s, o: dense_entropy([c, s], (2.0, 0.3)),
    ),
    "entropy": (
        lambda c, s, o, **k: kernel_joint_entropy([s], variances=0.7, **k),
        lambda c, s, o: dense_entropy([s], (0.7,)),
    ),
    "information": (
        lambda c, s, o, **k: kernel_mutual_information([c, s], variances=(2.0, 0.3), **k),
        lambda c, s, o: dense_information([c, s], (2.0, 0.3)),
    ),
    "total_correlation": (
        lambda c, s, o, **k: kernel_mutual_information([c, s, c[:, :2]], **k),
        lambda c, s, o: dense_information([c, s, c[:, :2]], (0.5, 0.5, 0.5)),
    ),
    "mmd": (
        lambda c, s, o, **k: maximum_mean_discrepancy(c, o, variances=(0.5, 2.0, 8.0), **k),
        lambda c, s, o: dense_mmd(c, o, (0.5, 2.0, 8.0)),
    ),
    "mmd_unbiased": (
        lambda c, s, o, **k: maximum_mean_discrepancy(c, o, variances=2.0, estimator="unbiased", **k),
        lambda c, s, o: dense_mmd(c, o, (2.0,), unbiased=True),
    ),
    "shuffled_joint": (
        lambda c, s, o, **k: shuffled_joint_mmd(jax.random.key(5), c, s, variances=(1.0, 4.0), **k),
        lambda c, s, o: dense_shuffled(c, s, (1.0, 4.0)),
    ),
}


@functools.cache
def expected(name):
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in (COMMON, SALIENT, OTHER)]
        value, gradients = jax.value_and_grad(CASES[name][1], argnums=(0, 1, 2))(*inputs)
        return float(value), [np.asarray(g) for g in gradients]


def check(name, **options):
    call = functools.partial(CASES[name][0], **options)
    inputs = [array(x) for x in (COMMON, SALIENT, OTHER)]
    value, gradients = jax.jit(jax.value_and_grad(call, argnums=(0, 1, 2)))(*inputs)
    reference, reference_gradients = expected(name)
    assert float(value) == pytest.approx(reference, rel=1e-5)
    for gradient, of_input in zip(gradients, reference_gradients, strict=True):
        np.testing.assert_allclose(gradient, of_input, atol=max(1e-5 * np.abs(of_input).max(), 1e-7))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_sum_over_pairs_in_float64(name, monkeypatch):
    monkeypatch.setitem(pairs._LARGEST_BLOCKS, "cpu", Blocks(7, 10))
    check(name)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", ["joint_entropy_variances", "mmd_unbiased", "shuffled_joint"])
def test_eight_devices_change_nothing(name, exchange):
    check(name, mesh=make_mesh(MeshConfig(data=4, fsdp=2)), exchange=exchange)


def test_numbers_of_the_published_functions():
    """SepCLR's own code, run in float64 on these inputs, gives these values."""
    i, j, k = np.arange(6)[:, None], np.arange(4)[None], np.arange(3)[None]
    membership = np.array([0, 0, 1, 1, 1, 1])[:, None]
    commons = [np.sin(i + 0.5 * j + shift) for shift in (0.1, 0.3)]
    commons = [c / np.linalg.norm(c, axis=1, keepdims=True) for c in commons]
    salients = [membership * np.cos(0.7 * i * (k + 1) + shift) for shift in (0.2, 0.4)]
    negative_entropy = [-kernel_joint_entropy([array(c), array(t)]) for c, t in zip(commons, salients, strict=True)]
    assert float(np.mean(negative_entropy)) == pytest.approx(-1.46120318, rel=1e-6)
    for codes, value in ((commons, -1.62892920), (salients, -1.30217771)):
        spread = [uniformity(array(code), scale=1.0, normalize=False) for code in codes]
        assert float(np.mean(spread)) == pytest.approx(value, rel=1e-5)


def test_gradients_are_finite_and_zero_where_all_points_coincide():
    same = jnp.full((16, 3), 0.1)
    value, gradient = jax.value_and_grad(lambda x: kernel_joint_entropy([x, x]))(same)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    value, gradient = jax.value_and_grad(lambda x: maximum_mean_discrepancy(x, same, variances=1.0))(same)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_points_far_apart_and_far_from_the_origin():
    """Kernels underflow to 0: every point is alone with itself, and the entropy is log n; the origin plays no part."""
    far = array(1e4 * np.eye(8))
    assert float(kernel_joint_entropy([far])) == pytest.approx(np.log(8), rel=1e-6)
    with jax.enable_x64(True):
        reference = float(dense_entropy([jnp.asarray(COMMON)], (0.5,)))
    assert float(kernel_joint_entropy([array(COMMON + 100)])) == pytest.approx(reference, rel=1e-4)


def test_dependence_is_seen():
    c = RNG.standard_normal((256, 2))
    independent, dependent = RNG.standard_normal((256, 2)), c + 0.1 * RNG.standard_normal((256, 2))
    information, discrepancy = (
        [float(f(array(c), array(s))) for s in (independent, dependent)]
        for f in (
            lambda a, b: kernel_mutual_information([a, b]),
            lambda a, b: shuffled_joint_mmd(jax.random.key(0), a, b, variances=1.0),
        )
    )
    assert information[1] > information[0] + 0.3
    assert discrepancy[1] > 5 * discrepancy[0] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel_joint_entropy([]), "one or more"),
        (lambda x: kernel_joint_entropy([x, x[:3]]), "with one n"),
        (lambda x: kernel_joint_entropy([x], variances=0.0), "variances must be positive"),
        (lambda x: kernel_joint_entropy([x, x], variances=(1.0, 2.0, 3.0)), r"one per code \(2\)"),
        (lambda x: kernel_joint_entropy([x[0]]), r"code 0 must be \[n, dim\]"),
        (lambda x: kernel_joint_entropy([x, x.at[4, 0].set(jnp.nan)]), "code 1 must not be NaN"),
        (lambda x: kernel_mutual_information([x]), "two codes or more"),
        (lambda x: maximum_mean_discrepancy(x, x[:, :2], variances=1.0), "takes"),
        (lambda x: maximum_mean_discrepancy(x, x[:1], variances=1.0, estimator="unbiased"), "at least 2"),
        (lambda x: maximum_mean_discrepancy(x, x, variances=()), "got none"),
        (lambda x: maximum_mean_discrepancy(x, x, variances=1.0, estimator="linear"), "estimator must be"),
        (lambda x: shuffled_joint_mmd(jax.random.key(0), x, x[:5], variances=1.0), "one row per item"),
        (
            lambda x: kernel_joint_entropy([x[:6]], mesh=make_mesh(MeshConfig(data=8))),
            "cannot be split over the 8 devices",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(array(COMMON))
