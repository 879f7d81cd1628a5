"""The alignment loss against numpy in float64, its pooling of sub-words, and its gradient through an explanation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.losses.attribution_alignment import alignment_loss, pool_segments

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
ATTRIBUTIONS = RNG.standard_normal((2, 4))
PRIORS = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0]])


def reference(distance):
    losses = []
    for a, r, mask in zip(ATTRIBUTIONS, PRIORS, MASK, strict=True):
        a, r = a[mask], r[mask]
        a = a / (np.abs(a).sum() + 1e-6)
        p, q = scipy.special.softmax(r), scipy.special.softmax(a)
        losses.append(
            {
                "l2": ((a - r) ** 2).sum(),
                "l1": np.abs(a - r).sum(),
                "cosine": 1 - a @ r / np.linalg.norm(a) / np.linalg.norm(r),
                "kl": (p * np.log(p / q)).sum(),
            }[distance]
        )
    return np.mean(losses)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine", "kl"])
def test_distances_are_those_of_the_docstring_and_padding_is_not_looked_at(distance):
    found = alignment_loss(jnp.asarray(ATTRIBUTIONS), jnp.asarray(PRIORS), jnp.asarray(MASK), distance=distance)
    assert float(found) == pytest.approx(reference(distance), rel=1e-5)
    junk = np.where(MASK, ATTRIBUTIONS, 1e3)
    again = alignment_loss(jnp.asarray(junk), jnp.asarray(PRIORS), jnp.asarray(MASK), distance=distance)
    assert float(again) == pytest.approx(float(found), rel=1e-6)


def test_sub_words_are_summed_to_words_and_special_tokens_left_out():
    ids = jnp.array([[-1, 0, 0, 1, 2, 3, -1], [-1, 0, 1, 1, 1, -1, -1]])
    tokens = RNG.standard_normal((2, 7)).astype(np.float32)
    words = np.zeros((2, 4))
    for row in range(2):
        for token in range(7):
            if ids[row, token] >= 0:
                words[row, ids[row, token]] += tokens[row, token]
    np.testing.assert_allclose(pool_segments(jnp.asarray(tokens), ids, num_segments=4), words, rtol=1e-5)
    pooled = alignment_loss(jnp.asarray(tokens), jnp.asarray(PRIORS), jnp.asarray(MASK), segment_ids=ids)
    direct = alignment_loss(jnp.asarray(words), jnp.asarray(PRIORS), jnp.asarray(MASK))
    assert float(pooled) == pytest.approx(float(direct), rel=1e-5)


def test_sign_matters():
    """A word that speaks against the label is not as good as one that speaks for it."""
    prior, mask = jnp.array([[0.0, 1.0]]), jnp.ones((1, 2), bool)
    for_label = alignment_loss(jnp.array([[0.0, 2.0]]), prior, mask)
    against = alignment_loss(jnp.array([[0.0, -2.0]]), prior, mask)
    assert float(for_label) < 1e-6 and float(against) == pytest.approx(4, rel=1e-4)


def test_weights_leave_padded_rows_out():
    arguments = jnp.asarray(ATTRIBUTIONS), jnp.asarray(PRIORS), jnp.asarray(MASK)
    first = alignment_loss(*(x[:1] for x in arguments))
    weighted = alignment_loss(*arguments, weights=jnp.array([1.0, 0.0]))
    assert float(weighted) == pytest.approx(float(first), rel=1e-6)


def test_gradients_pass_through_integrated_gradients_to_the_parameters():
    """Against finite differences: the loss depends on the model through second derivatives."""
    inputs = jnp.asarray(RNG.standard_normal((2, 4, 3)), jnp.float32)
    weights = {
        name: jnp.asarray(RNG.standard_normal(shape), jnp.float32) for name, shape in (("a", (3, 5)), ("b", (5,)))
    }

    def loss(weights):
        score = lambda x: jnp.tanh(jnp.sum(x, axis=1) @ weights["a"]) @ weights["b"]  # noqa: E731
        found = integrated_gradients(score, inputs, num_steps=8, quadrature="midpoint", chunk_size=4)
        return alignment_loss(jnp.sum(found, axis=-1), jnp.asarray(PRIORS), jnp.asarray(MASK))

    gradient = jax.jit(jax.grad(loss))(weights)
    for _ in range(3):
        direction = {name: jnp.asarray(RNG.standard_normal(w.shape), jnp.float32) for name, w in weights.items()}
        step = lambda size: float(loss({n: w + size * direction[n] for n, w in weights.items()}))  # noqa: E731, B023
        numeric = (step(1e-2) - step(-1e-2)) / 2e-2
        analytic = float(sum(jnp.vdot(gradient[name], direction[name]) for name in weights))
        assert analytic == pytest.approx(numeric, rel=0.02, abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": "l3"}, "unknown distance 'l3'"),
        ({"mask": jnp.ones((2, 3), bool)}, r"priors and mask must be \[batch, words\]"),
        ({"attributions": jnp.ones((2, 4, 3))}, "sum embedding dimensions first"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"attributions": jnp.asarray(ATTRIBUTIONS), "priors": jnp.asarray(PRIORS), "mask": jnp.asarray(MASK)}
    with pytest.raises(ValueError, match=message):
        alignment_loss(**{**arguments, **changes})
