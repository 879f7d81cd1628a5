"""Pointwise nonlinearities of the transformer trunk, by the names that configs use."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu_erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact Gaussian error linear unit, `x * Phi(x) = x/2 * (1 + erf(x / sqrt 2))` (Hendrycks & Gimpel 2016).

    Written with `erf`, not with `erfc` as `jax.nn.gelu` is: on CPU `erfc` costs several times as much, and
    its smaller relative error in the far left tail (where the value is below 1e-7) does not matter to a
    network.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * (1 / math.sqrt(2))))


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh` in transformers)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    "gelu": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
