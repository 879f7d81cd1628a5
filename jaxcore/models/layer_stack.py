"""Equal blocks as one scanned module with stacked parameters."""

from typing import Any

import flax.linen as nn
import jax


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
        policies = jax.checkpoint_policies
        policy = policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        # Inside a loop the compiler cannot merge the recomputation with the original, so it needs no guard.
        block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
    return nn.scan(
        block,
        length=config.num_layers,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        metadata_params={nn.PARTITION_NAME: "layers"},
        unroll=1 if config.scan_layers else config.num_layers,
    )
