"""Hidden states of a decoder at one of its layers, without running the layers above it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from jaxcore.models.decoder import Decoder
from jaxcore.transforms import capture


def first_layers(model: Decoder, params: Mapping[str, Any], count: int) -> tuple[Decoder, dict[str, Any]]:
    """The decoder that ends after its first `count` blocks; parameters are slices of those given.

    Raises:
        ValueError: a count that is not in [1, num_layers], or parameters in the unstacked form.
    """
    config = model.config
    if not 1 <= count <= config.num_layers:
        raise ValueError(f"the model has layers 1 to {config.num_layers}: got {count}")
    params = nn.meta.unbox(params)
    if "0" in params["layers"]:
        raise ValueError("layers must be stacked, as `init` and `load_pretrained` give them, not unstacked")
    windowed = None if config.windowed_layers is None else config.windowed_layers[:count]
    short = Decoder(dataclasses.replace(config, num_layers=count, windowed_layers=windowed))
    return short, {**params, "layers": jax.tree.map(lambda leaf: leaf[:count], params["layers"])}


def layer_states(
    model: Decoder,
    params: Mapping[str, Any],
    input_ids: Int[Array, "batch time"],
    attention_mask: Int[Array, "batch time"],
    *,
    layer: int,
    name: str = "layer_output",
) -> Float[Array, "batch ..."]:
    """A named activation of block `layer` (1 = the first): by default the residual stream behind it, before any norm.

    Args:
        name: see `jaxcore.models`; `attention_weights` (batch, heads, time, time) needs attention_implementation
            "explicit".

    Raises:
        ValueError: as `first_layers`; a name that does not occur.
    """
    short, kept = first_layers(model, params, layer)

    def run(ids: Array, mask: Array) -> Array:
        return short.apply({"params": kept}, ids, mask, method="trunk")[0]

    _, captured = capture(run, name)(input_ids, attention_mask)
    value: Any = captured[name]
    return value[-1]
