"""A small encoder, drawn once, for the tests of the room."""

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    params = nn.meta.unbox(variables["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)
