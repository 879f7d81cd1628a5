"""Attention heads taken out: their outputs set to zero before the output projection, where heads are still apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


def ablate_heads(removed: Bool[Array, "layers heads"]) -> dict[str, Any]:
    """Edits (`jaxcore.transforms.intervene`, `jaxcore.generation.generate`) that zero the outputs of some heads.

    The edited value is each head's weighted sum of values, the input of the output projection. Zeroing slices of the
    projection's *output*, as the released code of Thought Anchors does, removes coordinates of the residual stream, to
    which every head contributes.

    Args:
        removed: True at the heads to take out; layers as the model scans over them.
    """
    return {"attention_heads": jax.tree_util.Partial(_without, jnp.asarray(removed))}


def head_mask(heads: Int[np.ndarray, "count 2"], num_layers: int, num_heads: int) -> Bool[np.ndarray, "layers heads"]:
    """True at the given (layer, head).

    Raises:
        ValueError: a head that the model does not have.
    """
    mask = np.zeros((num_layers, num_heads), bool)
    for layer, head in np.asarray(heads).reshape(-1, 2):
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise ValueError(f"no head {head} of layer {layer}: the model has {num_layers} layers of {num_heads} heads")
        mask[layer, head] = True
    return mask


def layer_matched_heads(
    heads: Int[np.ndarray, "count 2"], num_heads: int, rng: np.random.Generator
) -> Int[np.ndarray, "count 2"]:
    """As many other heads at random, layer by layer: the control for an ablation of `heads`.

    Raises:
        ValueError: a layer without enough other heads.
    """
    chosen: list[tuple[int, int]] = []
    for layer in np.unique(heads[:, 0]):
        taken = heads[heads[:, 0] == layer, 1]
        others = np.setdiff1d(np.arange(num_heads), taken)
        if len(others) < len(taken):
            raise ValueError(f"layer {layer} has {num_heads} heads: {len(taken)} others than {len(taken)} are too many")
        chosen += [(int(layer), int(head)) for head in rng.choice(others, len(taken), replace=False)]
    return np.asarray(chosen)


def _without(removed: Array, heads: Array, *, step: Any) -> Array:
    return jnp.where(removed[step][None, None, :, None], jnp.zeros((), heads.dtype), heads)
