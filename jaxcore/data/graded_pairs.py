"""Sentence pairs with a graded similarity, and the files in which the STS tasks come.

A folder of STS files is known by its file names; see `read_sts_folder`.
"""

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from jaxcore.data.records import PathLike, decode_text


@dataclasses.dataclass(frozen=True, eq=False)
class GradedPairs:
    """Pairs of sentences with gold similarities.

    Attributes:
        first, second: the sentences of each pair.
        gold: [n] float64; 0..5 in STS, 1..5 in SICK.
        subset: the part of the task that each pair comes from, "" where there are none.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    gold: Float[np.ndarray, "n"]
    subset: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = [len(column) for column in (self.first, self.second, self.gold, self.subset)]
        if len(set(sizes)) > 1:
            raise ValueError(f"first, second, gold and subset must be equally long: got {sizes}")

    def __len__(self) -> int:
        return len(self.gold)

    def sentences(self) -> tuple[str, ...]:
        """Every distinct sentence once, in order of first appearance."""
        return tuple(dict.fromkeys(sentence for pair in zip(self.first, self.second, strict=True) for sentence in pair))


@dataclasses.dataclass(frozen=True, eq=False)
class StsFolder:
    """What `read_sts_folder` found.

    Attributes:
        tasks: name -> pairs.
        unlabelled: sentences of files without a graded score (paraphrase corpora, unscored rows), in file order.
        notes: what a reader must know before comparing numbers, such as subsets that are missing.
    """

    tasks: dict[str, GradedPairs]
    unlabelled: tuple[str, ...]
    notes: tuple[str, ...]


def normalized(text: str) -> str:
    """The sentence in lower case, runs of white space as one blank: what exact-match removal compares."""
    return " ".join(text.lower().split())


# ---- files -----------------------------------------------------------------------------------------------


def read_stsb_csv(path: PathLike, *, subset: str = "") -> GradedPairs:
    """STS Benchmark as CSV without a header: ``sentence1,sentence2,score``.

    Raises:
        ValueError: an unreadable or empty file, or a row of another form; names file and line.
    """
    return _collect(path, _csv_rows(path, columns=3), lambda row: (_score(row[2]), row[0], row[1]), subset)


def read_sick(path: PathLike, *, subset: str = "") -> GradedPairs:
    """SICK: tab separated, a header with ``sentence_A``, ``sentence_B`` and ``relatedness_score``; gold in 1..5.

    Raises:
        ValueError: a missing column, an unreadable or empty file, or a row of another form; names file and line.
    """
    rows = _tab_rows(path)
    _, header = next(rows, (0, []))
    try:
        places = [header.index(name) for name in ("sentence_A", "sentence_B", "relatedness_score")]
    except ValueError:
        raise ValueError(
            f"{path}:1: the header must name sentence_A, sentence_B and relatedness_score, got {header}"
        ) from None
    rows = _of_width(path, rows, len(header))
    return _collect(path, rows, lambda row: (_score(row[places[2]]), row[places[0]], row[places[1]]), subset)


def read_semeval_tsv(path: PathLike, *, subset: str = "") -> tuple[GradedPairs, tuple[str, ...]]:
    """SemEval STS: ``score<tab>sentence1<tab>sentence2``, no quoting.

    Returns:
        The scored pairs, and the sentences of the rows without a score.

    Raises:
        ValueError: an unreadable file, one without any score, or a row of another form; names file and line.
    """
    unlabelled: list[str] = []

    def scored() -> Iterator[tuple[int, list[str]]]:
        for line, row in _of_width(path, _tab_rows(path), 3):
            if row[0].strip():
                yield line, row
            else:
                unlabelled.extend(_sentence(text, path, line) for text in row[1:])

    return _collect(path, scored(), lambda row: (_score(row[0]), row[1], row[2]), subset), tuple(unlabelled)


def read_paraphrase_sentences(path: PathLike) -> tuple[str, ...]:
    """Sentences of the Microsoft paraphrase corpus: tab separated, a header, sentences in columns 4 and 5.

    Its yes-or-no judgements are no graded similarity, so they are left out.

    Raises:
        ValueError: an unreadable or empty file, or a row of another form; names file and line.
    """
    rows = _of_width(path, _tab_rows(path), 5)
    next(rows, None)
    found = tuple(_sentence(text, path, line) for line, row in rows for text in row[3:])
    if not found:
        raise ValueError(f"{path} holds no sentences; expected a header and rows of five columns")
    return found


def _collect(
    path: PathLike,
    rows: Iterable[tuple[int, list[str]]],
    parse: Callable[[list[str]], tuple[float, str, str]],
    subset: str,
) -> GradedPairs:
    first, second, gold = [], [], []
    for line, row in rows:
        try:
            score, one, other = parse(row)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
        gold.append(score)
        first.append(_sentence(one, path, line))
        second.append(_sentence(other, path, line))
    if not gold:
        raise ValueError(f"{path} holds no scored pairs; is it the right file?")
    return GradedPairs(tuple(first), tuple(second), np.asarray(gold, np.float64), (subset,) * len(gold))


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 5:
        raise ValueError(f"the score must be a number from 0 to 5, got {text!r}")
    return value


def _sentence(text: str, path: PathLike, line: int) -> str:
    if not text.strip():
        raise ValueError(f"{path}:{line}: a sentence is blank; mend or remove the row")
    return text.strip()


def _text(path: PathLike) -> str:
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"no file at {file}; give the path of an existing file")
    try:
        return decode_text(file.read_bytes()).removeprefix("\ufeff")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _csv_rows(path: PathLike, *, columns: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    line = 1
    for row in reader:
        if row and len(row) != columns:
            raise ValueError(f"{path}:{line}: expected {columns} columns, got {len(row)}")
        if row:
            yield line, row
        line = reader.line_num + 1


def _tab_rows(path: PathLike) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines(): sentences may hold other characters that Unicode counts as line breaks.
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if text.strip():
            yield line, text.rstrip("\r").split("\t")


def _of_width(path: PathLike, rows: Iterator[tuple[int, list[str]]], columns: int) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != columns:
            raise ValueError(f"{path}:{line}: expected {columns} tab-separated columns, got {len(row)}")
        yield line, row


# ---- folders ---------------------------------------------------------------------------------------------

_SUBSETS = {
    2012: ("MSRpar", "MSRvid", "OnWN", "SMTeuroparl", "SMTnews"),
    2013: ("FNWN", "OnWN", "headlines"),
    2014: ("OnWN", "deft-forum", "deft-news", "headlines", "images", "tweet-news"),
    2015: ("answers-forums", "answers-students", "belief", "headlines", "images"),
    2016: ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""Subsets of the "all" score of each year (SentEval); a score over fewer is not comparable."""

_STSB = re.compile(r"stsb(?:-en)?[-_](train|dev|test)\.csv")
_SICK = re.compile(r"sick_(train|trial|test)(?:_annotated)?\.txt", re.IGNORECASE)
_SEMEVAL = re.compile(r"(20\d\d)_(.+?)(?:\.test)?\.tsv")
_PARAPHRASES = re.compile(r"msr[-_]para(?:phrase)?[-_](?:train|val|dev|test)\.tsv")


def read_sts_folder(path: PathLike) -> StsFolder:
    """Every STS file of a folder, as tasks.

    Known names: ``stsb_SPLIT.csv`` (or ``stsb-en-SPLIT.csv``), ``sick_SPLIT.txt``, ``YEAR_SUBSET.test.tsv``,
    ``msr_paraphrase_SPLIT.tsv``; other files are not looked at. Tasks are called stsb_dev, sick_test, sts13, ...; the
    subsets of a year make one task, and a year that lacks some says so in its name: "sts12 (without MSRvid)".

    Raises:
        ValueError: no such folder, none of these files in it, or a file of another form (names file and line).
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; give a folder of STS files")
    tasks: dict[str, GradedPairs] = {}
    years: dict[int, list[GradedPairs]] = {}
    unlabelled: list[str] = []
    for file in sorted(folder.iterdir()):
        if match := _STSB.fullmatch(file.name):
            tasks[f"stsb_{match[1]}"] = read_stsb_csv(file)
        elif match := _SICK.fullmatch(file.name):
            tasks[f"sick_{match[1].lower()}"] = read_sick(file)
        elif (match := _SEMEVAL.fullmatch(file.name)) and int(match[1]) in _SUBSETS:
            pairs, unscored = read_semeval_tsv(file, subset=match[2])
            years.setdefault(int(match[1]), []).append(pairs)
            unlabelled += unscored
        elif _PARAPHRASES.fullmatch(file.name):
            unlabelled += read_paraphrase_sentences(file)
    notes = []
    for year, parts in sorted(years.items()):
        name, note = _year_name(year, {part.subset[0] for part in parts})
        tasks[name] = join_pairs(parts)
        notes += [note] if note else []
    if not tasks:
        raise ValueError(f"no STS files in {folder}: expected stsb_SPLIT.csv, sick_SPLIT.txt or YEAR_SUBSET.test.tsv")
    return StsFolder(tasks, tuple(unlabelled), tuple(notes))


def join_pairs(parts: Sequence[GradedPairs]) -> GradedPairs:
    """The pairs of several sets in one, their subsets kept."""
    if not parts:
        raise ValueError("no pairs to join; give at least one set")
    return GradedPairs(
        tuple(sentence for part in parts for sentence in part.first),
        tuple(sentence for part in parts for sentence in part.second),
        np.concatenate([part.gold for part in parts]),
        tuple(name for part in parts for name in part.subset),
    )


def _year_name(year: int, found: set[str]) -> tuple[str, str]:
    name = f"sts{year % 100}"
    missing = [subset for subset in _SUBSETS[year] if subset not in found]
    if not missing:
        return name, ""
    note = f"{name} lacks {', '.join(missing)}: its score does not compare with published ones"
    return f"{name} (without {', '.join(missing)})", note
