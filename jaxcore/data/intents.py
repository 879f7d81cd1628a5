"""Utterances with intents: Banking77's csv files, and the folders of `seq.in` and `label` of the few-shot splits."""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import Int

from jaxcore.data.file_sources import CsvSource
from jaxcore.data.records import Field


@dataclasses.dataclass(frozen=True)
class IntentTexts:
    """Utterances and the number of each one's intent in `names`."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "texts"]


@dataclasses.dataclass(frozen=True)
class IntentCorpus:
    """A corpus of intents.

    Attributes:
        names: of the intents, in alphabetical order, as the files spell them.
        training, test: the splits.
        few_shot: published few-shot splits of the training utterances, by utterances per intent.
    """

    names: tuple[str, ...]
    training: IntentTexts
    test: IntentTexts
    few_shot: dict[int, IntentTexts]


def read_intents(path: str | os.PathLike[str]) -> IntentCorpus:
    """The corpus in a folder.

    Either ``train/``, ``test/`` and ``train_<k>/``, each with ``seq.in`` and ``label`` (an utterance and an intent per
    line), or ``[NAME_]train.csv`` and ``[NAME_]test.csv`` with columns ``text`` and ``category``.

    Raises:
        ValueError: nothing there, files of different lengths, an intent that training does not have.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder} (from {pathlib.Path.cwd()}); check the path")
    splits = _read_folders(folder) if (folder / "train").is_dir() else _read_csv(folder)
    names = tuple(sorted(set(splits["train"][1])))
    numbers = {name: number for number, name in enumerate(names)}
    read = {}
    for split, (texts, intents) in splits.items():
        if unknown := sorted(set(intents) - set(names)):
            raise ValueError(f"{folder}: {split} has the intent {unknown[0]!r}, which train does not have")
        read[split] = IntentTexts(tuple(texts), np.array([numbers[name] for name in intents], np.int32))
    few = {int(split.removeprefix("train_")): texts for split, texts in read.items() if split.startswith("train_")}
    return IntentCorpus(names, read["train"], read["test"], few)


Split = tuple[list[str], list[str]]


def _read_folders(folder: pathlib.Path) -> dict[str, Split]:
    splits = {}
    for directory in sorted(folder.iterdir()):
        number = directory.name.removeprefix("train_")
        if directory.name in ("train", "test") or (directory.name.startswith("train_") and number.isdigit()):
            lines = [_lines(directory / name) for name in ("seq.in", "label")]
            if len(lines[0]) != len(lines[1]):
                raise ValueError(f"{directory}: seq.in has {len(lines[0])} lines, label {len(lines[1])}")
            splits[directory.name] = (lines[0], lines[1])
    if "test" not in splits:
        raise ValueError(f"{folder} has a folder train but none called test, with seq.in and label")
    return splits


def _lines(file: pathlib.Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"no file at {file}; a split is a folder with seq.in and label")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    if not lines or not all(lines):
        where = f"line {lines.index('') + 1} of {file} is empty" if lines else f"{file} is empty"
        raise ValueError(f"{where}; expected one utterance (or intent) per line")
    return lines


def _read_csv(folder: pathlib.Path) -> dict[str, Split]:
    splits = {}
    for split in ("train", "test"):
        files = sorted(folder.glob(f"*{split}.csv"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise ValueError(
                f"{folder} must hold one file *{split}.csv (text,category), or folders train and test with seq.in and "
                f"label: found {found}"
            )
        source = CsvSource(files[0], fields=(Field("text"), Field("category")))
        records = [source[number] for number in range(len(source))]
        splits[split] = (
            [" ".join(record["text"].split()) for record in records],
            [record["category"] for record in records],
        )
    return splits
