"""Surface similarity against plain Python sets and the textbook edit distance; the index against brute force."""

import functools
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.surface_similarity import (
    inverse_document_frequency,
    length_gap,
    nearest_by_surface,
    surface_similarity,
)

MODULE = sys.modules[nearest_by_surface.__module__]  # the room exports a function of the module's name


def pad(sentences, length, pad_id=0):
    rows = np.full((len(sentences), length), pad_id, np.int32)
    for index, words in enumerate(sentences):
        rows[index, : len(words)] = words
    return rows


def levenshtein(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


sentences = st.lists(st.integers(1, 9), max_size=7).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6), st.integers(0, 3), st.sampled_from([0, 77]))
def test_measures_equal_plain_python(pairs, extra, pad_id):
    first = pad([a for a, _ in pairs], 7 + extra, pad_id)
    second = pad([b for _, b in pairs], 7, pad_id)
    idf = np.random.default_rng(0).uniform(0.1, 2, 100)
    jaccard, weighted, edits = [], [], []
    for a, b in pairs:
        both, either = set(a) & set(b), set(a) | set(b)
        jaccard.append(len(both) / len(either) if either else 0)
        weighted.append(sum(idf[w] for w in both) / sum(idf[w] for w in either) if either else 0)
        longest = max(len(a), len(b))
        edits.append(1 - levenshtein(a, b) / longest if longest else 0)
    for kind, expected in (("jaccard", jaccard), ("idf_jaccard", weighted), ("edit", edits)):
        got = surface_similarity(first, second, kind=kind, idf=idf, pad_id=pad_id)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
        np.testing.assert_allclose(surface_similarity(second, first, kind=kind, idf=idf, pad_id=pad_id), got, atol=1e-6)


def test_sets_not_multisets_and_padding_anywhere_is_no_word():
    rows = np.array([[3, 3, 3, 5], [0, 3, 0, 5], [0, 0, 0, 0]])
    np.testing.assert_allclose(surface_similarity(rows, rows[[1, 0, 2]]), [1, 1, 0])
    np.testing.assert_allclose(surface_similarity(rows[1:], rows[1:], kind="edit"), [1, 0])


def test_many_pairs_are_the_same_as_few(monkeypatch):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 20, (2, 300, 8))
    whole = {kind: surface_similarity(first, second, kind=kind) for kind in ("jaccard", "edit")}
    monkeypatch.setattr(MODULE, "_PAIRS_AT_ONCE", 7)
    for kind, expected in whole.items():
        np.testing.assert_array_equal(surface_similarity(first, second, kind=kind), expected)


def test_length_gap_by_hand():
    np.testing.assert_allclose(length_gap(np.array([4, 0, 9, 5]), np.array([8, 0, 0, 5])), [0.5, 0, 1, 0])


def test_inverse_document_frequency_counts_sentences_not_words():
    rows = np.array([[1, 1, 2], [1, 3, 0], [1, 0, 0]])
    expected = np.log(np.array([4 / 1, 4 / 4, 4 / 2, 4 / 2, 4 / 1]))
    np.testing.assert_allclose(inverse_document_frequency(rows, vocab_size=5), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="word id 3"):
        inverse_document_frequency(rows, vocab_size=3)


def zipf_rows(count, rng, vocab=400, length=9):
    words = np.minimum(rng.zipf(1.3, (count, length)), vocab)
    return np.where(np.arange(length) < rng.integers(2, length + 1, (count, 1)), words, 0).astype(np.int32)


@pytest.mark.parametrize("kind", ["jaccard", "idf_jaccard"])
def test_without_a_limit_the_index_finds_what_brute_force_finds(kind, monkeypatch):
    monkeypatch.setattr(MODULE, "_PRODUCTS_AT_ONCE", 5000)  # several blocks
    rows = zipf_rows(120, np.random.default_rng(2))
    groups = np.arange(120) // 2
    idf = inverse_document_frequency(rows, vocab_size=401)
    found = nearest_by_surface(rows, 5, kind=kind, idf=idf, groups=groups, max_postings=None)
    everything = np.array(
        [surface_similarity(np.repeat(rows[i : i + 1], 120, 0), rows, kind=kind, idf=idf) for i in range(120)]
    )
    everything[groups[:, None] == groups] = -1
    expected = np.argsort(-everything, axis=1, kind="stable")[:, :5]
    best = np.take_along_axis(everything, expected, 1)
    np.testing.assert_allclose(found.similarity, np.maximum(best, 0), atol=1e-6)
    np.testing.assert_array_equal(found.indices, np.where(best > 0, expected, -1))


def test_frequent_words_are_not_followed_but_rare_ones_are_enough():
    rng = np.random.default_rng(3)
    rare = np.repeat(np.arange(1000, 1200), 2)  # rows 2i and 2i + 1 share one rare word
    rows = np.concatenate([rare[:, None], rng.integers(1, 6, (400, 4))], axis=1).astype(np.int32)
    found = nearest_by_surface(rows, 3, max_postings=10)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(400) ^ 1)
    assert (found.indices[:, 1:] == -1).all() and (found.similarity[:, 1:] == 0).all()
    shared = surface_similarity(rows, rows[np.arange(400) ^ 1])
    np.testing.assert_allclose(found.similarity[:, 0], shared)  # the score counts the frequent words too


def test_edit_similarity_ranks_the_pool():
    rows = pad([[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 9], [1, 8, 7, 6]], 4)
    found = nearest_by_surface(rows, 2, kind="edit", max_postings=None)
    assert found.indices[0].tolist() == [2, 3] and found.similarity[0].tolist() == [0.75, 0.25]


def test_memory_is_linear_in_the_rows():
    """Twice the rows of twice the vocabulary: twice the memory, where all pairs would take four times as much."""
    peaks = []
    for count in (4000, 8000):
        rows = np.random.default_rng(4).integers(1, count, (count, 8)).astype(np.int32)
        tracemalloc.start()
        nearest_by_surface(rows, 4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.6 * peaks[0]
    assert peaks[1] < 8000 * 8000 * 4 / 4


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((2, 3), int), np.zeros((3, 3), int)), {}, "with as many rows"),
        ((np.zeros(3, int), np.zeros(3, int)), {}, "must be .pairs, length."),
        ((np.zeros((1, 2)), np.zeros((1, 2))), {}, "must be integers"),
        ((np.ones((1, 2), int),) * 2, {"kind": "cosine"}, "unknown kind 'cosine'"),
        ((np.ones((1, 2), int),) * 2, {"kind": "idf_jaccard"}, "needs idf weights"),
        ((np.full((1, 2), 9),) * 2, {"kind": "idf_jaccard", "idf": np.ones(5)}, "word id 9 has no idf weight"),
    ],
)
def test_bad_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        surface_similarity(*arguments, **options)


def test_bad_neighbour_requests_are_refused():
    rows = np.ones((4, 2), int)
    with pytest.raises(ValueError, match="at least 1"):
        nearest_by_surface(rows, 0)
    with pytest.raises(ValueError, match=r"groups must be \[4\]"):
        nearest_by_surface(rows, 1, groups=np.zeros(3))
