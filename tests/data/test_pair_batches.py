"""Pair batches: who stands beside whom, when draws change, processes, restoring, bad input."""

import numpy as np
import pytest

from jaxcore.data.pair_batches import pair_batches

ROWS = {"ids": np.arange(50 * 3).reshape(50, 3), "mask": np.arange(50)}
TEACHER = np.arange(50.0)[:, None] * [1, 10]


def draw(number):
    """Anchor i: rows i + number + 1 and 30 + number, and itself where i is a multiple of 5."""
    anchors = np.arange(20)
    return np.stack([np.where(anchors % 5, anchors + number + 1, -1), np.full(20, 30 + number)], axis=1)


def make(**options):
    return pair_batches(
        ROWS,
        draw,
        **({"num_anchors": 20, "batch_size": 4, "redraw_every": 3, "seed": 2, "reference": TEACHER} | options),
    )


def test_views_are_the_anchor_and_the_partners_of_the_draw_of_the_step():
    for step, batch in enumerate(make(num_steps=12)):
        anchors, number = batch["example_ids"], step // 3
        expected = np.stack(
            [anchors, np.where(anchors % 5, anchors + number + 1, anchors), np.full(4, 30 + number)], axis=1
        )
        np.testing.assert_array_equal(batch["mask"], expected)
        np.testing.assert_array_equal(batch["ids"], ROWS["ids"][expected])
        np.testing.assert_array_equal(batch["reference"], TEACHER[expected[:, :2]])


def test_anchors_come_once_per_epoch():
    batches = list(make(num_steps=10))
    for epoch in (batches[:5], batches[5:]):
        assert sorted(np.concatenate([b["example_ids"] for b in epoch])) == list(range(20))


def test_processes_together_make_the_batch_and_restoring_continues_it():
    whole = list(make(num_steps=8))
    parts = [list(make(num_steps=8, process_index=p, process_count=2, prefetch=p * 2)) for p in range(2)]
    for step, batch in enumerate(whole):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), rows)
    later = make(num_steps=8)
    later.set_state({"step": 5})
    np.testing.assert_array_equal(next(later)["ids"], whole[5]["ids"])


def test_each_draw_is_made_once():
    calls = []

    def counted(number):
        calls.append(number)
        return draw(number)

    list(pair_batches(ROWS, counted, num_anchors=20, batch_size=4, redraw_every=3, seed=0, num_steps=9))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_anchors": 51}, "at least the 51 anchors"),
        ({"batch_size": 21}, "there are 20 anchors only"),
        ({"redraw_every": 0}, "at least 1"),
        ({"reference": TEACHER[:4]}, "arrays of one length"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_bad_names_and_draws_are_refused():
    with pytest.raises(ValueError, match="added by pair_batches"):
        pair_batches({"reference": TEACHER}, draw, num_anchors=20, batch_size=4, redraw_every=1, seed=0)
    batches = pair_batches(
        ROWS, lambda number: draw(number)[:3], num_anchors=20, batch_size=4, redraw_every=1, seed=0, prefetch=0
    )
    with pytest.raises(ValueError, match=r"a draw must be \[20, views\]"):
        next(batches)
