"""Batches of rows: a function of the step, every row once an epoch, split over processes."""

import numpy as np
import pytest

from jaxcore.data.row_batches import RowSampler, row_batches


def test_batches_are_a_function_of_the_step():
    rows = {"x": np.arange(10)}
    sampler = RowSampler(rows, batch_size=4, seed=0)
    order = sampler.order(5)
    for step in range(5):
        np.testing.assert_array_equal(sampler.rows(step, 0, 4)["x"], order[step])
    assert len(set(order[0]) | set(order[1])) == 8


def test_processes_share_a_batch_and_it_resumes_where_it_stood():
    sampler = RowSampler({"x": 10 * np.arange(12)}, batch_size=6, seed=3)
    whole = row_batches(sampler, num_steps=4, process_index=0, process_count=1)
    parts = [row_batches(sampler, num_steps=4, process_index=index, process_count=2) for index in range(2)]
    for _ in range(2):
        batch, halves = next(whole), [next(part) for part in parts]
        np.testing.assert_array_equal(batch["x"], np.concatenate([half["x"] for half in halves]))
        np.testing.assert_array_equal(batch["x"], 10 * batch["example_ids"])
    state, third = whole.get_state(), next(whole)
    again = row_batches(sampler, num_steps=4, process_index=0, process_count=1)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["x"], third["x"])


def test_a_batch_of_more_rows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="a batch of 11 different texts needs as many: there are 10"):
        RowSampler({"x": np.arange(10)}, batch_size=11, seed=0)
