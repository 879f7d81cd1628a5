"""Teachers that say how well each label fits a text: what class-aware attribution priors are regressed on.

A `LabelTeacher` stands where a frozen language model stands in CAP: `label_confidence` normalises over the whole space
of labels (a word that fits a class and its neighbours alike cancels), `label_affinity` asks of one label at a time
(such a word counts in full). A language model that scores label names after a prompt fits the same interface.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcore.data.keyword_lexicon import WordCounts, bare_word, count_words


class LabelTeacher(Protocol):
    """What `label_priors` needs of a teacher. Words are separated by single spaces."""

    def label_confidence(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """Log-probabilities, normalised over the labels."""
        ...

    def label_affinity(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """Log-probabilities that each label fits, judged by itself: not normalised over the labels."""
        ...


class LinearTeacher:
    """A classical teacher: logistic regression on TF-IDF, and log-lifts of words for the affinity.

        confidence  log softmax(W tfidf(x) + b)
        affinity    log sigmoid(sum_w log p(w|y) / p(w) - offset)

    Args:
        texts, labels: what it is trained on; labels 0..num_labels - 1, each at least once.
        inverse_penalty: scikit-learn's C.
        smoothing: added to every count of a word in a label.
        offset: subtracted from the sum of log-lifts.

    Source: cap.md, experiment B; constants that it does not give are ours: C = 10, smoothing 1, offset 2.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Int[np.ndarray, "texts"],
        *,
        num_labels: int,
        inverse_penalty: float = 10.0,
        smoothing: float = 1.0,
        offset: float = 2.0,
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        present = np.unique(labels)
        if len(present) < 2 or not np.array_equal(present, np.arange(num_labels)):
            raise ValueError(f"the teacher needs texts of all {num_labels} labels, at least 2: it has {len(present)}")
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer=_bare_words)
        features = self._vectorizer.fit_transform(texts)
        self._model = LogisticRegression(C=inverse_penalty, max_iter=300)
        self._model.fit(features, labels)
        self._offset = offset
        counts = count_words([_bare_words(text) for text in texts], labels, num_labels=num_labels)
        self._counts: WordCounts = counts
        table = counts.by_label + smoothing
        by_label, overall = table / table.sum(axis=1, keepdims=True), table.sum(axis=0) / table.sum()
        self._log_lift = np.log(by_label / overall)

    def label_confidence(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """Log-probabilities, normalised over the labels."""
        return self._model.predict_log_proba(self._vectorizer.transform(texts))

    def label_affinity(self, texts: Sequence[str]) -> Float[np.ndarray, "texts labels"]:
        """``log sigmoid(sum of log-lifts - offset)``; words it never saw lift nothing."""
        bags = self._counts.bags([_bare_words(text) for text in texts])
        return -np.logaddexp(0, self._offset - bags @ self._log_lift.T)


def _bare_words(text: str) -> list[str]:
    return [bare for word in text.split(" ") if (bare := bare_word(word))]


class LabelScores(NamedTuple):
    """What a teacher says of each masked copy of each text, of the text's own label, as probabilities."""

    confidence: Float[np.ndarray, "texts masks"]
    affinity: Float[np.ndarray, "texts masks"]


def label_scores(
    teacher: LabelTeacher,
    texts: Sequence[Sequence[str]],
    labels: Int[np.ndarray, "texts"],
    masks: Bool[np.ndarray, "texts masks words"],
    *,
    mask_word: str = "",
    texts_at_once: int = 256,
) -> LabelScores:
    """The teacher's probabilities of the given labels on masked copies of texts.

    Args:
        texts: as words; of its own label each text is asked, never of what the teacher would predict.
        masks: True where a word stays; every copy keeps at least one word.
        mask_word: what stands in a dropped word's place; empty: nothing.
        texts_at_once: texts whose copies are shown to the teacher in one call.
    """
    confidence, affinity = np.zeros(masks.shape[:2]), np.zeros(masks.shape[:2])
    for start in range(0, len(texts), texts_at_once):
        rows = range(start, min(start + texts_at_once, len(texts)))
        copies = [_masked_text(texts[row], mask, mask_word) for row in rows for mask in masks[row]]
        asked = np.repeat(labels[rows.start : rows.stop], masks.shape[1])
        for target, judge in ((confidence, teacher.label_confidence), (affinity, teacher.label_affinity)):
            scores = np.exp(judge(copies)[np.arange(len(asked)), asked])
            target[rows.start : rows.stop] = scores.reshape(len(rows), -1)
    return LabelScores(confidence, affinity)


def _masked_text(words: Sequence[str], kept: np.ndarray, mask_word: str) -> str:
    shown = [word if keep else mask_word for word, keep in zip(words, kept, strict=False)]
    return " ".join(word for word in shown if word)
