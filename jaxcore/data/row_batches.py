"""Batches of different rows of arrays, reshuffled every epoch, restorable at any step."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxcore.data.author_batches import AuthorBatches, Batch, EpochOrder


class RowSampler:
    """`batch_size` different rows of arrays, reshuffled every epoch; a pure function of the step.

    Raises:
        ValueError: fewer rows than a batch takes.
    """

    def __init__(self, rows: Mapping[str, np.ndarray], *, batch_size: int, seed: int) -> None:
        count = len(next(iter(rows.values())))
        if batch_size > count:
            raise ValueError(
                f"a batch of {batch_size} different texts needs as many: there are {count} training texts; lower "
                "batch_size or give more texts"
            )
        self._rows, self.num_rows = rows, batch_size
        self._order = EpochOrder(count, per_step=batch_size, seed=seed)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows [start, stop) of batch `step`."""
        chosen = self._order.at(step)[start:stop]
        return {name: np.asarray(array[chosen]) for name, array in self._rows.items()} | {
            "example_ids": chosen.astype(np.int32)
        }

    def order(self, num_steps: int) -> Int[np.ndarray, "steps rows"]:
        """The row numbers of every batch."""
        return np.stack([self._order.at(step) for step in range(num_steps)]).astype(np.int32)


def row_batches(sampler: RowSampler, *, num_steps: int, process_index: int, process_count: int) -> AuthorBatches:
    """The sampler's batches, this process's part, restorable at any step."""
    return AuthorBatches(sampler, num_steps=num_steps, process_index=process_index, process_count=process_count)
