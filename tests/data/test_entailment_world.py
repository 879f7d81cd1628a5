"""The generated inference pairs: word overlap decides, and nothing else tells."""

import numpy as np
import pytest

from jaxcore.data.entailment_world import CONTRADICTION, ENTAILMENT, NEUTRAL, EntailmentWorld, EntailmentWorldConfig

WORLD = EntailmentWorld(EntailmentWorldConfig())
PAIRS = WORLD.sample(900, np.random.default_rng(0))


def test_the_relation_follows_from_the_words():
    opposite = {a: b for pair in WORLD.antonyms for a, b in (pair, pair[::-1])}
    for premise, hypothesis, label in zip(PAIRS.premises, PAIRS.hypotheses, PAIRS.labels, strict=True):
        (word,) = [word for word in hypothesis if word in opposite]
        relation = NEUTRAL
        if word in premise:
            relation = ENTAILMENT
        elif opposite[word] in premise:
            relation = CONTRADICTION
        assert relation == label
        assert sum(word in opposite for word in premise) == 2
        assert not any(opposite.get(word) in premise for word in premise)


def test_relations_are_balanced_and_lengths_as_configured():
    assert np.bincount(PAIRS.labels).min() > 250
    assert {len(premise) for premise in PAIRS.premises} == set(range(4, 8))
    assert {len(hypothesis) for hypothesis in PAIRS.hypotheses} == set(range(1, 4))


def test_the_hypothesis_alone_does_not_tell_the_relation():
    words = [next(w for w in h if any(w in pair for pair in WORLD.antonyms)) for h in PAIRS.hypotheses]
    best = sum(max(np.bincount(PAIRS.labels[np.array(words) == word])) for word in set(words))
    assert best / len(words) < 0.5


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="premise_content must be in"):
        EntailmentWorldConfig(premise_content=8)
    with pytest.raises(ValueError, match="premises need"):
        EntailmentWorldConfig(shortest=1)
