"""Word vectors as FastText and GloVe publish them: files with a word and its numbers per line."""

import gzip
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

Vectors = Mapping[str, Float[np.ndarray, " dim"]]


def read_word_vectors(path: str | os.PathLike[str], words: Collection[str], *, dim: int) -> dict[str, np.ndarray]:
    """The vectors of these words, float32, as far as the file has them; of a word that it has twice, the first.

    A first line of two numbers (FastText's count of words and dimension) is skipped.

    Args:
        path: a text file, also .gz; read line by line.
        words: those wanted; everything else is passed over.
        dim: numbers per word.

    Raises:
        ValueError: no file there, a line of another number of numbers (names it), or none of the words is in it.
    """
    file, wanted = pathlib.Path(path).expanduser(), set(words)
    if not file.is_file():
        raise ValueError(f"no file of word vectors at {file} (from {pathlib.Path.cwd()}): check the path")
    found: dict[str, np.ndarray] = {}
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip().split(" ")
            if number == 1 and len(fields) == 2:
                continue
            word = " ".join(fields[:-dim])  # some files have blanks in words
            if len(fields) <= dim or (len(fields) == dim + 1) != (" " not in word):
                raise ValueError(f"{file}:{number}: expected a word and {dim} numbers, got {len(fields)} fields")
            if word in wanted and word not in found:
                try:
                    found[word] = np.array(fields[-dim:], np.float32)
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: expected a word and {dim} numbers ({error})") from error
    if not found:
        raise ValueError(f"{file} has a vector for none of the {len(wanted)} words: is it of this language?")
    return found


def word_table(
    words: Sequence[str], vectors: Vectors, *, num_rows: int, rng: np.random.Generator
) -> Float[np.ndarray, "num_rows dim"]:
    """A table of embeddings, float32: row i is the vector of ``words[i]``.

    Rows of words without a vector, and those beyond the words, are drawn from a normal distribution with the mean and
    the standard deviation of all numbers in the others (as AllenNLP does).

    Raises:
        ValueError: more words than rows, or no word with a vector.
    """
    if len(words) > num_rows:
        raise ValueError(f"{len(words)} words do not fit into a table of {num_rows} rows")
    rows = {number: vectors[word] for number, word in enumerate(words) if word in vectors}
    if not rows:
        raise ValueError(f"none of the {len(words)} words has a vector")
    known = np.stack(list(rows.values()))
    table = rng.normal(known.mean(), known.std(), (num_rows, known.shape[1])).astype(np.float32)
    table[list(rows)] = known
    return table
