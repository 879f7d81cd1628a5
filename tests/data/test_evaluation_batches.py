"""Evaluation batches: every row once over all processes, equal step counts, padding masked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data import evaluation_batches, num_evaluation_steps


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 40), local=st.integers(1, 7), processes=st.integers(1, 5))
def test_rows_come_once_in_order_whatever_the_processes(rows, local, processes):
    arrays = {"x": np.arange(rows * 3.0).reshape(rows, 3) + 1, "y": np.arange(rows, dtype=np.int8) + 1}
    size = local * processes
    streams = [
        list(evaluation_batches(arrays, batch_size=size, process_index=index, process_count=processes))
        for index in range(processes)
    ]
    assert {len(stream) for stream in streams} == {-(-rows // size)} == {num_evaluation_steps(rows, size)}
    kept: dict[str, list[np.ndarray]] = {"x": [], "y": [], "row_ids": []}
    for step in zip(*streams, strict=True):
        for batch in step:
            assert batch["x"].shape == (local, 3) and batch["row_mask"].dtype == bool
            np.testing.assert_array_equal(batch["row_ids"] >= 0, batch["row_mask"])
            assert (batch["y"] > 0).all()  # padding holds a real row, never zeros
            for name, parts in kept.items():
                parts.append(batch[name][batch["row_mask"]])
    np.testing.assert_array_equal(np.concatenate(kept["x"]), arrays["x"])
    np.testing.assert_array_equal(np.concatenate(kept["y"]), arrays["y"])
    np.testing.assert_array_equal(np.concatenate(kept["row_ids"]), np.arange(rows))
    assert kept["y"][0].dtype == np.int8


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({}, {"batch_size": 4}, "nothing to evaluate"),
        ({"x": np.zeros((0, 2))}, {"batch_size": 4}, "at least one row"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, {"batch_size": 4}, "different numbers of rows"),
        ({"row_mask": np.zeros(3)}, {"batch_size": 4}, "rename those arrays"),
        (
            {"x": np.zeros(3)},
            {"batch_size": 4, "process_count": 3},
            "4 rows does not divide over 3 processes",
        ),
        ({"x": np.zeros(3)}, {"batch_size": 4, "process_count": 2, "process_index": 2}, r"not in 0\.\.1"),
    ],
)
def test_errors_come_before_the_first_batch(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation_batches(arrays, **options)
