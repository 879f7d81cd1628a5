"""Which words are typical of a label: counts, lexicons by lift, the attack that inserts another label's keywords."""

import dataclasses
import functools
import string
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

Words = Sequence[str]
_PUNCTUATION = string.punctuation + "’‘“”…–—£€"


@dataclasses.dataclass(frozen=True)
class WordCounts:
    """How often each word occurs in the texts of each label."""

    words: tuple[str, ...]
    by_label: Float[np.ndarray, "labels words"]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """The column of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def bags(self, texts: Sequence[Words]) -> scipy.sparse.csr_array:
        """Counts [texts, words] of the known words."""
        rows, columns = [], []
        for number, words in enumerate(texts):
            known = [self.index[word] for word in words if word in self.index]
            rows += [number] * len(known)
            columns += known
        return scipy.sparse.csr_array(
            (np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(self.words)), dtype=np.float64
        )


def bare_word(word: str) -> str:
    """The word in lower case, without the punctuation around it: what lexicons and classical teachers count."""
    return word.lower().strip(_PUNCTUATION)


def count_words(texts: Sequence[Words], labels: Int[np.ndarray, "texts"], *, num_labels: int) -> WordCounts:
    """The counts of every word of the texts, words in alphabetical order."""
    counts = WordCounts(tuple(sorted({word for words in texts for word in words})), np.zeros((0, 0)))
    bags = counts.bags(texts)
    of_label = scipy.sparse.csr_array(
        (np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(num_labels, len(labels))
    )
    return WordCounts(counts.words, np.asarray((of_label @ bags).todense()))


def keyword_lexicon(counts: WordCounts, *, num_keywords: int, min_count: int = 20) -> list[list[str]]:
    """The strongest keywords of each label, by ``p(w|y) / p(w) * sqrt(n(w, y))`` (lift times root frequency).

    Args:
        num_keywords: at most so many per label; words that never occur in the label are none.
        min_count: words rarer than this over all labels are left out.

    Raises:
        ValueError: no word is frequent enough.

    Source: cap.md, experiment B.
    """
    total = counts.by_label.sum(axis=0)
    frequent = np.flatnonzero(total >= min_count)
    if not frequent.size:
        raise ValueError(f"no word occurs {min_count} times: lower min_count, or give more texts")
    table = counts.by_label[:, frequent]
    share = table / np.maximum(counts.by_label.sum(axis=1, keepdims=True), 1)
    strength = share / (total[frequent] / total.sum()) * np.sqrt(table)
    order = np.argsort(-strength, axis=1, kind="stable")[:, :num_keywords]
    return [[counts.words[frequent[w]] for w in row if table[label, w] > 0] for label, row in enumerate(order)]


def keyword_attack(
    texts: Sequence[Words],
    confusable: Int[np.ndarray, "texts"],
    lexicon: Sequence[Words],
    rng: np.random.Generator,
    *,
    num_inserted: int = 2,
) -> list[list[str]]:
    """Texts with keywords of a wrong label inserted at random places; their own label stays what it was.

    Args:
        confusable: the wrong label of each text.
        lexicon: keywords per label, of which `num_inserted` different ones are drawn.

    Raises:
        ValueError: a label with too few keywords.
    """
    attacked = []
    for words, label in zip(texts, confusable, strict=True):
        if len(lexicon[label]) < num_inserted:
            raise ValueError(f"label {label} has {len(lexicon[label])} keywords, fewer than {num_inserted} to insert")
        changed = list(words)
        for choice in rng.choice(len(lexicon[label]), num_inserted, replace=False):
            changed.insert(int(rng.integers(len(changed) + 1)), lexicon[label][choice])
        attacked.append(changed)
    return attacked
