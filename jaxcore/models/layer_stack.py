"""Equal blocks as one scanned module with stacked parameters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def stack_layers(block: Any, config: Any, *, in_axes: Any = nn.broadcast) -> Any:
    """The module class that applies `config.num_layers` blocks one after the other.

    A block maps (x, *others) to (x, result). Parameters get a leading axis, "layers", whatever `scan_layers` says;
    results are stacked; each block draws its own dropout. `remat` chooses what the backward pass recomputes per block.

    Args:
        block: a linen module class.
        config: has `num_layers`, `remat` and `scan_layers`.
        in_axes: for each of `others`, 0 (one slice per block) or `nn.broadcast` (the same in every block).
    """
    if config.remat != "none":
        block = nn.remat(block, **_remat_options(config))
    return nn.scan(
        block,
        length=config.num_layers,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        metadata_params={nn.PARTITION_NAME: "layers"},
        unroll=1 if config.scan_layers else config.num_layers,
    )


def fold_layers(apply: Callable[[Any, Any, Any], Any], config: Any, stacked: Any, x: Any, *, count: int) -> Any:
    """``x = apply(parameters of block i, x, i)`` for the first `count` blocks: what `stack_layers` does, on given
    parameters. They are taken from their stack one block at a time, so that no shorter stack has to be copied; towards
    parameters this makes a costlier gradient.

    Args:
        apply: (parameters, x, index) -> x.
        config: has `num_layers`, `remat` and `scan_layers`.
        stacked: parameters with a leading axis over all blocks.
        x: what enters the first block.
        count: how many blocks.
    """

    def step(x: Any, i: Any) -> tuple[Any, None]:
        return apply(jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, keepdims=False), stacked), x, i), None

    if config.remat != "none":
        step = jax.checkpoint(step, **_remat_options(config))
    return jax.lax.scan(step, x, jnp.arange(count), unroll=1 if config.scan_layers else max(count, 1))[0]


def _remat_options(config: Any) -> dict[str, Any]:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    # Inside a loop the compiler cannot merge the recomputation with the original, so it needs no guard.
    return {"policy": policy, "prevent_cse": not config.scan_layers}
