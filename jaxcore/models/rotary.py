"""Rotary positions: queries and keys turned by an angle that grows with the position (Su et al. 2021)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcore.models.decoder_config import DecoderConfig, RopeScaling


def rotations(
    positions: Int[Array, "batch time"], config: DecoderConfig
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosines and sines, float32, of the angles `position * frequency_i` for i in 0, ..., head_size / 2 - 1.

    Dynamic scaling takes the length of the text to be the largest position of the call plus 1.
    """
    frequencies, amplitude = rotary_frequencies(config)
    if config.rope_scaling.kind == "dynamic":
        turns = _dynamic_frequencies(jnp.max(positions) + 1, config)
    else:
        turns = jnp.asarray(frequencies)
    angles = positions[..., None].astype(jnp.float32) * turns
    return amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)


def rotate(
    x: Float[Array, "batch time heads head_size"],
    cosines: Float[Array, "batch time half"],
    sines: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads head_size"]:
    """`(u cos - v sin, v cos + u sin)` with u, v the two halves of each head; float32, returned in the dtype of x.

    Entry i is paired with entry i + head_size / 2, the layout of published weights.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosines, sines = cosines[:, :, None], sines[:, :, None]
    turned = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return turned.astype(x.dtype)


def rotary_frequencies(config: DecoderConfig) -> tuple[np.ndarray, float]:
    """Angle per position of each pair of dimensions, float32 (head_size / 2), and a factor on cosines and sines.

        f_i = theta^(-2 i / head_size), i = 0, 1, ...

    and then, by `rope_scaling.kind`, with s = factor and M the original context length:
        default, dynamic  f_i (dynamic raises theta once texts exceed max_positions)
        linear            f_i / s (Chen et al. 2023, position interpolation)
        llama3            f_i where the wavelength 2 pi / f_i is short, f_i / s where it is long, and a mixture linear
                          in M / wavelength between M / high_frequency_factor and M / low_frequency_factor
        yarn              f_i where a dimension turns often over M, f_i / s where seldom, a linear ramp over i between;
                          cosines and sines times 0.1 ln s + 1 (Peng et al. 2023, 3.2 and 3.4)
    """
    scaling = config.rope_scaling
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    frequencies = config.rope_theta**-exponents
    amplitude = 1.0
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif scaling.kind == "yarn":
        frequencies = _yarn(frequencies, config.head_size, config.rope_theta, scaling)
        amplitude = _yarn_amplitude(scaling)
    return frequencies.astype(np.float32), amplitude


def _dynamic_frequencies(length: Int[Array, ""], config: DecoderConfig) -> Float[Array, "half"]:
    """NTK-aware: theta times (s n / N - (s - 1))^(d / (d - 2)) for texts of n > N = max_positions tokens."""
    size, factor = config.head_size, config.rope_scaling.factor
    ratio = jnp.maximum(length, config.max_positions) / config.max_positions
    theta = config.rope_theta * (factor * ratio - (factor - 1)) ** (size / (size - 2))
    return theta ** jnp.asarray(-np.arange(0, size, 2) / size, jnp.float32)


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    turns = (scaling.original_max_positions or 0) * frequencies / (2 * math.pi)  # over the original context
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _yarn(frequencies: np.ndarray, size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    def dimension(turns: float) -> float:
        """Index of the pair that turns this often over the original context."""
        original = scaling.original_max_positions or 0
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    slow = np.clip((np.arange(size // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return (1 - slow) * frequencies + slow * frequencies / scaling.factor


def _yarn_amplitude(scaling: RopeScaling) -> float:
    def rule(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return rule(scaling.mscale) / rule(scaling.mscale_all_dim)
    return rule(1)
