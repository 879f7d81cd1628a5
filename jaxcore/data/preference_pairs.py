"""Preference pairs: prompts with a response to prefer and one to avoid, from files, from memory, from TruthfulQA.

pairs = read_preference_pairs("pairs.jsonl")                      # fields prompt, chosen, rejected
parts = split_pairs(pairs, num_steer=50, num_validation=100, seed=0)
rows = encode_pairs(parts.steer, tokenizer)                       # arrays, prompts padded left, responses right
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcore.data.records import Field, PathLike, read_record
from jaxcore.data.sources import open_source

_FIELDS = ("prompt", "chosen", "rejected")
_TRUTHFUL_COLUMNS = ("Question", "Best Answer", "Incorrect Answers")
_TRUTHFUL_CHOICE = 301  # what the random stream is for: part of its key
_SPLIT = 302


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """A prompt and two responses to it.

    Raises:
        ValueError: a blank text, equal responses.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        for name in _FIELDS:
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is blank")
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError(f"chosen and rejected are equal ({self.chosen.strip()!r:.60}): a pair needs two responses")


@dataclasses.dataclass(frozen=True)
class PairSplit:
    """Pairs to find a direction with, to choose its strength and layer on, and to judge it on."""

    steer: list[PreferencePair]
    validation: list[PreferencePair]
    test: list[PreferencePair]


def preference_pairs(records: Iterable[Mapping[str, Any]], *, name: str = "list") -> list[PreferencePair]:
    """Pairs of records that are in memory, with the fields prompt, chosen and rejected.

    Raises:
        ValueError: no records; one that is no pair, with its number, counted from 1.
    """
    pairs = []
    for number, values in enumerate(records, start=1):
        try:
            pairs.append(PreferencePair(**read_record(values, [Field(field) for field in _FIELDS])))
        except ValueError as error:
            raise ValueError(f"{name}, record {number}: {error}") from None
    if not pairs:
        raise ValueError(f"{name} has no preference pairs: give at least one")
    return pairs


def read_preference_pairs(
    path: PathLike, *, prompt_field: str = "prompt", chosen_field: str = "chosen", rejected_field: str = "rejected"
) -> list[PreferencePair]:
    """Pairs of a .jsonl, .csv, .tsv or .parquet file, or of ``tfds:NAME/SPLIT``. TruthfulQA.csv: `read_truthfulqa`.

    Raises:
        ValueError: no such file, no records, a missing or blank field (with its line), equal responses (with the
            record's number).
    """
    columns = (prompt_field, chosen_field, rejected_field)
    fields = [Field(name, column=column) for name, column in zip(_FIELDS, columns, strict=True)]
    options = {} if str(path).startswith("tfds:") else {"max_malformed_rate": 0.0}
    source = open_source(path, fields=fields, **options)
    return preference_pairs((source[index] for index in range(len(source))), name=str(path))


def is_truthfulqa(path: PathLike) -> bool:
    """Whether this is a CSV file with TruthfulQA's columns."""
    file = pathlib.Path(path)
    if file.suffix.lower() != ".csv" or not file.is_file():
        return False
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
        return set(_TRUTHFUL_COLUMNS) <= set(next(csv.reader(lines), []))


def read_truthfulqa(path: PathLike, *, seed: int = 0, template: str = "Q: {question}\nA:") -> list[PreferencePair]:
    """TruthfulQA.csv (Lin et al. 2022): the best answer against one of the incorrect ones, drawn by the seed.

    Args:
        path: the file as published: columns Question, Best Answer, Incorrect Answers (separated by semicolons).
        seed: of the draw; a question's draw does not depend on the others.
        template: of the prompt.

    Raises:
        ValueError: no such file, a missing column, a question without a best or without an incorrect answer (with its
            line).
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"no file at {file}; give the path of TruthfulQA.csv")
    if "{question}" not in template:
        raise ValueError(f"template must hold {{question}}: got {template!r}")
    pairs = []
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if missing := [column for column in _TRUTHFUL_COLUMNS if column not in (rows.fieldnames or [])]:
            raise ValueError(f"{file}: no column {missing[0]!r} in the header {rows.fieldnames}")
        for number, row in enumerate(rows):
            question, best, incorrect = ((row[column] or "").strip() for column in _TRUTHFUL_COLUMNS)
            answers = [answer.strip() for answer in incorrect.split(";") if answer.strip() not in ("", best)]
            if not (question and best and answers):
                raise ValueError(f"{file}:{rows.line_num}: a question needs a best and an incorrect answer")
            drawn = np.random.default_rng([seed, _TRUTHFUL_CHOICE, number]).integers(len(answers))
            pairs.append(PreferencePair(template.replace("{question}", question), best, answers[drawn]))
    if not pairs:
        raise ValueError(f"{file} has no questions")
    return pairs


def split_pairs(
    pairs: Sequence[PreferencePair], *, num_steer: int, num_validation: int, num_test: int | None = None, seed: int = 0
) -> PairSplit:
    """Disjoint parts in the seed's order; no prompt is in two of them.

    A pair whose prompt an earlier part has is left out of the later ones.

    Args:
        num_test: None = all that remain.

    Raises:
        ValueError: sizes below 1 (validation: below 0), or fewer pairs than asked for.
    """
    if num_steer < 1 or num_validation < 0 or (num_test is not None and num_test < 1):
        raise ValueError(
            f"num_steer and num_test must be at least 1, num_validation at least 0: got {num_steer}, {num_test} and "
            f"{num_validation}"
        )
    waiting = [pairs[index] for index in np.random.default_rng([seed, _SPLIT]).permutation(len(pairs))]
    parts: list[list[PreferencePair]] = []
    for size in (num_steer, num_validation, num_test):
        part, waiting = (waiting, []) if size is None else (waiting[:size], waiting[size:])
        if len(part) < (1 if size is None else size):
            wanted = f"{num_steer} + {num_validation} + {num_test or 'at least 1'}"
            raise ValueError(f"{len(pairs)} pairs are too few for {wanted} pairs of different prompts; ask for fewer")
        used = {pair.prompt for pair in part}
        waiting = [pair for pair in waiting if pair.prompt not in used]
        parts.append(part)
    return PairSplit(*parts)


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    *,
    prompt_length: int | None = None,
    response_length: int | None = None,
) -> dict[str, Int[np.ndarray, "pairs time"]]:
    """Token ids of prompts (padded on the left) and of responses (a space before each, padded on the right).

    Args:
        tokenizer: of transformers; prompts get the special tokens it begins a text with, responses none.
        prompt_length, response_length: tokens that rows are padded to; None = those of the longest.

    Returns:
        ``prompt_ids`` and ``special`` (1 at padding and special tokens) [pairs, width], and the fields of
        `jaxcore.attribution.preference_score.ResponsePairs`.

    Raises:
        ValueError: no pairs, a text without tokens, one that is longer than asked for.
    """
    if not pairs:
        raise ValueError("no preference pairs to encode: give at least one")
    prompts = [_prompt_tokens(tokenizer, pair.prompt) for pair in pairs]
    sides = {
        side: [tokenizer(" " + getattr(pair, side).strip(), add_special_tokens=False)["input_ids"] for pair in pairs]
        for side in ("chosen", "rejected")
    }
    width = _fitting(prompts, prompt_length, "prompt")
    length = max(_fitting(rows, response_length, side) for side, rows in sides.items())
    special = set(tokenizer.all_special_ids)
    prompt_ids, prompt_mask = _padded(prompts, width, left=True)
    arrays = {
        "prompt_ids": prompt_ids,
        "special": 1 - prompt_mask * ~np.isin(prompt_ids, sorted(special)),
        "prompt_mask": prompt_mask,
    }
    for side, rows in sides.items():
        arrays[side], arrays[f"{side}_mask"] = _padded(rows, length, left=False)
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def _prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt, without what a tokenizer puts behind a text: the response follows."""
    ids = tokenizer(prompt)["input_ids"]
    while ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) and len(ids) > 1:
        ids = ids[:-1]
    return ids


def _fitting(rows: Sequence[Sequence[int]], length: int | None, name: str) -> int:
    """The length to pad to; ValueError for an empty row or one beyond it."""
    for number, row in enumerate(rows, start=1):
        if not row:
            raise ValueError(f"pair {number}: the {name} has no token")
        if length is not None and len(row) > length:
            raise ValueError(f"pair {number}: the {name} has {len(row)} tokens, but only {length} fit")
    return length or max(map(len, rows))


def _padded(rows: Sequence[Sequence[int]], width: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = np.zeros((2, len(rows), width), np.int32)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask
