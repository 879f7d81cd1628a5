"""A human study of explanations: ratings by annotator, guesses of the prediction, means by subset, agreement.

`study_files` and `read_study` read the published study of saliency map verbalization (Feldhus et al. 2023, repository
DFKI-NLP/SMV: the files of crowd_study and src/chatgpt/eval): which of a heatmap (HM), an extractive rationale (ER), a
template (SMV) and a language model's text (GPT) tells people best what a classifier predicted.
"""

import csv
import io
import json
import pathlib
import re
import tarfile
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxcore.evaluation.rater_agreement import fleiss_kappa, mean_over_raters

Subset = Literal["all", "high_coverage", "model_wrong", "simulation_wrong"]

_LABEL_COLUMNS = {"IMDb": ("Pred", "True"), "AGNews": ("pred Lbl", "True Lbl")}
STUDY_DATASETS = tuple(_LABEL_COLUMNS)
_GUESSES = {"positive sentiment": "pos", "negative sentiment": "neg"}
"""How the labels of IMDb are called in its label columns."""


class Rating(NamedTuple):
    """One row of an annotator: what was shown, what was guessed, and both ratings."""

    annotator: int
    item: str
    kind: str
    guess: str
    helpful: float
    ease: float


class StudyTable(NamedTuple):
    """A dataset of a study: ratings; predicted and true label, and coverage, of every item."""

    ratings: list[Rating]
    predicted: dict[str, str]
    true: dict[str, str]
    coverage: dict[str, float]

    def accuracy_of(self, rating: Rating) -> float:
        """100 for a guess that is the model's label; a blank guess is a wrong one."""
        return 100.0 * (rating.guess == self.predicted[rating.item])


def subset_means(table: StudyTable, subset: Subset, kind: str) -> tuple[float, float, float] | None:
    """Accuracy in per cent, helpfulness, ease: mean of each annotator, then over annotators; None without ratings.

    Subsets: all; items of more than the mean coverage; items that the model gets wrong; wrong guesses.
    """
    average = float(np.mean(list(table.coverage.values())))
    chosen: Mapping[str, Callable[[Rating], bool]] = {
        "all": lambda rating: True,
        "high_coverage": lambda rating: table.coverage[rating.item] > average,
        "model_wrong": lambda rating: table.predicted[rating.item] != table.true[rating.item],
        "simulation_wrong": lambda rating: table.accuracy_of(rating) == 0,
    }
    ratings = [rating for rating in table.ratings if rating.kind == kind and chosen[subset](rating)]
    if not ratings:
        return None
    values = [(table.accuracy_of(rating), rating.helpful, rating.ease) for rating in ratings]
    accuracy, helpful, ease = mean_over_raters(values, [rating.annotator for rating in ratings]).tolist()
    return accuracy, helpful, ease


def guess_agreement(table: StudyTable) -> float:
    """Fleiss' kappa of label guesses over (item, representation); blank guesses are left out."""
    labels = sorted(set(table.predicted.values()))
    counts: dict[tuple[str, str], np.ndarray] = {}
    for rating in table.ratings:
        if rating.guess in labels:
            row = counts.setdefault((rating.item, rating.kind), np.zeros(len(labels), np.int64))
            row[labels.index(rating.guess)] += 1
    return fleiss_kappa(np.stack(list(counts.values())))


# ---- the published files ---------------------------------------------------------------------------------


def study_files(path: str) -> dict[str, str]:
    """Texts of the published study's CSV and JSON files by name, from a folder or a tar archive.

    Raises:
        ValueError: nothing there, or no file of the study in it.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        found = {file.name: file.read_bytes() for file in place.rglob("*") if file.suffix in (".csv", ".json")}
    elif place.is_file() and tarfile.is_tarfile(place):
        with tarfile.open(place) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            found = {pathlib.PurePosixPath(m.name).name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    else:
        raise ValueError(f"no folder and no tar archive at study_path {path}; give the published study's files")
    missing = [name for name in ("IMDb_SMV-GPT_Eval.csv", "IMDb_G0_Anno0.csv", "imdbcov_GPT.json") if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: give crowd_study and src/chatgpt/eval of the study")
    return {name: content.decode("utf-8-sig") for name, content in found.items() if name.endswith((".csv", ".json"))}


def evaluation_rows(files: Mapping[str, str], dataset: str) -> list[dict[str, str]]:
    """Rows of a dataset's evaluation file: labels, the text, the template's and the language model's explanation."""
    return list(csv.DictReader(io.StringIO(files[f"{dataset}_SMV-GPT_Eval.csv"], newline="")))


def read_study(files: Mapping[str, str], dataset: str) -> StudyTable:
    """The ratings of a dataset. Rows without ratings are dropped; in files without a type, no text means a heatmap.

    Args:
        files: from `study_files`.
        dataset: one of `STUDY_DATASETS`.

    Raises:
        ValueError: another dataset.
    """
    if dataset not in STUDY_DATASETS:
        raise ValueError(f"the study has the datasets {', '.join(STUDY_DATASETS)}: got {dataset!r}")
    rows = [row for row in evaluation_rows(files, dataset) if (row["ID"] or "").strip()]
    predicted, true = (
        {row["ID"].strip(): row[column].strip().lower() for row in rows} for column in _LABEL_COLUMNS[dataset]
    )
    covered = csv.reader(io.StringIO(files[f"{dataset}_cov_sum_dict.csv"], newline=""))
    next(covered)
    ratings: list[Rating] = []
    for name in sorted(files):
        if match := re.fullmatch(rf"{dataset}_G\d_Anno(\d+)\.csv", name):
            ratings += _ratings(csv.DictReader(io.StringIO(files[name], newline="")), int(match[1]))
    return StudyTable(ratings, predicted, true, {row[0]: float(row[1]) for row in covered if row})


def study_coverage_at_k(files: Mapping[str, str], dataset: str, kind: str) -> Float[np.ndarray, "items ranks"]:
    """Coverage@k of every item's verbalisation, k = 1 ... 10, as the study's authors computed it; items by name.

    Raises:
        ValueError: no such file: the published ones are of IMDb SMV, IMDb GPT and AGNews SMV.
    """
    name = f"{dataset.lower()}cov_{kind}.json"
    if name not in files:
        raise ValueError(f"the study's files hold no {name}: coverage is of IMDb SMV, IMDb GPT and AGNews SMV")
    stored = json.loads(files[name])[dataset.lower()]
    return np.array([[stored[str(k)][item] for k in range(1, 11)] for item in sorted(stored["1"])], np.float64)


def _ratings(rows: csv.DictReader, annotator: int) -> list[Rating]:
    names = list(rows.fieldnames or ())
    helpful, ease, guess = (
        next(name for name in names if name.strip().startswith(start))
        for start in ("How helpful", "How easy", "What does the model")
    )
    found = []
    for row in rows:
        if row[helpful].strip() and row[ease].strip():
            kind = row["Type"].strip() if "Type" in names else ("SMV" if row["Explanation"].strip() else "HM")
            guessed = row[guess].strip().lower()
            label = _GUESSES.get(guessed, guessed)
            found.append(Rating(annotator, row["ID"].strip(), kind, label, float(row[helpful]), float(row[ease])))
    return found
