"""The generated opinions: labels follow the rules, effects add up where they must, and frequencies are as said."""

import collections

import numpy as np
import pytest

from jaxcore.data.sentiment_world import INTENSIFIERS, NEGATORS, SentimentWorld, SentimentWorldConfig

WORLD = SentimentWorld(SentimentWorldConfig())
TEXTS = WORLD.sample(1500, np.random.default_rng(0))


def score_by_hand(words):
    """The rules again, from the polar words backwards."""
    total = 0.0
    for place, word in enumerate(words):
        strength = WORLD.strengths.get(word, 0.0)
        if strength:
            before = words[:place]
            last = max((i for i, w in enumerate(before) if w in WORLD.strengths), default=-1)
            between = before[last + 1 :]
            strength *= (-1) ** sum(w in NEGATORS for w in between)
            total += strength * (2 if any(w in INTENSIFIERS for w in between) else 1)
    return total


def test_labels_are_the_sign_of_the_score():
    scores = np.array([score_by_hand(words) for words in TEXTS.words])
    assert np.all(scores != 0)
    np.testing.assert_array_equal(TEXTS.labels, scores > 0)
    assert 0.45 < TEXTS.labels.mean() < 0.55


def test_each_rule_does_what_it_says():
    positive = next(word for word, strength in WORLD.strengths.items() if strength == 2)
    for words, expected in {
        (positive,): 2,
        ("very", positive): 4,
        ("not", positive): -2,
        ("not", "very", positive): -4,
        ("not", "the", positive): -2,
        ("not", positive, positive): 0,
        ("the", "film"): 0,
    }.items():
        assert WORLD.score(words) == expected == score_by_hand(words)


def test_the_effect_of_a_word_is_what_the_score_loses_without_it():
    positive = next(word for word, strength in WORLD.strengths.items() if strength == 2)
    assert WORLD.word_effects(("the", "not", positive)) == (0, -4, -2)
    assert all(len(words) == len(effects) for words, effects in zip(TEXTS.words, TEXTS.effects, strict=True))


def test_negation_matters_to_the_label_so_that_a_bag_of_polar_words_is_not_enough():
    without = [np.sign(sum(WORLD.strengths.get(word, 0) for word in words)) for words in TEXTS.words]
    wrong = np.mean((np.array(without) > 0) != TEXTS.labels)
    assert 0.05 < wrong < 0.4


def test_lengths_words_and_frequencies_are_those_of_the_configuration():
    lengths = [len(words) for words in TEXTS.words]
    assert min(lengths) == 6 and max(lengths) == 18
    counts = collections.Counter(word for words in TEXTS.words for word in words)
    assert set(counts) <= set(WORLD.vocabulary)
    assert len(WORLD.vocabulary) == len(set(WORLD.vocabulary)) == WORLD.config.num_words
    assert counts["the"] > 5 * counts["tram"]


def test_texts_depend_on_the_generator_alone():
    again = SentimentWorld(SentimentWorldConfig()).sample(20, np.random.default_rng(0))
    assert again.words == TEXTS.words[:20]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_polar": 3}, "even"),
        ({"shortest": 2}, "3 <= shortest"),
        ({"shortest": 9, "longest": 8}, "3 <= shortest"),
        ({"negated": 1.5}, "probability"),
    ],
)
def test_impossible_worlds_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SentimentWorldConfig(**fields)
