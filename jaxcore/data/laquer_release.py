"""The example runs published with LAQuer: simulated facts with their offsets, and a model's quotations with theirs.

A run is a folder of `results/test` (MDS/ALCE, MDS/E2E, LFQA/ALCE, LFQA/E2E) with `results.json`, `config.json`,
`factscore.csv`, `llm_responses.csv` and `llm_results.csv`. They serve to compare arithmetic, not the paper's tables:
each holds one instance.
"""

import ast
import collections
import csv
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from jaxcore.attribution.quoted_sources import CandidateText
from jaxcore.attribution.text_spans import Offsets, Span
from jaxcore.data.highlight_queries import CoarseRow

RUNS = ("MDS/ALCE", "MDS/E2E", "LFQA/ALCE", "LFQA/E2E")


@dataclasses.dataclass(frozen=True)
class ReleasedFact:
    """A fact of an output's sentence, and where the release found it there."""

    number: int
    fact: str
    sentence: str
    local: tuple[Offsets, ...]
    """Of the sentence."""
    output: tuple[Offsets, ...]
    """Of the whole output."""
    sampled: bool


@dataclasses.dataclass(frozen=True)
class ReleasedAnswer:
    """A model's quotations for a fact, the texts it was shown, and the spans the release placed them at."""

    number: int
    answer: str
    shown: tuple[CandidateText, ...]
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class ReleasedRun:
    """One example run."""

    name: str
    aligned: bool
    rows: tuple[CoarseRow, ...]
    """The generator's own attribution."""
    facts: tuple[ReleasedFact, ...]
    answers: tuple[ReleasedAnswer, ...]
    attributed: dict[int, tuple[Span, ...]]
    """The release's result by fact, fall-backs included; facts without attribution have none."""


def read_released_runs(path: str | os.PathLike[str]) -> list[ReleasedRun]:
    """The runs below a folder (`results/test` of the repository).

    Raises:
        ValueError: none of the runs is there.
    """
    root = pathlib.Path(path).expanduser()
    found = [name for name in RUNS if (root / name / "results.json").is_file()]
    if not found:
        raise ValueError(f"no run at {root}: expected a folder with {', '.join(RUNS)}")
    return [_read_run(root / name, name) for name in found]


def _read_run(folder: pathlib.Path, name: str) -> ReleasedRun:
    instance = json.loads((folder / "results.json").read_text(encoding="utf-8").splitlines()[0])
    lengths = {document["documentFile"]: sum(map(len, document["documentText"])) for document in instance["documents"]}
    facts = tuple(_fact(row) for row in _rows(folder / "factscore.csv"))
    attributed: dict[int, list[Span]] = collections.defaultdict(list)
    for row in _rows(folder / "llm_results.csv"):
        if row["documentFile"]:
            spans = _offsets(row["docSpanOffsets"]) or ((0, lengths[row["documentFile"]]),)
            attributed[int(float(row["fact_idx"]))] += [Span(row["documentFile"], *span) for span in spans]
    answers = []
    for row in _rows(folder / "llm_responses.csv"):
        shown = json.loads(row["source_spans"]) if row["source_spans"].strip() else {}
        if row["text"].strip() and shown:
            texts = tuple(CandidateText(key, ((0, len(text)),), text) for key, text in shown.items())
            number = int(float(row["fact_idx"]))
            answers.append(ReleasedAnswer(number, row["text"], texts, tuple(attributed.get(number, ()))))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ReleasedRun(
        name=name,
        aligned=bool(config["aligned"]),
        rows=tuple(_coarse(row, lengths) for row in instance["set_of_highlights_in_context"]),
        facts=facts,
        answers=tuple(answers),
        attributed={number: tuple(spans) for number, spans in attributed.items()},
    )


def _fact(row: dict[str, str]) -> ReleasedFact:
    return ReleasedFact(
        number=int(float(row["fact_idx"])),
        fact=row["fact"],
        sentence=row["sentence"],
        local=_offsets(row["local_factOffsets"]),
        output=_offsets(row["factOffsets"]),
        sampled=row["is_sampled"] == "True",
    )


def _coarse(row: dict[str, Any], lengths: dict[str, int]) -> CoarseRow:
    """A row without offsets attributes a whole document; one without a document, nothing."""
    output = None
    if row["scuSentCharIdx"] is not None:
        output = (row["scuSentCharIdx"], row["scuSentCharIdx"] + len(row["scuSentence"]))
    document = row["documentFile"]
    return CoarseRow(output, None if document is None else Span(document, 0, lengths[document]))


def _offsets(text: str) -> tuple[Offsets, ...]:
    return tuple((int(start), int(end)) for start, end in ast.literal_eval(text)) if text.strip() else ()


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
