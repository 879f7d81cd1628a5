"""Texts as bags of hashed words: a stand-in for sentence embeddings where no encoder is at hand."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcore.data.word_vocabulary import words_of


def hashed_word_counts(texts: Sequence[str], *, dim: int = 1024) -> Float[np.ndarray, "texts dim"]:
    """Unit vectors of word counts, each word at a place that its hash says: texts alike share words, nothing more.

    ``v[crc32(w) mod dim] += 1`` over the words and numbers of the text in lower case, then ``v / |v|``; a text without
    words is zero. The same on every machine.

    Raises:
        ValueError: dim < 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1: got {dim}")
    vectors = np.zeros((len(texts), dim), np.float32)
    for row, text in enumerate(texts):
        for word in words_of(text):
            if word[0].isalnum():
                vectors[row, zlib.crc32(word.encode()) % dim] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
