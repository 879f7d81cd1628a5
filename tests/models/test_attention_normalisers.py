"""Sparse normalisers against bisection, the entropies they maximise, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.attribution import deep_lift, lrp
from jaxcore.models.attention_normalisers import ATTENTION_NORMALISERS, entmax15, softmax, sparsemax

SPARSE = {"sparsemax": sparsemax, "entmax15": entmax15}
JITTED = {
    (name, axis): jax.jit(lambda z, mask, f=f, axis=axis: f(z, mask=mask, axis=axis))
    for name, f in ATTENTION_NORMALISERS.items()
    for axis in (-1, 1)
}
"""Compiled once per dtype for [3, 7, 4]."""


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def bisected(name: str, z: np.ndarray) -> np.ndarray:
    """The weights of one row by bisection on the threshold, where their sum falls through 1."""
    scale, power = (1, 1) if name == "sparsemax" else (0.5, 2)
    low, high = (scale * z).max() - 1, (scale * z).max()
    for _ in range(200):
        middle = (low + high) / 2
        if (np.maximum(scale * z - middle, 0) ** power).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(scale * z - (low + high) / 2, 0) ** power


def drawn(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = spread * rng.standard_normal((3, 7, 4))
    if seed % 3 == 0:
        scores = np.round(scores)  # ties
    mask = rng.random((3, 7, 4)) < 0.8
    mask[:, 0, 0] = True
    return scores, mask


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("axis", (-1, 1))
@pytest.mark.parametrize("spread", (0.01, 1, 30))
def test_weights_are_those_of_bisection_on_real_entries(name, axis, spread, double_precision):
    for seed in range(4):
        scores, mask = drawn(seed, spread)
        got = np.moveaxis(np.asarray(JITTED[name, axis](scores, mask)), axis, -1).reshape(-1, scores.shape[axis])
        rows = np.moveaxis(np.stack([scores, mask]), axis if axis < 0 else axis + 1, -1).reshape(2, len(got), -1)
        for weights, z, real in zip(got, rows[0], rows[1].astype(bool), strict=True):
            assert not weights[~real].any()
            if real.any():
                np.testing.assert_allclose(weights[real], bisected(name, z[real]), atol=1e-12)
                assert abs(weights.sum() - 1) < 1e-12


def entropy(name: str, p: np.ndarray) -> np.ndarray:
    """Tsallis entropies of order 2 and 1.5 (Peters et al. 2019)."""
    alpha = 2 if name == "sparsemax" else 1.5
    return (1 - (p**alpha).sum(-1)) / (alpha * (alpha - 1))


@pytest.mark.parametrize("name", SPARSE)
def test_no_other_distribution_is_better(name, double_precision):
    rng = np.random.default_rng(0)
    z = rng.standard_normal(6)
    best = np.asarray(jax.jit(SPARSE[name])(z))
    others = np.concatenate([rng.dirichlet(np.full(6, a), 2000) for a in (0.1, 1)])
    near = 0.99 * best + 0.01 * others
    for p in (others, near):
        assert np.all(p @ z + entropy(name, p) < best @ z + entropy(name, best))


def test_sparser_from_softmax_to_sparsemax():
    z = np.array([2.0, 1.6, 0.9, -1.0], np.float32)
    weights = [np.asarray(jax.jit(f)(z)) for f in (softmax, entmax15, sparsemax)]
    assert [int((w > 0).sum()) for w in weights] == [4, 3, 2]
    np.testing.assert_allclose(weights[2], [0.7, 0.3, 0, 0], atol=1e-6)


@pytest.mark.parametrize("name", SPARSE)
def test_derivatives_are_those_of_differences(name, double_precision):
    """First and second order, by central differences; the support stays the same over the step."""
    scores, mask = drawn(1, 1.0)
    rng = np.random.default_rng(9)
    weight, direction = rng.standard_normal((2, 3, 7, 4))
    mask[0, :, 1] = False  # a row without real entries

    @jax.jit
    def derivatives(z):
        f = lambda z: jnp.sum(weight * SPARSE[name](z, mask=mask, axis=1) ** 2)  # noqa: E731
        slope = lambda z: jnp.sum(jax.grad(f)(z) * direction)  # noqa: E731
        return f(z), slope(z), jnp.sum(jax.grad(slope)(z) * direction), jax.grad(f)(z)

    step = 1e-5
    above, here, below = (derivatives(scores + s * direction) for s in (step, 0, -step))
    np.testing.assert_allclose((above[0] - below[0]) / (2 * step), here[1], rtol=1e-7)
    np.testing.assert_allclose((above[1] - below[1]) / (2 * step), here[2], rtol=1e-6)
    assert abs(here[2]) > 0.1 and np.all(here[3][~mask] == 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.sampled_from((1e-3, 1.0, 1e3)), shift=st.floats(-1e3, 1e3))
@pytest.mark.parametrize("name", SPARSE)
def test_shifts_and_order_do_not_matter_in_float32(name, seed, spread, shift):
    scores, mask = drawn(seed, spread)
    scores, run = scores.astype(np.float32), JITTED[name, -1]
    weights = np.asarray(run(scores, mask))
    sums = weights.sum(-1)
    np.testing.assert_allclose(sums, mask.any(-1), atol=2e-6)
    assert weights.min() >= 0 and not weights[~mask].any()
    order = np.random.default_rng(seed).permutation(4)
    np.testing.assert_array_equal(run(scores[..., order], mask[..., order]) > 0, weights[..., order] > 0)
    moved = np.where(mask, scores + np.float32(shift), 1e30)  # padding's scores are not looked at
    np.testing.assert_allclose(run(moved.astype(np.float32), mask), weights, atol=2e-6 * max(1, abs(shift), spread))


@pytest.mark.parametrize("name", ATTENTION_NORMALISERS)
def test_extremes(name):
    """Equal scores, scores beyond any range, padding that is NaN, and nothing real; undefined scores stay visible."""
    nan, inf = np.nan, np.inf
    rows = [[0, 0, 0], [1e30, -1e30, -inf], [nan, 0, inf], [1, 2, 3], [0, nan, 0], [0, inf, 0], [-inf, -inf, -inf]]
    mask = np.ones((7, 3), bool)
    mask[2], mask[3] = [False, True, False], False
    weights = np.asarray(jax.jit(ATTENTION_NORMALISERS[name])(np.array(rows, np.float32), mask=mask))
    np.testing.assert_allclose(weights[:4], [[1 / 3] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 0]], atol=1e-6)
    if name != "softmax":
        assert np.isnan(weights[4:]).all()


@pytest.mark.parametrize("name", ATTENTION_NORMALISERS)
def test_dtypes_and_bad_input(name):
    f = ATTENTION_NORMALISERS[name]
    assert jax.eval_shape(f, jax.ShapeDtypeStruct((4,), jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="floating point: got int"):
        f(np.arange(3))
    with pytest.raises(ValueError, match="axis 1 is out of range"):
        f(np.ones(3, np.float32), axis=1)
    with pytest.raises(ValueError, match=r"mask of shape \(4,\) does not broadcast"):
        f(np.ones(3, np.float32), mask=np.ones(4, bool))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("method", (deep_lift, lrp))
def test_propagation_names_the_primitive_it_has_no_rule_for(name, method):
    """The support is found by sorting: neither a secant nor relevance is defined there, so nothing is guessed."""
    score = lambda h: jnp.einsum("bt,bth->b", SPARSE[name](h @ jnp.ones(2)), h)  # noqa: E731
    with pytest.raises(ValueError, match=f"{method.__name__} has no rule for the primitive 'sort'"):
        method(score, np.ones((1, 3, 2), np.float32))
