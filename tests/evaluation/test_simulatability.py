"""The simulated reader against scikit-learn's naive Bayes, its words of a class, and what it refuses."""

import numpy as np
import pytest
from sklearn.naive_bayes import MultinomialNB

from jaxcore.evaluation import fit_reader

VOCAB = 30


def texts(seed, count=80, length=12):
    """Words of two classes from distributions that overlap, of unequal lengths."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    ids = np.where(rng.random((count, length)) < 0.4, 10 + 10 * labels[:, None], 0) + rng.integers(
        0, 10, (count, length)
    )
    return ids, np.arange(length) < rng.integers(4, length + 1, count)[:, None], labels


def counts(ids, shown):
    table = np.zeros((len(ids), VOCAB))
    rows, places = np.nonzero(shown)
    np.add.at(table, (rows, ids[rows, places]), 1)
    return table


def test_the_reader_is_multinomial_naive_bayes():
    ids, counted, labels = texts(0)
    reader = fit_reader(ids, counted, labels, num_classes=2, vocab_size=VOCAB, smoothing=0.5)
    prior = np.exp(reader.log_prior)
    peer = MultinomialNB(alpha=0.5, class_prior=prior).fit(counts(ids, counted), labels)
    np.testing.assert_allclose(reader.log_likelihood, peer.feature_log_prob_, atol=1e-12)
    np.testing.assert_allclose(prior, (np.bincount(labels) + 0.5) / (len(labels) + 1))
    other, mask, _ = texts(1)
    shown = mask & (np.arange(12) % 2 == 0)
    np.testing.assert_array_equal(reader.guess(other, shown), peer.predict(counts(other, shown)))


def test_a_word_of_weight_two_is_a_word_shown_twice_and_nothing_shown_is_the_prior():
    ids, counted, labels = texts(0)
    reader = fit_reader(ids, counted, labels, num_classes=2, vocab_size=VOCAB)
    twice = reader.guess(np.tile(ids, 2), np.tile(counted, 2))
    np.testing.assert_array_equal(reader.guess(ids, 2.0 * counted), twice)
    hidden = reader.guess(ids, np.zeros_like(counted))
    assert set(hidden.tolist()) == {int(np.argmax(reader.log_prior))}


def test_association_is_a_log_ratio_of_other_classes():
    ids = np.array([[5, 5, 6], [6, 7, 7]])
    reader = fit_reader(ids, np.ones_like(ids), np.array([0, 1]), num_classes=2, vocab_size=8)
    found = reader.association()
    assert found[0, 5] == pytest.approx(np.log(3)) and found[0, 6] == pytest.approx(0)
    np.testing.assert_allclose(found[0], -found[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 2]}, r"labels must be in \[0, 2\)"),
        ({"labels": [0]}, "labels"),
        ({"counted": np.ones((2, 3))}, "ids and counted must be"),
        ({"vocab_size": 1}, r"ids must be in \[0, 1\)"),
        ({"smoothing": 0.0}, "smoothing > 0"),
        ({"num_classes": 1}, "num_classes must be >= 2"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"ids": [[0, 1], [1, 0]], "counted": np.ones((2, 2)), "labels": [0, 1], "num_classes": 2, "vocab_size": 4}
    ids, counted, labels = ({**given, **change}.pop(name) for name in ("ids", "counted", "labels"))
    options = {name: value for name, value in {**given, **change}.items() if name not in ("ids", "counted", "labels")}
    with pytest.raises(ValueError, match=message):
        fit_reader(np.array(ids), counted, np.array(labels), **options)
    reader = fit_reader(np.array([[0, 1]]), np.ones((1, 2)), np.array([0]), num_classes=2, vocab_size=2)
    with pytest.raises(ValueError, match="a weight is needed for each word"):
        reader.guess(np.array([[0, 1]]), np.ones((1, 3)))
