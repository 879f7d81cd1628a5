"""Barlow Twins and VICReg against torch in float64: its batch normalisation, variance and covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, batch_sharding, make_mesh
from jaxcore.losses.redundancy_reduction import barlow_twins, vicreg, vicreg_components

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((48, 7)) @ RNG.standard_normal((7, 7)) * 0.4 + 2
SECOND = FIRST + 0.3 * RNG.standard_normal((48, 7))


def torch_barlow(a, b, weight):
    normalise = torch.nn.BatchNorm1d(7, affine=False, eps=1e-5).double()
    c = normalise(a).T @ normalise(b) / len(a)
    identity = torch.eye(7, dtype=torch.double)
    return ((identity - c) ** 2 * (identity + weight * (1 - identity))).sum()


def torch_vicreg_parts(a, b):
    off = 1 - torch.eye(7, dtype=torch.double)
    variance = sum(torch.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() / 2 for z in (a, b))
    return torch.nn.functional.mse_loss(a, b), variance, sum((torch.cov(z.T) ** 2 * off).sum() / 7 for z in (a, b))


def torch_vicreg(a, b):
    s, v, c = torch_vicreg_parts(a, b)
    return 25 * s + 25 * v + c


CASES = {
    "barlow_twins": (
        lambda a, b: barlow_twins(a, b, off_diagonal_weight=0.3),
        lambda a, b: torch_barlow(a, b, 0.3),
    ),
    "vicreg": (vicreg, torch_vicreg),
}


def reference(name):
    a, b = (torch.tensor(x, requires_grad=True) for x in (FIRST, SECOND))
    loss = CASES[name][1](a, b)
    loss.backward()
    return loss.item(), (a.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name, devices):
    inputs = [jnp.asarray(x, jnp.float32) for x in (FIRST, SECOND)]
    if devices == 8:
        inputs = jax.device_put(inputs, batch_sharding(make_mesh(MeshConfig(data=4, fsdp=2))))
    value, gradients = jax.jit(jax.value_and_grad(CASES[name][0], argnums=(0, 1)))(*inputs)
    expected, expected_gradients = reference(name)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for gradient, of_input in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, of_input, atol=2e-5 * np.abs(of_input).max())


def test_components_of_vicreg():
    expected = torch_vicreg_parts(torch.tensor(FIRST), torch.tensor(SECOND))
    parts = vicreg_components(jnp.asarray(FIRST, jnp.float32), jnp.asarray(SECOND, jnp.float32))
    for part, value in zip(parts, expected, strict=True):
        assert float(value) > 0.01
        assert float(part) == pytest.approx(float(value), rel=1e-5)


def test_barlow_twins_ignores_scale_and_shift_of_channels():
    a, b = (jnp.asarray(x, jnp.float32) for x in (FIRST, SECOND))
    scale, shift = jnp.asarray(RNG.uniform(0.5, 9, 7), jnp.float32), jnp.asarray(RNG.standard_normal(7), jnp.float32)
    plain = barlow_twins(a, b, epsilon=0.0)
    assert float(barlow_twins(a * scale + shift, b, epsilon=0.0)) == pytest.approx(float(plain), rel=1e-4)


def test_bfloat16_is_accumulated_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (FIRST, SECOND)]
    for loss in (barlow_twins, vicreg):
        value = loss(*half)
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(loss(*(x.astype(jnp.float32) for x in half))), rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_collapsed_channels_are_finite(epsilon):
    collapsed = jnp.full((48, 7), 0.1)
    value, gradient = jax.value_and_grad(lambda x: barlow_twins(x, collapsed, epsilon=epsilon))(collapsed)
    assert float(value) == pytest.approx(7)  # each of seven channels adds 1
    assert np.isfinite(np.asarray(gradient)).all()
    value, gradient = jax.value_and_grad(lambda x: vicreg(x, collapsed, epsilon=epsilon))(collapsed)
    assert float(value) == pytest.approx(25 * (1 - np.sqrt(epsilon)), rel=1e-5)
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: barlow_twins(x, x[:, :3]), "must both be"),
        (lambda x: barlow_twins(x[:1], x[:1]), "2 items or more"),
        (lambda x: barlow_twins(x, x, epsilon=-1.0), "epsilon must be 0 or more"),
        (lambda x: barlow_twins(x, x, off_diagonal_weight=0.0), "off_diagonal_weight must be positive"),
        (lambda x: vicreg(x, x[:5]), "must both be"),
        (lambda x: vicreg(x[:1], x[:1]), "2 items or more"),
        (lambda x: vicreg(x, x, epsilon=-1e-4), "epsilon must be 0 or more"),
        (lambda x: vicreg(x, x, variance_weight=-1.0), "variance_weight must be 0 or more"),
        (lambda x: vicreg(x, x, target_deviation=0.0), "target_deviation must be positive"),
        (lambda x: vicreg(x.at[2, 2].set(jnp.nan), x), "first row 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(FIRST, jnp.float32))
