"""Rotary positions: closed forms and invariances. transformers' frequencies are met in test_decoder_directory."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import DECODER_FAMILIES, DecoderConfig, RopeScaling
from jaxcore.models.rotary import rotary_frequencies, rotate, rotations

CONFIG = DecoderConfig(
    architecture="llama", **DECODER_FAMILIES["llama"], hidden_size=32, num_heads=2, num_key_value_heads=2,
    head_size=16, max_positions=64, rope_theta=100.0,
)  # fmt: skip


def scaled(**fields) -> DecoderConfig:
    return dataclasses.replace(CONFIG, rope_scaling=RopeScaling(**fields))


def test_products_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 2, 16)), jnp.float32) for _ in range(2))

    def product(at: int, other: int):
        turned = [rotate(x, *rotations(jnp.array([[p]]), CONFIG)) for x, p in ((query, at), (key, other))]
        return (turned[0] * turned[1]).sum(-1)

    np.testing.assert_allclose(product(9, 4), product(25, 20), atol=1e-5)
    np.testing.assert_allclose(product(7, 7), (query * key).sum(-1), atol=1e-5)
    assert np.abs(product(9, 4) - product(9, 5)).max() > 0.01


def test_rotation_is_multiplication_of_complex_numbers():
    x = np.random.default_rng(1).normal(size=(1, 3, 2, 16)).astype(np.float32)
    got = rotate(jnp.asarray(x), *rotations(jnp.array([[0, 3, 11]]), CONFIG))
    turns = np.array([0, 3, 11])[:, None] * 100.0 ** (-np.arange(8) / 8)
    pairs = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * turns)[None, :, None]
    np.testing.assert_allclose(got, np.concatenate([pairs.real, pairs.imag], -1), atol=1e-5)


def test_scalings_at_both_ends_of_the_spectrum():
    """Fast dimensions keep their frequency, slow ones turn `factor` times slower (linear: all of them)."""
    plain, amplitude = rotary_frequencies(CONFIG)
    assert amplitude == 1 and plain[0] == 1
    linear, _ = rotary_frequencies(scaled(kind="linear", factor=4.0))
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    wide = {"factor": 4.0, "original_max_positions": 32}
    for fields in ({"kind": "llama3", **wide}, {"kind": "yarn", "beta_fast": 4.0, **wide}):
        got, _ = rotary_frequencies(scaled(**fields))
        np.testing.assert_allclose([got[0], got[-1]], [plain[0], plain[-1] / 4], rtol=1e-6)
        assert (np.diff(got) < 0).all() and (got <= plain * (1 + 1e-6)).all() and (got >= plain / 4 * (1 - 1e-6)).all()
    assert rotary_frequencies(scaled(kind="yarn", **wide))[1] == pytest.approx(0.1 * np.log(4) + 1)
    assert rotary_frequencies(scaled(kind="yarn", attention_factor=0.7, **wide))[1] == 0.7
    both = rotary_frequencies(scaled(kind="yarn", mscale=2.0, mscale_all_dim=1.0, **wide))[1]
    assert both == pytest.approx((0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1))


def test_dynamic_scaling_begins_beyond_the_context():
    config = scaled(kind="dynamic", factor=2.0)
    short, long = jnp.arange(64)[None], jnp.arange(128)[None]
    np.testing.assert_allclose(rotations(short, config)[0], rotations(short, CONFIG)[0], atol=1e-5)
    theta = 100.0 * (2 * 128 / 64 - 1) ** (16 / 14)
    expected = np.cos(np.arange(128)[:, None] * theta ** (-np.arange(8) / 8))
    np.testing.assert_allclose(rotations(long, config)[0][0], expected, atol=1e-4)
    assert config.context_length == 128
