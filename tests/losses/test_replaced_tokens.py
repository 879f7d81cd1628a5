"""Replaced-token detection: the two label rules by hand, the loss against torch, the optima in a tiny world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.replaced_tokens import electric_logits, replaced_token_loss, replaced_token_targets

ORIGINAL = jnp.array([[3, 4, 5, 6], [7, 8, 9, 0]])
SAMPLED = jnp.array([[3, 9, 5, 1], [7, 8, 2, 0]])
MASKED = jnp.array([[0, 1, 1, 1], [0, 0, 1, 1]], bool)


def test_a_sample_equal_to_the_original_is_data_for_electra_and_noise_for_electric():
    electra = replaced_token_targets(ORIGINAL, SAMPLED, MASKED, rule="electra")
    electric = replaced_token_targets(ORIGINAL, SAMPLED, MASKED, rule="electric")
    np.testing.assert_array_equal(electra, [[0, 1, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(electric, [[0, 1, 1, 1], [0, 0, 1, 1]])


def test_what_stands_outside_the_mask_is_data():
    changed = jnp.where(MASKED, SAMPLED, 99)
    for rule in ("electra", "electric"):
        np.testing.assert_array_equal(
            replaced_token_targets(ORIGINAL, changed, MASKED, rule=rule),
            replaced_token_targets(ORIGINAL, SAMPLED, MASKED, rule=rule),
        )


def test_the_loss_is_binary_cross_entropy_over_real_tokens():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).standard_normal((2, 4))
    real = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    targets = np.array([[0, 1, 1, 1], [0, 1, 1, 1]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits[real]), torch.tensor(targets[real], dtype=torch.float64)
    )
    spoilt = jnp.where(real, jnp.asarray(logits, jnp.float32), jnp.nan)
    value, gradient = jax.value_and_grad(replaced_token_loss)(spoilt, jnp.asarray(targets), mask=jnp.asarray(real))
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[~real])
    assert replaced_token_loss(spoilt, jnp.asarray(targets), mask=jnp.zeros((2, 4), bool)) == 0


RATE = 0.15
DATA, NOISE = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])


def expected_gradient(energies, *, rule):
    """Gradient in a table of energies of the exact expected loss at one position, originals and samples summed over."""
    original, sampled = (x.ravel() for x in np.meshgrid(np.arange(4), np.arange(4), indexing="ij"))
    masked = np.r_[np.ones(16, bool), np.zeros(16, bool)]
    weight = np.r_[RATE * DATA[original] * NOISE[sampled], (1 - RATE) * DATA[original] * NOISE[sampled]]
    original, sampled = np.tile(original, 2), np.tile(sampled, 2)
    seen = np.where(masked, sampled, original)
    targets = replaced_token_targets(
        jnp.asarray(original)[:, None], jnp.asarray(seen)[:, None], jnp.asarray(masked)[:, None], rule=rule
    )

    def expectation(table):
        logits = electric_logits(table[seen][:, None], jnp.log(jnp.asarray(NOISE[seen]))[:, None], mask_rate=RATE)
        losses = jax.vmap(lambda z, y: replaced_token_loss(z[None], y[None]))(logits, targets)
        return jnp.sum(jnp.asarray(weight) * losses)

    return np.asarray(jax.grad(expectation)(jnp.asarray(energies, jnp.float32)))


def test_electric_energies_are_normalised_log_probabilities_with_their_own_labels_only():
    np.testing.assert_allclose(expected_gradient(-np.log(DATA), rule="electric"), 0, atol=1e-6)
    # With the other rule, samples equal to the original (of probability m q p) count as data too.
    np.testing.assert_allclose(expected_gradient(-np.log(DATA), rule="electra"), RATE * NOISE * DATA, atol=1e-6)
    assert np.abs(expected_gradient(-np.log(DATA) + 1, rule="electric")).max() > 1e-2


def test_no_gradient_reaches_the_generator():
    def loss(energies, log_noise):
        return replaced_token_loss(electric_logits(energies, log_noise, mask_rate=RATE), MASKED.astype(jnp.int32))

    of_energies, of_noise = jax.grad(loss, argnums=(0, 1))(jnp.ones((2, 4)), -jnp.ones((2, 4)))
    assert np.any(of_energies) and not np.any(of_noise)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replaced_token_targets(ORIGINAL, SAMPLED[:1], MASKED, rule="electra"), r"one shape \[batch, time\]"),
        (
            lambda: replaced_token_targets(ORIGINAL, SAMPLED, MASKED, rule="bert"),
            'rule must be "electra" or "electric"',
        ),
        (lambda: replaced_token_loss(jnp.zeros((2, 4)), MASKED[0]), "one shape"),
        (lambda: replaced_token_loss(jnp.zeros(4), jnp.zeros(4)), "one shape"),
        (
            lambda: electric_logits(jnp.zeros((2, 4)), jnp.zeros((2, 4)), mask_rate=1.0),
            r"mask_rate must be in \(0, 1\)",
        ),
        (lambda: electric_logits(jnp.zeros((2, 4)), jnp.zeros((2, 1)), mask_rate=0.1), "one shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
