"""Running a jitted function over finite data: padded global batches in, the rows' results on the host out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcore.data import evaluation_batches
from jaxcore.distributed import gather_to_host, shard_local_batch

Tick = Callable[[int], bool]


class Interrupted(Exception):
    """A preemption notice came while rows were being mapped; nothing was written."""


def map_rows(
    function: Callable[..., Any],
    params: Any,
    rows: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    mesh: Mesh,
    tick: Tick = lambda step: False,
) -> Any:
    """``function(params, batch)`` over all rows in batches of one shape: one compilation, any number of rows.

    Args:
        function: jitted; maps a batch of rows to a tree of arrays with the same leading axis.
        params: passed through.
        rows: arrays [n, ...] that every process holds; each process puts only its slice on its devices.
        batch_size: rows of the global batch; must divide over the mesh's batch axes.
        mesh: the mesh of `function`.
        tick: called once per batch on every process; True raises `Interrupted`.

    Returns:
        The tree of results as numpy arrays [n, ...], in row order, on every process.
    """
    collected: list[Any] = []
    for step, batch in enumerate(
        evaluation_batches(
            rows, batch_size=batch_size, process_index=jax.process_index(), process_count=jax.process_count()
        )
    ):
        inputs = shard_local_batch(mesh, {name: batch[name] for name in rows})
        collected.append(gather_to_host(function(params, inputs)))
        if tick(step):
            raise Interrupted("stopped on notice during evaluation")
    num_rows = len(next(iter(rows.values())))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *collected)
