"""The residual energy loss against torch, and its optimum on a discrete world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.losses.energy import residual_energy_loss

RNG = np.random.default_rng(3)


def test_it_is_binary_cross_entropy_with_equal_halves():
    torch = pytest.importorskip("torch")
    real, fake = RNG.standard_normal(5), RNG.standard_normal(9)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(torch.tensor(-real), torch.ones(5, dtype=torch.float64)) + bce(
        torch.tensor(-fake), torch.zeros(9, dtype=torch.float64)
    )
    value = residual_energy_loss(jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32))
    assert value == pytest.approx(float(expected), rel=1e-6)


def test_the_energy_is_the_log_ratio_of_model_to_data():
    """Counts stand for expectations, exactly: the gradient in the table of energies vanishes there, not elsewhere."""
    data, model = np.array([8, 4, 3, 1]), np.array([2, 6, 4, 4])

    def loss(energies):
        return residual_energy_loss(jnp.repeat(energies, data), jnp.repeat(energies, model))

    optimum = jnp.asarray(np.log(model / model.sum()) - np.log(data / data.sum()), jnp.float32)
    np.testing.assert_allclose(jax.grad(loss)(optimum), 0, atol=1e-6)
    assert np.abs(jax.grad(loss)(-optimum)).max() > 0.1
    product = model / model.sum() * np.exp(-np.asarray(optimum))
    np.testing.assert_allclose(product / product.sum(), data / data.sum(), rtol=1e-5)


def test_large_energies_stay_finite():
    value, gradient = jax.value_and_grad(residual_energy_loss)(jnp.array([1e4, -1e4]), jnp.array([-1e4]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert residual_energy_loss(jnp.zeros(2, jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("real", [jnp.zeros((2, 2)), jnp.zeros(0)])
def test_bad_input(real):
    with pytest.raises(ValueError, match="non-empty vectors: got"):
        residual_energy_loss(real, jnp.zeros(3))
