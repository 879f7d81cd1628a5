"""A small encoder, drawn once, for the tests of the room."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import Encoder, EncoderConfig


@pytest.fixture(scope="session")
def small_config() -> EncoderConfig:
    return EncoderConfig(
        vocab_size=19, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24, max_positions=12
    )


@pytest.fixture(scope="session")
def small_params(small_config):
    """Parameters of `Encoder(small_config)`, large enough for its nonlinearities to matter."""
    variables = jax.jit(Encoder(small_config).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    rng = np.random.default_rng(0)

    def disturb(leaf):
        return jnp.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(disturb, nn.meta.unbox(variables["params"]))
