"""Sentence batches: epochs without loss, no duplicates in a batch, few widths, copies, processes, restoring."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.sentence_batches import sentence_batches


def corpus(lengths):
    """Row i holds the id i + 1 at its real positions."""
    lengths = np.asarray(lengths)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    return mask * (np.arange(len(lengths))[:, None] + 1), mask


RNG = np.random.default_rng(0)
IDS, MASK = corpus(RNG.integers(1, 33, 103))
KINDS = RNG.integers(0, 40, 103)


def test_each_sentence_is_dealt_once_per_epoch_up_to_what_still_waits():
    """After any number of steps the counts of two sentences differ by one epoch at most, and none is lost."""
    num_steps = 8 * 103 // 8
    counts = collections.Counter()
    for batch in sentence_batches(IDS, MASK, batch_size=8, seed=1, num_steps=num_steps, prefetch=0):
        counts.update(batch["example_ids"].tolist())
    assert sum(counts.values()) == num_steps * 8
    # 8 epochs' worth of rows: each of the 103 has been dealt 7 to 8 times (the 9th epoch may have begun).
    assert set(counts) == set(range(103)) and set(counts.values()) <= {7, 8, 9}


def test_without_buckets_and_duplicates_an_epoch_is_a_permutation():
    batches = list(sentence_batches(IDS[:96], MASK[:96], batch_size=8, seed=1, num_steps=24))
    first, second = (np.concatenate([b["example_ids"] for b in part]) for part in (batches[:12], batches[12:]))
    assert sorted(first) == sorted(second) == list(range(96))
    assert not np.array_equal(first, second)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 6), st.booleans())
def test_no_two_of_a_kind_meet_and_nobody_is_lost(seed, batch_size, num_kinds_factor, bucketed):
    rng = np.random.default_rng(seed)
    count = 60
    kinds = rng.permutation(np.arange(count) // num_kinds_factor)
    ids, mask = corpus(rng.integers(1, 17, count))
    steps = 5 * count // batch_size
    batches = sentence_batches(
        ids, mask, batch_size=batch_size, seed=seed, duplicate_ids=kinds, widths=(4, 8) if bucketed else (),
        num_steps=steps, prefetch=0,
    )  # fmt: skip
    counts = collections.Counter()
    for batch in batches:
        assert len(set(kinds[batch["example_ids"]])) == batch_size
        counts.update(batch["example_ids"].tolist())
    assert set(counts) == set(range(count))
    assert max(counts.values()) - min(counts.values()) <= 3


def test_duplicates_wait_instead_of_being_dropped():
    """One kind with as many copies as there are batches: every batch holds exactly one of them."""
    kinds = np.where(np.arange(40) < 10, 0, np.arange(40))
    ids, mask = corpus(np.full(40, 3))
    counts = collections.Counter()
    for batch in sentence_batches(ids, mask, batch_size=4, seed=3, duplicate_ids=kinds, num_steps=100, prefetch=0):
        assert (kinds[batch["example_ids"]] == 0).sum() <= 1
        counts.update(batch["example_ids"].tolist())
    assert all(abs(counts[row] - 10) <= 1 for row in range(10))


def test_batches_are_cut_to_few_widths_and_lose_no_token():
    widths = set()
    for batch in sentence_batches(IDS, MASK, batch_size=8, seed=1, widths=(8, 16, 24), num_steps=60, prefetch=0):
        width = batch["input_ids"].shape[1]
        widths.add(width)
        rows = batch["example_ids"]
        np.testing.assert_array_equal(batch["attention_mask"].sum(1), MASK[rows].sum(1))
        np.testing.assert_array_equal(batch["input_ids"], IDS[rows, :width])
        assert width == min(w for w in (8, 16, 24, 32) if w >= MASK[rows].sum(1).max())
    assert widths == {8, 16, 24, 32}


def test_a_width_that_cannot_fill_batches_is_joined_to_a_wider_one():
    ids, mask = corpus([2] * 3 + [6] * 30 + [12] * 2)
    shapes = [
        b["input_ids"].shape for b in sentence_batches(ids, mask, batch_size=8, seed=0, widths=(4, 8), num_steps=9)
    ]
    assert set(shapes) == {(8, 12)}  # 3 short ones join the 30; the 2 long ones take all in
    ids, mask = corpus([2] * 3 + [6] * 30 + [12] * 8)
    shapes = [
        b["input_ids"].shape for b in sentence_batches(ids, mask, batch_size=8, seed=0, widths=(4, 8), num_steps=9)
    ]
    assert set(shapes) == {(8, 8), (8, 12)}


def test_copies_are_adjacent_and_stay_on_one_process():
    options = {"batch_size": 6, "seed": 4, "num_copies": 3, "widths": (8,), "duplicate_ids": KINDS, "num_steps": 40}
    whole = list(sentence_batches(IDS, MASK, **options))
    parts = [
        list(sentence_batches(IDS, MASK, process_index=p, process_count=2, prefetch=2 * p, **options)) for p in range(2)
    ]
    for step, batch in enumerate(whole):
        copies = batch["example_ids"].reshape(6, 3)
        assert (copies == copies[:, :1]).all() and len(set(copies[:, 0])) == 6
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), rows)


def test_restoring_at_any_step_continues_alike():
    options = {"batch_size": 8, "seed": 4, "duplicate_ids": KINDS % 30, "widths": (8, 16), "num_steps": 70}
    whole = list(sentence_batches(IDS, MASK, **options))
    for step in (0, 1, 13, 26, 69):
        later = sentence_batches(IDS, MASK, **options)
        later.set_state({"step": step})
        np.testing.assert_array_equal(next(later)["example_ids"], whole[step]["example_ids"])
        assert later.get_state() == {"step": step + 1}
    backwards = sentence_batches(IDS, MASK, **options)
    for step in (69, 40, 2):  # plans long forgotten are made again
        np.testing.assert_array_equal(backwards.global_batch(step)["example_ids"], whole[step]["example_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 104}, "104, but there are 103 sentences only"),
        ({"batch_size": 0}, "at least 1"),
        ({"num_copies": 0}, "at least 1"),
        ({"widths": (0, 4)}, "widths must be positive"),
        ({"attention_mask": MASK[:5]}, "must have the shape of input_ids"),
        ({"duplicate_ids": np.zeros(5)}, r"must be \[103\]"),
        ({"duplicate_ids": np.zeros(103, int)}, "103 of 103 sentences share the duplicate id"),
        ({"input_ids": IDS[0]}, "must be .sentences, length."),
        ({"input_ids": IDS[:0]}, "at least one of each"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"input_ids": IDS, "attention_mask": MASK, "batch_size": 8, "seed": 0} | change
    if arguments["input_ids"].shape != IDS.shape:
        arguments["attention_mask"] = None
    with pytest.raises(ValueError, match=message):
        sentence_batches(**arguments)
