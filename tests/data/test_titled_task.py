"""The task on titled texts: halves are halves, splits disjoint, grades what pairs share, batches whole epochs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.titled_task import (
    HalvesSampler,
    TitledDataConfig,
    TitledRows,
    graded_halves,
    open_titled_task,
    split_halves,
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return open_titled_task(TitledDataConfig(cache_dir=str(tmp_path_factory.mktemp("cache"))), seed=0)


@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_halves_put_together_are_the_text(lengths):
    ids = np.zeros((len(lengths), 12), np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = [1, *range(10, 10 + length - 2), 2]
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int32)
    halves = split_halves(ids, mask, half_length=7)
    for row, length in enumerate(lengths):
        words = []
        for side in ("first", "second"):
            half = halves[f"{side}_ids"][row][halves[f"{side}_mask"][row] > 0]
            assert half[0] == 1 and half[-1] == 2 and not halves[f"{side}_ids"][row][len(half) :].any()
            words.append(half[1:-1].tolist())
        assert words[0] + words[1] == list(range(10, 10 + length - 2))
        assert len(words[0]) - len(words[1]) in (0, 1)


def test_a_half_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit half_length 4"):
        split_halves(np.ones((1, 10), np.int32), np.ones((1, 10), np.int32), half_length=4)


def test_the_configured_half_length_always_fits():
    for length in range(8, 60):
        ids = np.ones((1, length), np.int32)
        split_halves(ids, ids, half_length=TitledDataConfig(max_length=length).half_length)


def test_no_text_is_trained_on_and_held_out(task):
    rows = {tuple(row) for row in task.training.input_ids}
    shared = sum(tuple(row) in rows for row in task.test.input_ids)
    assert shared <= 0.01 * len(task.test)  # two texts may begin alike and be cut there
    assert len(task.test) == pytest.approx(0.2 * (len(task.test) + len(task.training)), abs=1)
    other = open_titled_task(task.config, seed=1)
    assert np.any(other.test.input_ids != task.test.input_ids)


def test_titles_are_words_without_end_tokens(task):
    assert task.title_ids.shape == task.title_mask.shape == (len(task.title_ids), task.config.title_length)
    assert not np.isin(task.title_ids[task.title_mask > 0], task.special_ids).any()
    assert not task.title_ids[task.title_mask == 0].any() and task.title_mask[:, 0].all()
    assert task.training.titles.max() < len(task.title_ids) and "texts under" in task.description


def test_grades_say_what_two_halves_share():
    titles, topics = np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 1, 1])
    rows = TitledRows(np.zeros((5, 3), int), np.ones((5, 3), int), titles, topics)
    pairs = graded_halves(rows, np.random.default_rng(0), per_grade=100)
    assert len(pairs.grades) == 25 and len({*zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 25
    for i, j, grade in zip(*pairs, strict=True):
        expected = 3 if i == j else 2 if titles[i] == titles[j] else 1 if topics[i] == topics[j] else 0
        assert grade == expected
    few = graded_halves(rows, np.random.default_rng(0), per_grade=3)
    assert np.bincount(few.grades).tolist() == [3, 3, 3, 3]


def test_batches_are_the_same_for_any_number_of_processes_and_cover_an_epoch(task):
    sampler = HalvesSampler(task, batch_size=32, seed=3)
    steps = len(task.training) // 32
    seen = np.concatenate([sampler.rows(step, 0, 32)["example_ids"] for step in range(steps)])
    assert len(set(seen.tolist())) == len(seen) == steps * 32
    whole = sampler.rows(5, 0, 32)
    parts = [sampler.rows(5, start, start + 16) for start in (0, 16)]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    np.testing.assert_array_equal(whole["title_ids"], task.title_ids[whole["labels"]])
    halves = task.halves(task.training.take(whole["example_ids"]))
    np.testing.assert_array_equal(whole["second_ids"], halves["second_ids"])
    batches = task.half_batches(batch_size=32, seed=3, num_steps=8)
    batches.set_state({"step": 5})
    np.testing.assert_array_equal(next(batches)["first_ids"], whole["first_ids"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task: HalvesSampler(task, batch_size=10**6, seed=0), "a batch of 1000000 different texts"),
        (lambda task: TitledDataConfig(max_length=4), "data.max_length must be at least 8"),
        (lambda task: TitledDataConfig(test_share=1.0), "data.test_share must be in"),
        (lambda task: open_titled_task(TitledDataConfig(path="nothing.txt"), seed=0), "no file at"),
    ],
)
def test_bad_input(task, call, message):
    with pytest.raises(ValueError, match=message):
        call(task)


def test_a_corpus_too_small_is_refused(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("a\tone two three\nb\tfour five six\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has 2 texts under 2 titles: expected at least ten"):
        open_titled_task(TitledDataConfig(path=str(path)), seed=0)
