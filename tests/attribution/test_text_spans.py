"""Span arithmetic against sets of characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.attribution.text_spans import (
    Span,
    map_local_to_document,
    merge_offsets,
    merge_spans,
    num_characters,
    overlap,
    shared_characters,
    spans_of_tokens,
    text_of,
    tokens_in_spans,
)

offsets = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
spans = st.lists(st.builds(lambda name, place: Span(name, *place), st.sampled_from("ab"), offsets), max_size=6)


def characters(found):
    return {(document, place) for document, start, end in found for place in range(start, end)}


@given(spans, spans)
def test_counts_are_those_of_sets_of_characters(first, second):
    assert characters(merge_spans(first)) == characters(first)
    assert num_characters(first) == len(characters(first))
    assert shared_characters(first, second) == len(characters(first) & characters(second))


@given(offsets, offsets)
def test_overlap_is_symmetric_and_shares_a_character(first, second):
    assert overlap(first, second) == overlap(second, first) == bool(set(range(*first)) & set(range(*second)))


def test_a_gap_of_one_character_joins_and_one_of_two_does_not():
    assert merge_offsets([(4, 6), (0, 3), (8, 9)], gap=1) == [(0, 6), (8, 9)]
    assert merge_offsets([(0, 3), (3, 5)]) == [(0, 5)]
    with pytest.raises(ValueError, match=r"got \[3, 3\)"):
        merge_offsets([(3, 3)])


@given(st.lists(offsets, min_size=1, max_size=4), st.data())
def test_local_spans_read_the_same_in_the_document_but_for_joints(pieces, data):
    """Every character of the joined text that is no joint is found once, in order."""
    document = "".join(chr(200 + place) for place in range(60))
    pieces = merge_offsets(pieces)
    joined = text_of(pieces, document, joint="|")
    start = data.draw(st.integers(0, len(joined) - 1))
    end = data.draw(st.integers(start + 1, len(joined)))
    wanted = joined[start:end].replace("|", "")
    if not wanted:
        with pytest.raises(ValueError, match="no span"):
            map_local_to_document((start, end), pieces)
    else:
        assert text_of(map_local_to_document((start, end), pieces), document, joint="") == wanted


def test_a_span_beyond_the_pieces_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 12\) is no span of a text of 7 characters"):
        map_local_to_document((3, 12), [(0, 3), (10, 13)])


def test_tokens_become_spans_of_their_document_and_back():
    documents = {"d": "One two three. Four five six."}
    sources = [Span("d", 0, 14), Span("d", 15, 29)]
    pieces = np.asarray([0, 0, 0, 0, 1, 1, 1, 1, -1])
    places = np.asarray([(0, 3), (3, 7), (7, 13), (13, 14), (0, 4), (4, 9), (9, 13), (13, 14), (0, 0)])
    kept = np.asarray([0, 1, 1, 1, 1, 0, 1, 0, 1], bool)
    found = spans_of_tokens(kept, pieces, places, sources, documents)
    assert [documents["d"][span.start : span.end] for span in found] == ["two three.", "Four", "six"]
    assert spans_of_tokens(kept[:0], pieces[:0], places[:0], sources, documents) == []
    inside = tokens_in_spans(places[:4], [(5, 9), (6, 8)])
    assert inside.tolist() == [False, True, True, False]
