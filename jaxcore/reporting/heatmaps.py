"""Documents coloured by the attribution of their tokens: the block types, and their preparation for HTML."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxcore.reporting.tables import format_decimals

Subwords = Literal["words", "wordpiece", "bytes", "sentencepiece"]

_STRONGEST_SHOWN = 10
_SIGNIFICANT_DIGITS = 3
_SPECIAL = re.compile(r"\[[A-Z][A-Z0-9_]*\]|<[|/]?[A-Za-z0-9_]+[|]?>")
_JOINS_PREVIOUS = re.compile(r"[.,;:!?)\]}%…”’]+")
_JOINS_NEXT = re.compile(r"[(\[{“‘]+")
_CONTRACTIONS = frozenset(("s", "t", "d", "m", "re", "ve", "ll"))
_NEW_PART = "‖"
_VISIBLE_SPACE = {"\n": "⏎", "\r": "⏎", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True)
class TokenHeatmap:
    """A document whose tokens are coloured by signed `values`: orange for positive, blue for negative.

    Subword marks ("##ing", "Ġword", "▁word") are read as joins. The colour is linear in value / limit and
    saturates at the limit; a value that is not a number is hatched.

    Args:
        tokens: the T tokens as the tokenizer gives them.
        values: T attributions, any unit.
        caption: what is shown, for example author, score, completeness error.
        marked: T flags, underlined: the tokens known to matter (`marked_label` names them).
        limit: value of full colour, > 0; by default the largest finite magnitude in `values`.
        breaks: numbers of tokens that begin a new part of the document (the second text of a pair): a line of its own,
            behind a mark.

    Raises:
        ValueError: no tokens, lengths that differ, a limit that is not positive and finite, a break that is no token.
    """

    tokens: Sequence[str]
    values: ArrayLike
    caption: str = ""
    marked: Sequence[bool] | None = None
    limit: float | None = None
    positive_label: str = "speaks for"
    negative_label: str = "speaks against"
    marked_label: str = "true marker"
    breaks: Sequence[int] = ()

    def __post_init__(self) -> None:
        if isinstance(self.tokens, str) or len(self.tokens) == 0:
            raise ValueError(f"tokens must be a non-empty sequence of strings, got {self.tokens!r:.60}")
        shape = np.shape(self.values)
        if shape != (len(self.tokens),):
            raise ValueError(f"{len(self.tokens)} tokens but values of shape {shape}: give one value for each token")
        if self.marked is not None and len(self.marked) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.marked)} entries in marked: give one each")
        if any(not 0 <= place < len(self.tokens) for place in self.breaks):
            raise ValueError(
                f"breaks must be numbers of the {len(self.tokens)} tokens, from 0: got {list(self.breaks)}"
            )
        _check_limit(self.limit)


@dataclass(frozen=True)
class TokenHeatmaps:
    """Several heatmaps under one caption; with `limit`, all share that scale and can be compared by colour.

    Raises:
        ValueError: no heatmaps, an entry that is no `TokenHeatmap`, a limit that is not positive and finite.
    """

    heatmaps: Sequence[TokenHeatmap]
    caption: str = ""
    limit: float | None = None

    def __post_init__(self) -> None:
        if len(self.heatmaps) == 0:
            raise ValueError("heatmaps is empty: give at least one TokenHeatmap")
        for i, heatmap in enumerate(self.heatmaps):
            if not isinstance(heatmap, TokenHeatmap):
                raise ValueError(f"heatmaps[{i}] is a {type(heatmap).__name__}, expected a TokenHeatmap")
        _check_limit(self.limit)


@dataclass(frozen=True)
class TokenCell:
    """One token ready to draw: its text, what stands before it, its colour and what its tooltip says."""

    text: str
    before: str
    """ "" within a word, " " between words, newline at a line break of the document."""
    kind: str
    """"positive", "negative", "zero" or "nan"."""
    strength: str
    """Share of the full colour, "0" to "1"."""
    title: str
    marked: bool
    special: bool


@dataclass(frozen=True)
class HeatmapView:
    """A heatmap prepared for the template; every field is plain text that the template escapes."""

    cells: tuple[TokenCell, ...]
    caption: str
    summary: str
    low: str
    high: str
    negative_label: str
    positive_label: str
    marked_label: str
    has_marked: bool
    has_nan: bool
    strongest: tuple[tuple[str, str, bool], ...]
    """Tokens of the largest magnitudes: token, value, marked."""


def heatmap_view(heatmap: TokenHeatmap, *, limit: float | None = None) -> HeatmapView:
    """`heatmap` prepared for the template; `limit` overrides its own (used for a scale shared by several)."""
    values = np.asarray(heatmap.values, dtype=np.float64)
    marked = [False] * len(values) if heatmap.marked is None else [bool(mark) for mark in heatmap.marked]
    finite = np.abs(values[np.isfinite(values)])
    limit = limit or heatmap.limit or float(finite.max(initial=0.0))
    decimals = _decimals_at(limit)
    texts = [_value_text(value, decimals) for value in values.tolist()]
    shown = display_tokens(heatmap.tokens)
    cells = tuple(
        TokenCell(
            text=text,
            before=before,
            kind=_kind(value),
            strength=_strength(value, limit),
            title=f"{token}: {number}" + (f" ({heatmap.marked_label})" if mark else ""),
            marked=mark,
            special=bool(_SPECIAL.fullmatch(token)),
        )
        for token, (text, before), value, number, mark in zip(
            heatmap.tokens, shown, values.tolist(), texts, marked, strict=True
        )
    )
    order = [i for i in np.argsort(-np.abs(values), kind="stable").tolist() if not math.isnan(values[i])]
    strongest = tuple((heatmap.tokens[i], texts[i], marked[i]) for i in order[:_STRONGEST_SHOWN] if values[i] != 0)
    clipped = bool((finite > limit).any()) or bool(np.isinf(values).any())
    return HeatmapView(
        cells=tuple(_with_breaks(cells, heatmap.breaks)),
        caption=heatmap.caption,
        summary=f"{len(cells)} tokens coloured by attribution",
        low=("≤ " if clipped else "") + format_decimals(-limit, decimals),
        high=("≥ " if clipped else "") + format_decimals(limit, decimals, signed=True),
        negative_label=heatmap.negative_label,
        positive_label=heatmap.positive_label,
        marked_label=heatmap.marked_label,
        has_marked=any(marked),
        has_nan=bool(np.isnan(values).any()),
        strongest=strongest,
    )


def _with_breaks(cells: Sequence[TokenCell], breaks: Sequence[int]) -> Iterator[TokenCell]:
    """The cells, and before each part a mark on a new line."""
    for number, cell in enumerate(cells):
        if number in breaks:
            yield TokenCell(_NEW_PART, "\n", "zero", "0", "here the next text begins", marked=False, special=True)
            cell = dataclasses.replace(cell, before=" ")
        yield cell


def subword_convention(tokens: Sequence[str]) -> Subwords:
    """How `tokens` mark subwords: "##ing" continues a word, "Ġword" and "▁word" begin one, else words."""
    if any(token.startswith("Ġ") or token.startswith("Ċ") for token in tokens):
        return "bytes"
    if any(token.startswith("▁") for token in tokens):
        return "sentencepiece"
    if any(token.startswith("##") and len(token) > 2 for token in tokens):
        return "wordpiece"
    return "words"


def display_tokens(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """For each token the text a reader should see and what stands before it ("", " " or a newline).

    The texts of one word touch, byte-level tokens are decoded to the characters they stand for, and tokens
    that are white space or nothing are made visible.
    """
    convention = subword_convention(tokens)
    shown: list[tuple[str, str]] = []
    after_break = True
    for i, token in enumerate(tokens):
        previous = tokens[i - 1] if i else ""
        special = bool(_SPECIAL.fullmatch(token))
        text, begins_word = (token, True) if special else _read_token(token, convention)
        if convention in ("words", "wordpiece") and not special:
            begins_word = begins_word and not _joined(previous, text, tokens[i + 1 : i + 2])
        if _SPECIAL.fullmatch(previous):
            begins_word = True
        before = "" if i == 0 else "\n" if after_break else " " if begins_word else ""
        after_break = text.endswith("\n")
        shown.append((_visible(text), before))
    return shown


def word_groups(tokens: Sequence[str]) -> list[int]:
    """The number of the word that each token belongs to, counted from 0: subwords of one word share it.

    Special tokens and marks (tokens without a letter or digit) are words of their own, also where the convention lets
    them touch the word before: "Ġmovie" "." are two.
    """
    convention = subword_convention(tokens)
    groups: list[int] = []
    alone = True  # nothing joins what stands before: the beginning, a special token or a mark
    for token in tokens:
        special = bool(_SPECIAL.fullmatch(token))
        text, begins_word = (token, True) if special else _read_token(token, convention)
        mark = not any(character.isalnum() or character == "‹" for character in text)
        groups.append((groups[-1] if groups else -1) + (alone or begins_word or mark or special))
        alone = special or mark
    return groups


def _read_token(token: str, convention: Subwords) -> tuple[str, bool]:
    """The text of a token, and whether it begins a word."""
    if convention == "wordpiece" and token.startswith("##") and len(token) > 2:
        return token[2:], False
    if convention in ("words", "wordpiece"):
        return token, True
    text = _decode_bytes(token) if convention == "bytes" else token.replace("▁", " ")
    return (text[1:], True) if len(text) > 1 and text[0] == " " else (text, False)


def _joined(previous: str, token: str, following: Sequence[str]) -> bool:
    """Whether a token of text split at punctuation touches the one before it, as in "(well, don't)"."""
    if _JOINS_PREVIOUS.fullmatch(token) or _JOINS_NEXT.fullmatch(previous):
        return True
    if token == "'":
        return previous.removeprefix("##").isalpha() and bool(following) and following[0].lower() in _CONTRACTIONS
    return previous in ("'", "’") and token.lower() in _CONTRACTIONS


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Bytes that print as Latin-1 characters stand for themselves; the others are numbered from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def _decode_bytes(token: str) -> str:
    table = _byte_of_character()
    if any(character not in table for character in token):
        return token
    raw = bytes(table[character] for character in token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        # A piece of a character that the tokenizer has split: no text of its own, so its bytes.
        return f"‹{raw.hex(' ')}›"


def _visible(text: str) -> str:
    if text == "":
        return "∅"
    if text.isspace():
        return "".join(_VISIBLE_SPACE.get(character, "␣") for character in text)
    return text


def _decimals_at(limit: float) -> int:
    """Decimals that give a value at the limit three significant digits."""
    if limit <= 0 or not math.isfinite(limit):
        return _SIGNIFICANT_DIGITS
    return min(8, max(0, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(limit))))


def _value_text(value: float, decimals: int) -> str:
    return "not a number" if math.isnan(value) else format_decimals(value, decimals, signed=True)


def _kind(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "positive" if value > 0 else "negative" if value < 0 else "zero"


def _strength(value: float, limit: float) -> str:
    if math.isnan(value) or value == 0 or limit == 0:
        return "1" if math.isinf(value) else "0"
    return f"{min(1.0, abs(value) / limit):.2f}".rstrip("0").rstrip(".")


def _check_limit(limit: float | None) -> None:
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be a positive finite number or None, got {limit}")
