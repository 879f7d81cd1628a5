"""The classical teacher, and what `label_scores` asks of any teacher."""

import numpy as np
import pytest

from jaxcore.data.label_teachers import LinearTeacher, label_scores

RNG = np.random.default_rng(0)
OWN = [["card", "visa"], ["rate", "euro"], ["loan", "debt"]]
COMMON = ["please", "the", "my", "help", "with"]
LABELS = np.repeat([0, 1, 2], 30)
TEXTS = [" ".join([*RNG.choice(COMMON, 4), RNG.choice(OWN[y])]) for y in LABELS]
TEACHER = LinearTeacher(TEXTS, LABELS, num_labels=3)


def test_confidence_is_normalised_over_labels_and_right():
    scores = TEACHER.label_confidence(TEXTS)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-9)
    assert (scores.argmax(axis=1) == LABELS).all()


def test_affinity_judges_each_label_by_the_log_lifts_of_the_words():
    counts = {w: [sum(t.split().count(w) for t, y in zip(TEXTS, LABELS, strict=True) if y == c) for c in range(3)]
              for w in {w for t in TEXTS for w in t.split()}}  # fmt: skip
    table = {w: np.array(c) + 1.0 for w, c in counts.items()}
    totals = sum(table.values())
    lift = sum(np.log(table[w] / totals / (table[w].sum() / totals.sum())) for w in ("my", "card", "card"))
    found = TEACHER.label_affinity(["my Card? card unknown"])[0]
    np.testing.assert_allclose(found, -np.log1p(np.exp(2 - lift)), rtol=1e-9)


class Recorder:
    """A teacher that remembers what it was shown, and answers with the length of the text."""

    def __init__(self):
        self.seen = []

    def label_confidence(self, texts):
        self.seen += texts
        return np.log(np.array([[len(text.split(" ")) / 10, 0.5] for text in texts]))

    def label_affinity(self, texts):
        return np.log(np.full((len(texts), 2), 0.25))


def test_masked_copies_lose_words_and_the_own_label_is_asked():
    masks = np.array([[[1, 1, 1], [0, 1, 1]], [[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 0, 1]]], bool)
    texts = [["a", "b", "c"], ["d", "e"], ["f", "g", "h"]]
    teacher = Recorder()
    scores = label_scores(teacher, texts, np.array([0, 0, 1]), masks, texts_at_once=2)
    assert teacher.seen == ["a b c", "b c", "d e", "d", "f g h", "f h"]
    np.testing.assert_allclose(scores.confidence, [[0.3, 0.2], [0.2, 0.1], [0.5, 0.5]])
    np.testing.assert_allclose(scores.affinity, 0.25)
    marked = Recorder()
    label_scores(marked, texts[:1], np.array([0]), masks[:1], mask_word="_")
    assert marked.seen == ["a b c", "_ b c"]


def test_a_label_without_texts_is_named():
    with pytest.raises(ValueError, match="texts of all 4 labels"):
        LinearTeacher(TEXTS, LABELS, num_labels=4)
