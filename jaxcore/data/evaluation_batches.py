"""Finite work in batches: every process runs the same number of steps, and padded rows are masked."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Shaped


def num_evaluation_steps(num_rows: int, batch_size: int) -> int:
    """ceil(rows / global batch): the steps that every process runs."""
    return -(-num_rows // batch_size)


def evaluation_batches(
    arrays: Mapping[str, Shaped[np.ndarray, "rows ..."]],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Shaped[np.ndarray, "local ..."]]]:
    """The rows in order, once, in global batches of `batch_size`, of which each process gets its equal slice.

    The last batch is filled up with copies of the last row: finite values that any model accepts. Every
    process runs ceil(rows / batch_size) steps, because unequal step counts hang a pod. Concatenating the kept
    rows of all processes, step by step, gives the input back.

    Args:
        arrays: Arrays with the same number of rows; memory maps are read batch by batch.
        batch_size: Rows of the global batch, over all processes.
        process_index: This process.
        process_count: Number of processes.

    Returns:
        An iterator of dicts of the same keys, with `batch_size / process_count` rows each, and two more:
        `row_mask` (bool, True at real rows) and `row_ids` (int32, the input row; -1 at padding).

    Raises:
        ValueError: No arrays or rows, unequal numbers of rows, `batch_size` not divisible by `process_count`.
    """
    rows = {name: len(array) for name, array in arrays.items()}
    if not rows or min(rows.values()) == 0:
        raise ValueError(f"nothing to evaluate ({rows}); give arrays with at least one row")
    if len(set(rows.values())) > 1:
        raise ValueError(f"arrays have different numbers of rows: {rows}; give one row per example in each")
    if taken := {"row_mask", "row_ids"} & set(arrays):
        raise ValueError(f"{sorted(taken)} are added by evaluation_batches; rename those arrays")
    check_process(batch_size, process_index, process_count)
    return _batches(arrays, next(iter(rows.values())), batch_size, process_index, process_count)


def _batches(
    arrays: Mapping[str, np.ndarray], num_rows: int, batch_size: int, process_index: int, process_count: int
) -> Iterator[dict[str, np.ndarray]]:
    local = batch_size // process_count
    for step in range(num_evaluation_steps(num_rows, batch_size)):
        start = step * batch_size + process_index * local
        wanted = np.arange(start, start + local)
        mask = wanted < num_rows
        batch = {name: np.asarray(array[np.minimum(wanted, num_rows - 1)]) for name, array in arrays.items()}
        yield {**batch, "row_mask": mask, "row_ids": np.where(mask, wanted, -1).astype(np.int32)}


def check_process(batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ValueError unless the batch divides over the processes and the index is one of theirs."""
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"a global batch of {batch_size} rows does not divide over {process_count} processes; "
            f"use a multiple of {max(process_count, 1)}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}; check the launcher")
