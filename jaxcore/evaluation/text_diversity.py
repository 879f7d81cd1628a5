"""How much texts repeat themselves: rep-n, diversity, length in words.

    rep-n = 100 (1 - sum_x |different n-grams of x| / sum_x |n-grams of x|)
    diversity = 100 prod_{n = 2, 3, 4} (1 - rep-n / 100)

An n-gram is different within its own text; counts are pooled over the texts, so long texts weigh more. Words are what
white space separates.

Source: Welleck et al. 2020 (rep-n); Su and Collier 2023 (pooling, diversity over n = 2, 3, 4).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

DIVERSITY_LENGTHS = (2, 3, 4)
"""n of the n-grams in diversity."""


class NgramCounts(NamedTuple):
    """Per text: how many different n-grams it has, and how many in all; add up over any set of texts."""

    different: Int[np.ndarray, " texts"]
    total: Int[np.ndarray, " texts"]

    def repetition(self) -> float:
        """rep-n in percent; 0 without any n-gram."""
        total = int(self.total.sum())
        return 100 * (1 - int(self.different.sum()) / total) if total else 0.0


def ngram_counts(texts: Sequence[str], n: int, *, drop_last: bool = False) -> NgramCounts:
    """Different and all n-grams of words of each text.

    Args:
        texts: any strings; one of fewer than n words has none.
        n: 1 or more.
        drop_last: leave out the last n-gram of every text, as the published code does (its loop ends one early).

    Raises:
        ValueError: no texts, a single string, n below 1.
    """
    _check_texts(texts)
    if n < 1:
        raise ValueError(f"n must be 1 or more words: got {n}")
    different, total = [], []
    for text in texts:
        words = text.split()
        count = max(len(words) - n + 1 - drop_last, 0)
        ngrams = [tuple(words[start : start + n]) for start in range(count)]
        different.append(len(set(ngrams)))
        total.append(count)
    return NgramCounts(np.array(different), np.array(total))


def repetition(texts: Sequence[str], n: int, *, drop_last: bool = False) -> float:
    """rep-n of the texts together, in percent. Arguments and errors as for `ngram_counts`."""
    return ngram_counts(texts, n, drop_last=drop_last).repetition()


def diversity(texts: Sequence[str], *, drop_last: bool = False, decimals: int | None = None) -> float:
    """`100 prod_{n=2..4} (1 - rep-n / 100)` in percent; people's texts are at about 93.

    Args:
        texts, drop_last: as for `ngram_counts`.
        decimals: round each rep-n so before multiplying; published numbers have `drop_last=True, decimals=2`.

    Raises:
        ValueError: as `ngram_counts`.
    """
    repeated = [repetition(texts, n, drop_last=drop_last) for n in DIVERSITY_LENGTHS]
    if decimals is not None:
        repeated = [round(value, decimals) for value in repeated]
    return 100 * math.prod(1 - value / 100 for value in repeated)


def mean_length(texts: Sequence[str]) -> float:
    """Mean number of words. ValueError: no texts, a single string."""
    _check_texts(texts)
    return float(np.mean([len(text.split()) for text in texts]))


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a sequence of at least one text: got {texts!r}")
