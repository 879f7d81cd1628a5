"""Length buckets against exhaustive search, and batches against what they promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.length_buckets import batches_by_length, choose_widths


def cost(lengths, widths, *, compile_tokens, repeats):
    """The docstring's sum, term by term; widths beyond the longest text are not compiled."""
    used = [w for w in widths if w <= min(w for w in widths if w >= max(lengths))]
    return sum(repeats * min(w for w in widths if w >= n) for n in lengths) + compile_tokens * len(used)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    compile_tokens=st.integers(0, 40),
    repeats=st.sampled_from([1.0, 3.5]),
)
def test_widths_cost_no_more_than_any_other_choice(lengths, compile_tokens, repeats):
    chosen = choose_widths(np.array(lengths), longest=16, compile_tokens=compile_tokens, repeats=repeats)
    prices = {"compile_tokens": compile_tokens, "repeats": repeats}
    subsets = (c for size in range(1, 10) for c in itertools.combinations(range(1, 10), size))
    least = min(cost(lengths, subset, **prices) for subset in subsets if subset[-1] >= max(lengths))
    assert cost(lengths, chosen, **prices) == pytest.approx(least)


def test_widths_follow_the_price_of_compiling():
    lengths = np.repeat([5, 6, 7, 30], [1000, 1000, 1000, 10])
    assert choose_widths(lengths, longest=30, compile_tokens=0) == (5, 6, 7, 30)
    assert choose_widths(lengths, longest=30, compile_tokens=2500) == (7, 30)
    assert choose_widths(lengths, longest=30, compile_tokens=2500, repeats=100) == (5, 6, 7, 30)
    assert choose_widths(lengths, longest=30, compile_tokens=1e9) == (30,)
    assert choose_widths(lengths, longest=30, compile_tokens=0, multiple=8) == (8, 30)


def test_widths_go_on_to_the_longest():
    widths = choose_widths(np.array([7, 8]), longest=100, compile_tokens=0, multiple=4)
    assert widths[0] == 8 and widths[-1] == 100
    assert all(b <= 1.25 * a + 4 and b > a for a, b in itertools.pairwise(widths))
    assert all(width % 4 == 0 for width in widths)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 64), max_size=200),
    batch_tokens=st.integers(1, 300),
    shards=st.integers(1, 4),
    inner=st.sets(st.integers(1, 63), max_size=5),
)
def test_batches_hold_every_text_once_and_keep_the_budget(lengths, batch_tokens, shards, inner):
    lengths = np.array(lengths, int)
    widths = (*sorted(inner), 64)
    batches = batches_by_length(lengths, widths, batch_tokens=batch_tokens, shards=shards)
    taken = [text for batch in batches for text in batch.texts]
    assert sorted(taken) == list(range(len(lengths)))
    for batch in batches:
        longest = lengths[batch.texts].max()
        assert batch.width == min(w for w in widths if w >= longest)
        assert batch.num_rows % shards == 0
        assert batch.num_rows * batch.width <= batch_tokens * shards or batch.num_rows == shards
    assert all(len(batch.texts) == batch.num_rows for batch in batches[:-1])
    assert list(lengths[taken]) == sorted(lengths, reverse=True)
    assert len({(batch.num_rows, batch.width) for batch in batches}) <= len(widths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_widths(np.array([]), longest=4, compile_tokens=1), "at least one text"),
        (lambda: choose_widths(np.array([5]), longest=4, compile_tokens=1), "expected 0 to longest=4"),
        (lambda: choose_widths(np.array([3]), longest=4, compile_tokens=1, repeats=0), "must be positive"),
        (lambda: batches_by_length(np.array([5]), (4,), batch_tokens=8), "has 5 tokens but the largest width is 4"),
        (lambda: batches_by_length(np.array([5]), (), batch_tokens=8), "at least one positive number"),
        (lambda: batches_by_length(np.array([5]), (8,), batch_tokens=0), "must be positive, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
