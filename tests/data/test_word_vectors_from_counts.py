"""PPMI and its factorisation against counting by hand, dense matrices and numpy's SVD in float64."""

import numpy as np
import pytest
import scipy.sparse

from jaxcore.data.word_vectors import (
    WordVectorOptions,
    co_occurrences,
    positive_mutual_information,
    ppmi_svd_vectors,
)

VOCAB = 40


def corpus(num_rows=300, length=9, seed=0):
    """Rows of Zipfian words of two topics, padded on the right; id 0 is padding, 1 a special token."""
    rng = np.random.default_rng(seed)
    probabilities = 1 / np.arange(1, 20)
    probabilities /= probabilities.sum()
    topics = rng.integers(2, size=(num_rows, 1))
    ids = 2 + 19 * topics + rng.choice(19, size=(num_rows, length), p=probabilities)
    ids[:, 0] = 1
    mask = np.arange(length)[None] < rng.integers(3, length + 1, (num_rows, 1))
    return np.where(mask, ids, 0).astype(np.int32), mask & (ids != 1)


def counts_by_hand(ids, counted, window, min_count):
    frequency = np.zeros(VOCAB, int)
    for row, keep in zip(ids, counted, strict=True):
        for word in row[keep]:
            frequency[word] += 1
    pairs = np.zeros((VOCAB, VOCAB))
    for row, keep in zip(ids, counted, strict=True):
        for i in range(len(row)):
            for j in range(max(0, i - window), min(len(row), i + window + 1)):
                if i != j and keep[i] and keep[j] and min(frequency[row[i]], frequency[row[j]]) >= min_count:
                    pairs[row[i], row[j]] += 1
    return frequency, pairs


def information_by_hand(pairs, smoothing):
    words, contexts = pairs.sum(1), pairs.sum(0) ** smoothing
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(pairs * contexts.sum() / (words[:, None] * contexts[None]))
    return np.where(pairs > 0, np.maximum(information, 0), 0)


@pytest.mark.parametrize(("window", "min_count"), [(1, 1), (3, 1), (3, 40), (50, 5)])
def test_co_occurrences_are_those_counted_by_hand(window, min_count):
    ids, counted = corpus()
    frequency, by_hand = counts_by_hand(ids, counted, window, min_count)
    options = WordVectorOptions(window=window, min_count=min_count)
    words, pairs = co_occurrences(ids, counted, vocab_size=VOCAB, options=options)
    np.testing.assert_array_equal(words, np.flatnonzero(frequency >= min_count))
    assert not {0, 1} & set(words), "padding and special tokens are no words"
    np.testing.assert_array_equal(pairs.toarray(), by_hand[np.ix_(words, words)])


def test_counting_in_parts_changes_nothing(monkeypatch):
    ids, counted = corpus()
    options = WordVectorOptions(min_count=1)
    _, whole = co_occurrences(ids, counted, vocab_size=VOCAB, options=options)
    monkeypatch.setattr("jaxcore.data.word_vectors._ROWS_AT_ONCE", 7)
    _, parts = co_occurrences(ids, counted, vocab_size=VOCAB, options=options)
    np.testing.assert_array_equal(parts.toarray(), whole.toarray())


@pytest.mark.parametrize("smoothing", [1.0, 0.75])
def test_mutual_information_is_the_formula(smoothing):
    ids, counted = corpus()
    _, pairs = co_occurrences(ids, counted, vocab_size=VOCAB, options=WordVectorOptions(window=3))
    found = positive_mutual_information(pairs, smoothing).toarray()
    np.testing.assert_allclose(found, information_by_hand(pairs.toarray(), smoothing), atol=1e-12)
    assert found.min() == 0 < found.max()


def test_vectors_are_u_sqrt_s_of_the_dense_svd_at_mean_norm_one():
    ids, counted = corpus()
    options = WordVectorOptions(window=3, min_count=5)
    vectors = ppmi_svd_vectors(ids, counted, vocab_size=VOCAB, dim=6, options=options)
    words, pairs = co_occurrences(ids, counted, vocab_size=VOCAB, options=options)
    left, values, _ = np.linalg.svd(information_by_hand(pairs.toarray(), 0.75))
    expected = left[:, :6] * np.sqrt(values[:6])
    expected /= np.linalg.norm(expected, axis=1).mean()
    assert vectors.dtype == np.float32 and vectors.shape == (VOCAB, 6)
    np.testing.assert_allclose(np.abs(vectors[words]), np.abs(expected), atol=2e-5)
    np.testing.assert_allclose(vectors[words] @ vectors[words].T, expected @ expected.T, atol=5e-5)
    assert (vectors.sum(0) > 0).all(), "signs are settled"
    rare = np.setdiff1d(np.arange(VOCAB), words)
    assert not vectors[rare].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[words], axis=1).mean(), 1, rtol=1e-5)


def test_words_of_one_topic_are_near_each_other_and_frequent_words_near_all():
    ids, counted = corpus(num_rows=2000)
    vectors = ppmi_svd_vectors(ids, counted, vocab_size=VOCAB, dim=4)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    topics = [unit[2:12], unit[21:31]]
    within = np.mean([np.mean((t @ t.T)[np.triu_indices(10, 1)]) for t in topics])
    assert within > np.mean(topics[0] @ topics[1].T) + 0.3


def test_the_same_rows_give_the_same_bits_and_the_cache_is_read(tmp_path, monkeypatch):
    ids, counted = corpus()
    first = ppmi_svd_vectors(ids, counted, vocab_size=VOCAB, dim=5, cache_dir=tmp_path)
    np.testing.assert_array_equal(first, ppmi_svd_vectors(ids, counted, vocab_size=VOCAB, dim=5))

    def never(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr("jaxcore.data.word_vectors._factorise", never)
    np.testing.assert_array_equal(first, ppmi_svd_vectors(ids, counted, vocab_size=VOCAB, dim=5, cache_dir=tmp_path))
    changed = counted.copy()
    changed[0, 1] = ~changed[0, 1]
    for other in ({"dim": 4}, {"counted": changed}, {"options": WordVectorOptions(window=2)}):
        arguments = {"counted": counted, "dim": 5, "options": None, **other}
        with pytest.raises(AssertionError, match="computed again"):
            ppmi_svd_vectors(ids, vocab_size=VOCAB, cache_dir=tmp_path, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be at least 1: got 0"),
        ({"dim": 40}, r"dim is 40, but only \d+ words occur 3 times or more"),
        ({"vocab_size": 10}, r"ids must be in \[0, 10\): got 2\.\.\d+; raise vocab_size"),
        ({"counted": np.zeros((2, 2), bool)}, r"of the same shape: got int32 \(300, 9\) and \(2, 2\)"),
        ({"input_ids": np.zeros((300, 9))}, "must be integers"),
        ({"counted": np.zeros((300, 9), bool)}, r"dim is 5, but only 0 words"),
    ],
)
def test_bad_input_is_named(changes, message):
    ids, counted = corpus()
    arguments = {"input_ids": ids, "counted": counted, "vocab_size": VOCAB, "dim": 5, **changes}
    with pytest.raises(ValueError, match=message):
        ppmi_svd_vectors(**arguments)


def test_words_that_never_meet_and_bad_options_are_refused():
    alone = np.arange(2, 12, dtype=np.int32)[:, None].repeat(4, 0)
    with pytest.raises(ValueError, match="no two frequent words stand near each other"):
        ppmi_svd_vectors(alone, np.ones(alone.shape, bool), vocab_size=VOCAB, dim=2)
    with pytest.raises(ValueError, match="no two frequent words"):
        positive_mutual_information(scipy.sparse.csr_array((3, 3)), 0.75)
    for options in ({"window": 0}, {"min_count": 0}, {"context_smoothing": 0.0}, {"context_smoothing": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            WordVectorOptions(**options)
