"""Simulatability: can a reader who sees an explanation guess what the model predicted (Doshi-Velez and Kim 2017)?

The reader here is simulated: multinomial naive Bayes, fitted on texts with their *true* labels that the model was not
trained on. It sees the words that an explanation shows, and guesses the model's prediction. It is no human: it reads
words one by one, so a whole text can serve it worse than a snippet.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


class NaiveBayesReader(NamedTuple):
    """Multinomial naive Bayes: log prior [classes] and log p(word | class) [classes, vocab]."""

    log_prior: Float[np.ndarray, " classes"]
    log_likelihood: Float[np.ndarray, "classes vocab"]

    def guess(
        self, ids: Int[np.ndarray, "n length"], weights: Num[np.ndarray, "n length"] | Bool[np.ndarray, "n length"]
    ) -> Int[np.ndarray, " n"]:
        """``argmax_c log p(c) + sum_t w_t log p(word_t | c)``: weights 1 for words shown, 0 for words not."""
        if np.shape(ids) != np.shape(weights):
            raise ValueError(f"a weight is needed for each word: got {np.shape(ids)} ids, {np.shape(weights)} weights")
        evidence = np.einsum("nt,cnt->nc", weights.astype(np.float64), self.log_likelihood[:, ids])
        return np.argmax(self.log_prior + evidence, axis=1)

    def association(self) -> Float[np.ndarray, "classes vocab"]:
        """``log p(w | c) - log mean_{c' != c} p(w | c')``: how much more a word goes with a class than with others."""
        likelihood = np.exp(self.log_likelihood)
        others = (likelihood.sum(0) - likelihood) / (len(likelihood) - 1)
        return np.log(likelihood) - np.log(others)


def fit_reader(
    ids: Int[np.ndarray, "n length"],
    counted: Int[np.ndarray, "n length"] | Bool[np.ndarray, "n length"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    vocab_size: int,
    smoothing: float = 1.0,
) -> NaiveBayesReader:
    """A reader with the shares of words and of classes in labelled texts.

        p(w | c) = (n(w, c) + smoothing) / sum_w' (n(w', c) + smoothing),   p(c) likewise of texts

    Args:
        ids: words of each text, below `vocab_size`.
        counted: which of them count (no padding, no special tokens).
        labels: true classes, 0 .. num_classes - 1.
        smoothing: Laplace's, above 0.

    Raises:
        ValueError: shapes that differ, ids or labels out of range, smoothing <= 0, fewer than two classes.
    """
    ids, labels = np.asarray(ids), np.asarray(labels)
    if ids.ndim != 2 or ids.shape != np.shape(counted) or labels.shape != ids.shape[:1]:
        raise ValueError(
            f"ids and counted must be [texts, length] and labels [texts]: got {ids.shape}, {np.shape(counted)} and "
            f"{labels.shape}"
        )
    if num_classes < 2 or not smoothing > 0:
        raise ValueError(f"num_classes must be >= 2 and smoothing > 0: got {num_classes} and {smoothing}")
    for name, values, limit in (("ids", ids, vocab_size), ("labels", labels, num_classes)):
        if values.size and not (values.min() >= 0 and values.max() < limit):
            raise ValueError(f"{name} must be in [0, {limit}): got {values.min()} to {values.max()}")
    counts = np.zeros((num_classes, vocab_size))
    rows, places = np.nonzero(counted)
    np.add.at(counts, (labels[rows], ids[rows, places]), 1)
    counts += smoothing
    priors = np.bincount(labels, minlength=num_classes) + smoothing
    return NaiveBayesReader(np.log(priors / priors.sum()), np.log(counts / counts.sum(1, keepdims=True)))
