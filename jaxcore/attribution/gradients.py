"""Attribution from one gradient: saliency, input x gradient, Grad-CAM."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_score,
    checked_finite,
)
from jaxcore.attribution.layers import activation_gradient, activation_site


def saliency(score: Score, inputs: Inputs) -> Inputs:
    """The gradient of the score at the input, with its sign.

        S(x) = dscore/dx

    The magnitude that heatmaps show is ``jax.tree.map(jnp.abs, saliency(score, inputs))``; that of a token is a norm
    over the embedding axis.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].

    Returns:
        Score per unit of input, of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: integer inputs, a score that is not [batch], a gradient that is not finite.

    Source: Simonyan et al. 2014, section 3.
    """
    return checked_finite(_gradient(score, inputs), "saliency")


def input_x_gradient(score: Score, inputs: Inputs, *, baseline: Baseline = 0.0) -> Inputs:
    """The first-order part of the score's change from baseline to input, per coordinate.

        A(x) = (x - x') * dscore/dx

    Complete (sums to ``score(x) - score(x')``) where the score is linear between x' and x. For a bias-free ReLU
    network and x' = 0 it equals epsilon-LRP and DeepLIFT (Ancona et al. 2018, propositions 1 and 2).

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs` (a scalar, one example's shape, or a whole batch).

    Returns:
        In units of the score, of the inputs' structure and shapes, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `saliency`; a baseline that does not broadcast.

    Source: Shrikumar et al. 2017, section 2.2.
    """
    gradient = _gradient(score, inputs)
    baseline = broadcast_baseline(baseline, inputs)
    values = jax.tree.map(lambda g, x, b: g * (x.astype(g.dtype) - b.astype(g.dtype)), gradient, inputs, baseline)
    return checked_finite(values, "input_x_gradient")


def grad_cam(
    score: Score,
    inputs: Inputs,
    name: str,
    *,
    spatial_axes: Sequence[int] = (1, 2),
    channel_axis: int = -1,
) -> Float[Array, "batch ..."]:
    """Which places of a convolutional layer speak for the score: channels weighted by their mean gradient.

        w_c = mean_{places p} dscore/dh_pc,    L_p = relu(sum_c w_c h_pc)

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        name: the activation h, named with `jax.ad_checkpoint.checkpoint_name`, usually after the last convolution.
        spatial_axes: the axes of h that gradients are averaged over; (1, 2) for images [batch, height, width,
            channels], (1,) for text [batch, tokens, channels], (2, 3) inside a scan over layers.
        channel_axis: the axis of h that is summed.

    Returns:
        The map L over h without its channel axis ([batch, height, width]), at least 0, in float32 (float64). To lay
        it over the image: ``jax.image.resize(map, (batch, image_height, image_width), "bilinear")``.

    Raises:
        ValueError: as `saliency` and `activation_site`; axes that h does not have, or that are not distinct.

    Source: Selvaraju et al. 2017, "Grad-CAM".
    """
    check_score(score, inputs)
    rank = len(activation_site(score, inputs, name).value.shape)
    axes = (*spatial_axes, channel_axis)
    distinct = {axis % rank for axis in axes if -rank <= axis < rank}
    if not spatial_axes or len(distinct) < len(axes):
        raise ValueError(
            f"spatial_axes {tuple(spatial_axes)} and channel_axis {channel_axis} must be different axes of the "
            f"activation {name!r}, which has {rank}"
        )
    activation, gradient = activation_gradient(score, inputs, name)
    dtype = accumulation_dtype(activation)
    weights = jnp.mean(gradient.astype(dtype), axis=tuple(spatial_axes), keepdims=True)
    values = jax.nn.relu(jnp.sum(weights * activation.astype(dtype), axis=channel_axis))
    return checked_finite(values, "grad_cam")


def _gradient(score: Score, inputs: Inputs) -> Inputs:
    check_score(score, inputs)

    def gradient(inputs: Inputs) -> Inputs:
        of_inputs = jax.grad(lambda x: jnp.sum(score(x)))(inputs)
        return jax.tree.map(lambda g: g.astype(accumulation_dtype(g)), of_inputs)

    return run_compiled(gradient, inputs)
