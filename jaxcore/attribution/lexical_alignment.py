"""Words of one text found in another, in order, by edit distance: which part of a sentence says what a fact says."""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence

from jaxcore.attribution.text_spans import Offsets, merge_offsets

_WORD = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # U.S.
    r"|\w+(?=n['’]t\b)|n['’]t\b"  # do n't
    r"|['’](?:s|m|d|ll|re|ve)\b"
    r"|\w+(?:[-.,:/&]\w+)*"  # same-sex, 1,000, 10:13
    r"|\.\.\.|--|[^\w\s]",
    re.IGNORECASE,
)

STOP_WORDS = frozenset((
    "a", "about", "above", "after", "again", "against", "all", "am", "an", "and", "any", "are", "as", "at", "be",
    "because", "been", "before", "being", "below", "between", "both", "but", "by", "can", "did", "do", "does",
    "doing", "down", "during", "each", "few", "for", "from", "further", "had", "has", "have", "having", "he", "her",
    "here", "hers", "herself", "him", "himself", "his", "how", "i", "if", "in", "into", "is", "it", "its", "itself",
    "just", "me", "more", "most", "my", "myself", "n't", "no", "nor", "not", "now", "of", "off", "on", "once",
    "only", "or", "other", "our", "ours", "ourselves", "out", "over", "own", "same", "she", "should", "so", "some",
    "such", "t", "than", "that", "the", "their", "theirs", "them", "themselves", "then", "there", "these", "they",
    "this", "those", "through", "to", "too", "under", "until", "up", "very", "was", "we", "were", "what", "when",
    "where", "which", "while", "who", "whom", "why", "will", "with", "would", "you", "your", "yours", "yourself",
    "yourselves", "'s", "'m", "'d", "'ll", "'re", "'ve",
))  # fmt: skip
"""Words without content of their own; with the parts that contractions are cut into."""


def words_with_offsets(text: str) -> list[tuple[str, int, int]]:
    """Words and punctuation marks with their places; contractions are cut ("Ann's": "Ann", "'s")."""
    return [(match.group(), *match.span()) for match in _WORD.finditer(text)]


_IRREGULAR = {
    **dict.fromkeys(("am", "is", "are", "was", "were", "been", "being"), "be"),
    **dict.fromkeys(("has", "had", "having"), "have"),
    **dict.fromkeys(("does", "did", "done", "doing"), "do"),
}


def is_content(word: str) -> bool:
    """Whether a word says something by itself: no stop word, no punctuation."""
    return any(map(str.isalnum, word)) and word.lower().replace("’", "'") not in STOP_WORDS


def strip_ending(word: str) -> str:
    """A lower-cased word without its common English endings, so that forms of one word compare equal.

    Coarser than a lemma, and without a dictionary: irregular forms but those of be, have and do stay apart.
    """
    word = word.lower().replace("’", "'")
    word = _IRREGULAR.get(word, word)
    while (shorter := _without_ending(word)) != word:
        word = shorter
    return word


def _without_ending(word: str) -> str:
    for ending, replacement in (
        ("ies", "y"), ("ied", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")
    ):  # fmt: skip
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)] + replacement
    return word


def word_edit_align(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (i, j) of equal words on a cheapest edit path from `source` to `target`.

    Levenshtein distance over words: leaving out a source word, leaving out a target word and replacing a word cost 1.
    Where several last steps are as cheap, the first of (leave out source word, leave out target word, match or replace)
    is taken.

    Source: LAQuer, lexical alignment (laquer.md).
    """
    costs = [list(range(len(target) + 1))]
    for i, word in enumerate(source):
        row = [i + 1]
        for j, other in enumerate(target):
            row.append(min(costs[i][j + 1] + 1, row[j] + 1, costs[i][j] + (word != other)))
        costs.append(row)
    pairs = []
    i, j = len(source), len(target)
    while i and j:
        if costs[i][j] == costs[i - 1][j] + 1:
            i -= 1
        elif costs[i][j] == costs[i][j - 1] + 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            if source[i] == target[j]:
                pairs.append((i, j))
    return pairs[::-1]


@dataclasses.dataclass(frozen=True)
class LexicalAlignment:
    """The words of a fact, and where the text has each."""

    words: tuple[str, ...]
    places: tuple[Offsets | None, ...]
    """In the text; None for a word that it does not have."""

    def spans(self) -> list[Offsets]:
        """What the text says of the fact: the places, joined over single characters."""
        return merge_offsets([place for place in self.places if place is not None], gap=1)

    def missing_content(self) -> list[str]:
        """Content words that the text does not have."""
        pairs = zip(self.words, self.places, strict=True)
        return [word for word, place in pairs if place is None and is_content(word)]


def lexical_align(
    fact: str,
    text: str,
    *,
    normalise: Callable[[str], str] = strip_ending,
    stop_words: Collection[str] = STOP_WORDS,
) -> LexicalAlignment:
    """Find the words of a fact in a text, whatever their order.

    `word_edit_align` keeps the order, so what it leaves is aligned again by itself, until nothing more is found; then
    once more without stop words.

    Args:
        normalise: makes forms of a word equal; a lemmatiser may take the place of `strip_ending`.
        stop_words: lower case.

    Source: LAQuer, lexical alignment (laquer.md). Words are cut once: a second cut, as there, may differ.
    """
    wanted, there = words_with_offsets(fact), words_with_offsets(text)
    forms, others = [normalise(word) for word, *_ in wanted], [normalise(word) for word, *_ in there]
    places: list[Offsets | None] = [None] * len(wanted)
    content_only = False
    while True:
        left = [index for index, place in enumerate(places) if place is None]
        if content_only:
            left = [index for index in left if wanted[index][0].lower() not in stop_words]
        found = word_edit_align([forms[index] for index in left], others)
        for i, j in found:
            places[left[i]] = there[j][1:]
        if not found and content_only:
            return LexicalAlignment(tuple(word for word, *_ in wanted), tuple(places))
        content_only = not found
