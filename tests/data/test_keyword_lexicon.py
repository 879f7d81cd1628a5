"""Counts, lexicons and the keyword attack against loops."""

import collections

import numpy as np
import pytest

from jaxcore.data.keyword_lexicon import bare_word, count_words, keyword_attack, keyword_lexicon

TEXTS = [["card", "lost", "the"], ["card", "the", "the"], ["rate", "the", "lost"], ["rate", "rate", "the"]]
LABELS = np.array([0, 0, 1, 1])


def test_counts_are_those_of_a_counter():
    counts = count_words(TEXTS, LABELS, num_labels=2)
    for label in range(2):
        by_hand = collections.Counter(w for t, y in zip(TEXTS, LABELS, strict=True) if y == label for w in t)
        assert {w: int(counts.by_label[label, counts.index[w]]) for w in counts.words} == {
            w: by_hand[w] for w in counts.words
        }
    assert counts.bags([["rate", "unknown", "rate"]])[0, counts.index["rate"]] == 2


def test_keywords_are_ranked_by_lift_times_root_frequency():
    counts = count_words(TEXTS, LABELS, num_labels=2)
    strength = {}
    for word in counts.words:
        of_label, total = sum(t.count(word) for t in TEXTS[:2]), sum(t.count(word) for t in TEXTS)
        strength[word] = (of_label / 6) / (total / 12) * np.sqrt(of_label)
    expected = sorted((w for w in strength if strength[w] > 0), key=lambda w: -strength[w])
    assert keyword_lexicon(counts, num_keywords=3, min_count=1)[0] == expected[:3]
    frequent = keyword_lexicon(counts, num_keywords=3, min_count=3)
    assert frequent == [["the"], ["rate", "the"]], "rare words are left out, and words the label never has"


def test_the_attack_inserts_keywords_of_the_wrong_label_and_keeps_the_text():
    lexicon = [["a", "b", "c"], ["x", "y", "z"]]
    attacked = keyword_attack(TEXTS * 20, np.tile([1, 1, 0, 0], 20), lexicon, np.random.default_rng(0))
    places = collections.Counter()
    for text, changed, wrong in zip(TEXTS * 20, attacked, [1, 1, 0, 0] * 20, strict=True):
        inserted = [w for w in changed if w in lexicon[wrong]]
        assert len(set(inserted)) == 2 and [w for w in changed if w not in lexicon[wrong]] == text
        places[changed.index(inserted[0])] += 1
    assert len(places) >= 3


def test_words_are_bared():
    assert bare_word("Card?") == "card" and bare_word("haven't") == "haven't" and bare_word("...") == ""


def test_too_few_keywords_are_named():
    with pytest.raises(ValueError, match="no word occurs 99 times"):
        keyword_lexicon(count_words(TEXTS, LABELS, num_labels=2), num_keywords=2, min_count=99)
    with pytest.raises(ValueError, match="label 1 has 1 keywords, fewer than 2"):
        keyword_attack(TEXTS[:1], np.array([1]), [["a", "b"], ["x"]], np.random.default_rng(0))
