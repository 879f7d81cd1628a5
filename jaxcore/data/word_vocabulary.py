"""Whole words as ids: how a text splits into words, which words are frequent enough, the number of each."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Text: TypeAlias = str | Sequence[str]
"""A string, or a text that is split into words already."""


def words_of(text: Text) -> list[str]:
    """The words of a text. Of a string: words (apostrophes inside) and punctuation marks, one by one, in lower case."""
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower()) if isinstance(text, str) else list(text)


def string_of(text: Text) -> str:
    """The text as a string, words separated by single blanks."""
    return text if isinstance(text, str) else " ".join(text)


def frequent_words(texts: Iterable[Iterable[str]], *, most: int, min_count: int = 1) -> tuple[str, ...]:
    """The most frequent words of texts, frequent ones first, ties by the alphabet.

    Args:
        texts: as words; case counts.
        most: words at the most, at least 1.
        min_count: rarer words are left out.

    Raises:
        ValueError: most < 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, the number of words that are kept: got {most}")
    counts = Counter(word for text in texts for word in text)
    frequent = [word for word, count in counts.items() if count >= min_count]
    return tuple(sorted(frequent, key=lambda word: (-counts[word], word))[:most])


def number_words(texts: Iterable[Iterable[str]], vocabulary: Sequence[str], *, unknown: int) -> list[list[int]]:
    """The place of every word in the vocabulary; `unknown` for words that it does not have."""
    number = {word: index for index, word in enumerate(vocabulary)}
    return [[number.get(word, unknown) for word in text] for text in texts]
