"""Activations against float64 closed forms."""

import jax
import numpy as np
import pytest
from scipy import special

from jaxcore.models import ACTIVATIONS

X = np.linspace(-8, 8, 1001)
PHI = np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)

CLOSED_FORMS = {
    "gelu": X * special.ndtr(X),
    "gelu_tanh": X / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))),
    "relu": np.maximum(X, 0),
    "silu": X * special.expit(X),
    "tanh": np.tanh(X),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    np.testing.assert_allclose(ACTIVATIONS[name](X.astype(np.float32)), CLOSED_FORMS[name], atol=2e-6)


def test_every_activation_is_tested():
    assert set(ACTIVATIONS) == set(CLOSED_FORMS)


def test_gelu_derivative():
    got = jax.vmap(jax.grad(ACTIVATIONS["gelu"]))(X.astype(np.float32))
    np.testing.assert_allclose(got, special.ndtr(X) + X * PHI, atol=2e-6)
