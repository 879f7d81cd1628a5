"""Sentiment treebanks: sentences as bracketed trees whose every phrase carries a grade (Socher et al. 2013).

    (3 (2 The) (4 (4 lovely) (2 film)))

One tree per line. A node is ``(grade children...)`` or, at a leaf, ``(grade token)``; grades run from 0, very negative,
to 4, very positive, with 2 neutral.
"""

import os
import pathlib
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcore.data.records import RecordScan, decode_text

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
NEUTRAL = 2
HIGHEST = 4


class Phrase(NamedTuple):
    """A node of a tree: the words [start, end) and their grade."""

    start: int
    end: int
    grade: int


class SentimentTree(NamedTuple):
    """A sentence with the grades of its phrases; the last phrase is the whole sentence."""

    words: tuple[str, ...]
    phrases: tuple[Phrase, ...]

    @property
    def grade(self) -> int:
        return self.phrases[-1].grade


class SentimentSentences(NamedTuple):
    """Sentences, and whether each is positive (1) or negative (0)."""

    words: tuple[tuple[str, ...], ...]
    labels: Int[np.ndarray, "sentences"]


def parse_tree(line: str) -> SentimentTree:
    """The tree of one line; bracket escapes (-LRB- and the like) become the brackets they stand for.

    Raises:
        ValueError: brackets that do not match, a grade that is not 0 to 4, a node without grade or content.
    """
    words: list[str] = []
    phrases: list[Phrase] = []
    opened: list[tuple[int, int]] = []  # first word and grade of every phrase that is still open
    tokens = _TOKEN.findall(line)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token == "(":
            if phrases and not opened:
                raise ValueError("text after the tree's last bracket")
            grade = tokens[position + 1] if position + 1 < len(tokens) else ""
            if not (grade.isdecimal() and int(grade) <= HIGHEST):
                raise ValueError(f"expected a grade from 0 to {HIGHEST} after '(', found {grade!r}")
            opened.append((len(words), int(grade)))
            position += 1
        elif token == ")":
            if not opened or opened[-1][0] == len(words):
                raise ValueError("a ')' without its '('" if not opened else "a phrase without words")
            start, number = opened.pop()
            phrases.append(Phrase(start, len(words), number))
        elif not opened:
            raise ValueError(f"the word {token!r} stands outside of brackets")
        else:
            words.append(_ESCAPES.get(token, token))
        position += 1
    if opened or not phrases:
        raise ValueError(f"{len(opened)} brackets are never closed" if opened else "no tree")
    return SentimentTree(tuple(words), tuple(phrases))


def read_sentiment_trees(
    path: str | os.PathLike[str], *, max_malformed_rate: float = 0.01
) -> tuple[SentimentTree, ...]:
    """All trees of a file, one per line; blank lines are skipped, malformed ones logged and left out.

    Raises:
        ValueError: no file, not UTF-8, no trees, or more malformed lines than `max_malformed_rate` allows.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no file at {path} (from {pathlib.Path.cwd()}); check the path")
    try:
        text = decode_text(path.read_bytes()).removeprefix("\ufeff")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    scan, trees = RecordScan(str(path), max_malformed_rate), []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            trees.append(parse_tree(line))
            scan.accept()
        except ValueError as error:
            scan.reject(path, number, error)
    scan.finish()
    return tuple(trees)


def binary_sentences(trees: tuple[SentimentTree, ...]) -> SentimentSentences:
    """The two-class task: a root grade above 2 is positive, below 2 negative; neutral sentences are left out."""
    kept = [tree for tree in trees if tree.grade != NEUTRAL]
    labels = np.array([tree.grade > NEUTRAL for tree in kept], np.int32)
    return SentimentSentences(tuple(tree.words for tree in kept), labels)
