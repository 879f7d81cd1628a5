"""Measures against loops in float64 and against point sets whose measure is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.distribution_shape import (
    CosinePairs,
    alignment,
    cosine_pairs,
    effective_rank,
    mean_cosine_isotropy,
    partition_isotropy,
    singular_spectrum,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)) @ np.diag([3, 1, 1, 0.5, 0.2, 0.1]) + 0.5
Y = X + 0.3 * RNG.standard_normal((40, 6))


def array(x):
    return jnp.asarray(x, jnp.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- alignment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_alignment_is_the_mean_distance(exponent, normalize):
    a, b = (unit(X), unit(Y)) if normalize else (X, Y)
    distances = np.linalg.norm(a - b, axis=1) ** exponent
    options = {"exponent": exponent, "normalize": normalize}
    assert float(alignment(array(X), array(Y), **options)) == pytest.approx(distances.mean(), rel=1e-5)
    weights = RNG.uniform(0, 1, 40) * (np.arange(40) % 3 > 0)
    weighted = alignment(array(X), array(Y), weights=array(weights), **options)
    assert float(weighted) == pytest.approx((weights * distances).sum() / weights.sum(), rel=1e-5)
    assert float(alignment(array(X), array(Y), weights=jnp.zeros(40), **options)) == 0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_alignment_has_no_gradient_at_coinciding_points(exponent):
    value, gradient = jax.value_and_grad(lambda x: alignment(x, array(X), exponent=exponent))(array(X))
    assert float(value) == 0
    assert (np.asarray(gradient) == 0).all()


# ---- isotropy --------------------------------------------------------------------------------------------


def test_mean_cosine_isotropy_pools_the_pairs_of_all_texts():
    states = RNG.standard_normal((3, 7, 6)) + 0.7
    lengths = [7, 4, 1]
    mask = np.arange(7) < np.array(lengths)[:, None]
    total = pairs = 0
    for text, length in zip(states, lengths, strict=True):
        cosines = unit(text[:length]) @ unit(text[:length]).T
        total += cosines.sum() - np.trace(cosines)
        pairs += length * (length - 1)
    result = mean_cosine_isotropy(array(np.where(mask[..., None], states, 1e6)), jnp.asarray(mask))
    assert float(result) == pytest.approx(1 - total / pairs, rel=1e-5)
    parts = [cosine_pairs(array(states[i]), jnp.asarray(mask[i])) for i in range(3)]
    together = CosinePairs(*(sum(p) for p in zip(*parts, strict=True)))
    assert float(together.isotropy()) == pytest.approx(1 - total / pairs, rel=1e-5)


def test_mean_cosine_isotropy_of_known_sets():
    assert float(mean_cosine_isotropy(jnp.ones((9, 4)))) == pytest.approx(0, abs=1e-6)
    assert float(mean_cosine_isotropy(jnp.eye(5))) == pytest.approx(1)
    assert float(mean_cosine_isotropy(jnp.concatenate([jnp.eye(5), -jnp.eye(5)]))) == pytest.approx(1 + 1 / 9)
    assert float(mean_cosine_isotropy(jnp.zeros((4, 5)))) == 1
    assert float(mean_cosine_isotropy(jnp.ones((1, 5)))) == 1
    assert float(mean_cosine_isotropy(X_SCALED)) == pytest.approx(float(mean_cosine_isotropy(array(X))), rel=1e-5)


X_SCALED = array(X * RNG.uniform(0.1, 10, (40, 1)))


def test_partition_isotropy_is_the_ratio_of_partition_functions():
    _, directions = np.linalg.eigh(X.T @ X)
    partitions = [np.exp(sign * X @ directions).sum(axis=0) for sign in (1, -1)]
    expected = np.min(partitions) / np.max(partitions)
    assert 1e-4 < expected < 0.5
    assert float(partition_isotropy(array(X))) == pytest.approx(expected, rel=1e-4)
    assert float(partition_isotropy(array(-X))) == pytest.approx(expected, rel=1e-4)


def test_partition_isotropy_of_known_sets():
    cross = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])
    assert float(partition_isotropy(9 * cross)) == pytest.approx(1, rel=1e-5)
    assert float(partition_isotropy(jnp.zeros((4, 5)))) == 1
    assert float(partition_isotropy(jnp.full((4, 5), 1e4))) == 0
    centred = array(X - X.mean(0))
    assert float(partition_isotropy(centred)) > float(partition_isotropy(array(X)))


# ---- spectrum --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("centre", [True, False])
def test_spectrum_and_rank_equal_numpy(rows, centre):
    x = X[:rows] - X[:rows].mean(0) * centre
    values = np.linalg.svd(x, compute_uv=False)
    options = {"centre": centre}
    spectrum = np.asarray(singular_spectrum(array(X[:rows]), **options))
    assert spectrum.shape == (min(rows, 6),)
    np.testing.assert_allclose(spectrum, values, atol=1e-5 * values[0])
    shares = values / values.sum()
    shares = shares[shares > 1e-12]
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert float(effective_rank(array(X[:rows]), **options)) == pytest.approx(expected, rel=1e-4)


def test_small_singular_values_are_kept():
    """1e-5 of the largest: squared, as in a covariance, it would drown in float32."""
    left, _ = np.linalg.qr(RNG.standard_normal((50, 3)))
    right, _ = np.linalg.qr(RNG.standard_normal((3, 3)))
    x = left @ np.diag([1.0, 1e-2, 1e-5]) @ right
    np.testing.assert_allclose(singular_spectrum(array(x), centre=False), [1, 1e-2, 1e-5], rtol=2e-2)


def test_effective_rank_of_known_sets():
    frame = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])
    assert float(effective_rank(frame)) == pytest.approx(5, rel=1e-5)
    assert float(effective_rank(7 * frame[:, :3] + 2)) == pytest.approx(3, rel=1e-5)
    line = array(np.outer(RNG.standard_normal(30), RNG.standard_normal(5)))
    assert float(effective_rank(line)) == pytest.approx(1, abs=1e-4)
    assert float(effective_rank(jnp.full((30, 5), 0.1))) == 0
    assert float(effective_rank(jnp.zeros((30, 5)), centre=False)) == 0


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: alignment(x, x[:3]), "must both be"),
        (lambda x: alignment(x, x, exponent=0.0), "exponent must be positive"),
        (lambda x: alignment(x, x, weights=jnp.ones(3)), r"weights must have shape \(40,\)"),
        (lambda x: alignment(x[:0], x[:0]), "got none"),
        (lambda x: cosine_pairs(x[0]), r"\[..., n, dim\]"),
        (lambda x: mean_cosine_isotropy(x, jnp.ones(3, bool)), r"mask must be \(40,\)"),
        (lambda x: partition_isotropy(x[:0]), "n and dim positive"),
        (lambda x: singular_spectrum(x[0]), r"\[n, dim\]"),
        (lambda x: effective_rank(x.at[1, 1].set(jnp.nan)), "first row 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(array(X))
