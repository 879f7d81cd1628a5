"""SimCTG's token contrast against loops over tokens, and what padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.token_margin import token_margin_contrast

RNG = np.random.default_rng(4)
HIDDEN = RNG.standard_normal((3, 6, 5)) + 0.8
MASK = np.arange(6) < np.array([[6], [4], [1]])


def by_loops(hidden, mask, margin):
    total, pairs = 0.0, 0
    for vectors, real in zip(hidden, mask, strict=True):
        for i in np.flatnonzero(real):
            for j in np.flatnonzero(real):
                if i != j:
                    a, b = vectors[i], vectors[j]
                    total += max(0, margin - 1 + a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                    pairs += 1
    return total / pairs


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_it_is_its_equation(margin):
    value = token_margin_contrast(jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(MASK), margin=margin)
    assert value == pytest.approx(by_loops(HIDDEN, MASK, margin), rel=1e-5)


def test_padding_and_lone_tokens_change_nothing():
    loss = jax.value_and_grad(token_margin_contrast)
    short = jnp.asarray(HIDDEN[1:2, :4], jnp.float32)
    padded = jnp.concatenate([short, jnp.full((1, 9, 5), 3.0)], axis=1)
    value, gradient = loss(padded, jnp.arange(13)[None] < 4)
    expected, reference = loss(short, None)
    assert value == pytest.approx(float(expected), rel=1e-6) and value > 0.01
    np.testing.assert_allclose(gradient[:, :4], reference, rtol=1e-5)
    assert not np.any(gradient[:, 4:])
    assert token_margin_contrast(jnp.asarray(HIDDEN, jnp.float32), jnp.arange(6)[None] < jnp.ones((3, 1))) == 0


def test_pairs_are_pooled_over_the_batch_not_averaged_per_text():
    parts = [by_loops(HIDDEN[b : b + 1], MASK[b : b + 1], 0.5) for b in (0, 1)]
    value = token_margin_contrast(jnp.asarray(HIDDEN[:2], jnp.float32), jnp.asarray(MASK[:2]))
    assert value == pytest.approx((30 * parts[0] + 12 * parts[1]) / 42, rel=1e-5)
    assert abs(value - np.mean(parts)) > 1e-3


def test_the_gradient_is_the_finite_difference_and_ignores_length():
    hidden = jnp.asarray(HIDDEN, jnp.float32)
    gradient = jax.grad(token_margin_contrast)(hidden, jnp.asarray(MASK))
    step = 1e-5
    for index in [(0, 1, 2), (1, 3, 0)]:
        moved = [HIDDEN.copy(), HIDDEN.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        slope = (by_loops(moved[0], MASK, 0.5) - by_loops(moved[1], MASK, 0.5)) / (2 * step)
        assert gradient[index] == pytest.approx(slope, rel=1e-3)
    assert token_margin_contrast(7 * hidden, jnp.asarray(MASK)) == pytest.approx(
        float(token_margin_contrast(hidden, jnp.asarray(MASK))), rel=1e-5
    )


def test_zero_vectors_are_finite_and_low_precision_accumulates_in_float32():
    value, gradient = jax.value_and_grad(token_margin_contrast)(jnp.zeros((1, 3, 4)))
    assert value == 0 and np.isfinite(gradient).all()
    assert token_margin_contrast(jnp.ones((1, 3, 4), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_margin_contrast(jnp.zeros((3, 4))), r"expected hidden \[batch, time, dim\]"),
        (lambda: token_margin_contrast(jnp.zeros((2, 3, 4)), jnp.ones((2, 4), bool)), r"got \(2, 3, 4\) and \(2, 4\)"),
        (lambda: token_margin_contrast(jnp.zeros((2, 3, 4)), margin=-0.1), "margin must be >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
