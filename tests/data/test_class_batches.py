"""P x K class batches: their shape, the coverage laws, any number of processes, any point of restoring, bad input."""

import collections

import numpy as np
import pytest

from jaxcore.data.class_batches import class_batches

LABELS = np.repeat(["pear", "fig", "plum", "quince", "lime", "date"], [8, 8, 12, 8, 16, 8])
ARRAYS = {"value": np.arange(len(LABELS)) * 10, "row": np.arange(2 * len(LABELS)).reshape(-1, 2)}


def make(**options):
    return class_batches(ARRAYS, LABELS, **({"num_classes": 3, "num_examples": 4, "seed": 7} | options))


def test_every_batch_has_p_classes_of_k_different_examples():
    names = np.unique(LABELS)
    for step in range(12):
        batch = make().global_batch(step)
        assert batch["labels"].shape == (12,) and batch["row"].shape == (12, 2)
        by_class = batch["labels"].reshape(3, 4)
        assert (by_class == by_class[:, :1]).all() and len(set(by_class[:, 0])) == 3
        assert len(set(batch["example_ids"])) == 12
        np.testing.assert_array_equal(names[batch["labels"]], LABELS[batch["example_ids"]])
        np.testing.assert_array_equal(batch["value"], batch["example_ids"] * 10)


def test_coverage_of_classes_and_of_examples_is_exact_over_a_cycle():
    """6 classes / 3 = 2 steps an epoch; the cycle of a class of n examples is n / 4 epochs; 12 is a multiple of all."""
    batches = list(make(num_steps=24))
    for epoch in range(12):
        seen = np.concatenate([b["labels"][::4] for b in batches[2 * epoch : 2 * epoch + 2]])
        assert sorted(seen) == list(range(6))
    counts = collections.Counter(np.concatenate([b["example_ids"] for b in batches]).tolist())
    per_class = dict(zip(*np.unique(LABELS, return_counts=True), strict=True))
    for row, label in enumerate(LABELS):
        assert counts[row] == 12 * 4 // per_class[label]
    pears = [i for b in batches[:4] for i in b["example_ids"] if LABELS[i] == "pear"]  # one cycle: two epochs
    assert sorted(pears) == list(range(8))


def test_leftover_classes_and_examples_change_with_the_epoch():
    options = {"num_classes": 4, "num_examples": 3, "num_steps": 60}
    batches = list(make(**options))
    missing = [set(range(6)) - set(b["labels"].tolist()) for b in batches]  # one step an epoch, two classes left over
    assert len({tuple(sorted(m)) for m in missing}) > 5
    counts = collections.Counter(np.concatenate([b["example_ids"] for b in batches]).tolist())
    assert set(counts) == set(range(len(LABELS)))


def test_processes_together_make_the_global_batch_and_the_state_is_the_step():
    whole = list(make(num_steps=5))
    parts = [list(make(num_steps=5, process_index=p, process_count=3, prefetch=p)) for p in range(3)]
    for step, batch in enumerate(whole):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), rows)
    again = make(num_steps=5)
    next(again)
    assert again.get_state() == {"step": 1}
    later = make(num_steps=5, process_count=1)
    later.set_state(again.get_state())
    for batch in whole[1:]:
        np.testing.assert_array_equal(next(later)["example_ids"], batch["example_ids"])
    assert not np.array_equal(make(seed=8).global_batch(0)["example_ids"], whole[0]["example_ids"])


def test_small_classes_are_left_out_or_repeated():
    labels = ["a"] * 5 + ["b"] * 2 + ["c"] * 6
    arrays = {"x": np.arange(13)}
    without = class_batches(
        arrays, labels, num_classes=2, num_examples=4, seed=0, small_classes="leave_out", num_steps=9
    )
    assert {int(label) for batch in without for label in batch["labels"]} == {0, 2}
    filled = class_batches(arrays, labels, num_classes=3, num_examples=4, seed=0, small_classes="repeat")
    rows = filled.global_batch(3)
    assert set(rows["example_ids"][rows["labels"] == 1]) == {5, 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"num_classes": 7}, "6 classes can be drawn from, fewer than the 7"),
        ({"num_examples": 9}, "fewer than 9 examples .e.g. 'date' has 8"),
        ({"small_classes": "ignore"}, "small_classes must be"),
        ({"process_count": 5}, "does not divide over 5 processes"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_bad_arrays_are_refused():
    with pytest.raises(ValueError, match="one row per example"):
        class_batches({"x": np.arange(3)}, [0, 1], num_classes=2, num_examples=1, seed=0)
    with pytest.raises(ValueError, match="added by class_batches"):
        class_batches({"labels": np.arange(2)}, [0, 1], num_classes=2, num_examples=1, seed=0)
