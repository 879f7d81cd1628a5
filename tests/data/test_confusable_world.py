"""The world of confusable classes: what its texts hold, what the attack changes, what its teacher believes."""

import numpy as np
import pytest
import scipy.special

from jaxcore.data.confusable_world import CLASS, GROUP, ConfusableWorld, ConfusableWorldConfig, WorldTeacher

WORLD = ConfusableWorld()


def test_a_text_holds_one_word_of_its_class_and_one_or_two_of_its_group():
    texts = WORLD.sample(50, np.random.default_rng(0))
    assert texts.words.shape == (600, 12)
    for words, label in zip(texts.words, texts.labels, strict=True):
        assert np.isin(words, WORLD.class_words[label]).sum() == 1
        assert (WORLD.roles[words] == CLASS).sum() == 1, "no other class's word"
        own = np.isin(words, WORLD.group_words[label // 3]).sum()
        assert own in (1, 2) and own == (WORLD.roles[words] == GROUP).sum()
    places = np.argmax(WORLD.roles[texts.words] == CLASS, axis=1)
    assert np.bincount(places, minlength=12).min() > 20, "the class word may stand anywhere"


def test_the_attack_replaces_own_group_words_and_inserts_another_groups():
    texts = WORLD.sample(30, np.random.default_rng(1))
    attacked = WORLD.attacked(texts, np.random.default_rng(2))
    assert attacked.words.shape == (360, 14)
    others = []
    for words, label in zip(attacked.words, attacked.labels, strict=True):
        assert not np.isin(words, WORLD.group_words[label // 3]).any()
        assert np.isin(words, WORLD.class_words[label]).sum() == 1
        inserted = words[WORLD.roles[words] == GROUP]
        assert len(set(inserted)) == 2 and len({word // 5 for word in inserted}) == 1
        others.append(inserted[0] // 5)
    assert set(others) == {0, 1, 2, 3}


def test_word_probabilities_are_those_of_the_texts():
    texts = WORLD.sample(4000, np.random.default_rng(3))
    table = WORLD.word_probabilities()
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
    counted = np.bincount(texts.words[texts.labels == 7].ravel(), minlength=WORLD.config.num_words) / 48000
    np.testing.assert_allclose(counted, table[7], atol=0.0035)  # five standard errors of the most frequent words


def test_the_teacher_is_bayes_on_smoothed_probabilities():
    teacher = WorldTeacher(WORLD)
    texts = WORLD.sample(2, np.random.default_rng(4))
    joined = [" ".join(words) for words in WORLD.render(texts.words)]
    smoothed = WORLD.word_probabilities() + WORLD.config.smoothing
    smoothed /= smoothed.sum(axis=1, keepdims=True)
    scores = np.array([[np.log(smoothed[label, row]).sum() for label in range(12)] for row in texts.words])
    np.testing.assert_allclose(np.exp(teacher.label_confidence(joined)), scipy.special.softmax(scores, axis=1))
    background = np.array([np.log(smoothed.mean(axis=0))[row].sum() for row in texts.words])
    affinity = scipy.special.expit(scores - background[:, None] - 2)
    np.testing.assert_allclose(np.exp(teacher.label_affinity(joined)), affinity)


def test_a_word_shared_by_neighbours_cancels_only_with_the_space_of_labels():
    teacher = WorldTeacher(WORLD)
    neutral = " ".join(f"neutral{i}" for i in range(10))
    with_group = f"{neutral} topic0a intent0a"
    without = f"{neutral} intent0a"
    gain = lambda judge: float(np.exp(judge([with_group])[0, 0]) - np.exp(judge([without])[0, 0]))  # noqa: E731
    assert gain(teacher.label_affinity) > 0.15
    odds = teacher.label_confidence([with_group])[0] - teacher.label_confidence([without])[0]
    assert odds[0] - odds[1] == pytest.approx(0, abs=1e-9), "between classes of the group it says nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_neutral": 0}, "world.num_neutral must be positive: got 0"),
        ({"classes_per_group": 1}, "at least 2"),
        ({"length": 3}, "world.length must exceed"),
    ],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ConfusableWorldConfig(**changes)
