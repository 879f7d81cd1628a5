"""The published traces of Thought Anchors: sentences, their functions, and every score of the paper, as released.

    MODEL/{correct,incorrect}_base_solution/problem_ID/
        chunks_labeled.json        per sentence: text, index, function_tags, depends_on, accuracy, importances
        step_importance.json       source -> (target, importance) by resampling
        step_importance_supp.json  the same by suppression; of some traces only

in a folder, or packed as ``.tar.gz``.
"""

import json
import pathlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcore.data.reasoning_taxonomy import checked_functions, first_function

SCORES = (
    "accuracy",
    "resampling_importance_accuracy",
    "resampling_importance_kl",
    "counterfactual_importance_accuracy",
    "counterfactual_importance_kl",
    "forced_importance_accuracy",
    "forced_importance_kl",
    "different_trajectories_fraction",
    "overdeterminedness",
)
_PLACE = re.compile(r"([^/]+)/(correct|incorrect)_base_solution/problem_(\d+)/(\w+)\.json$")


class PublishedTrace(NamedTuple):
    """One trace of M sentences."""

    model: str
    problem: int
    is_correct: bool
    sentences: list[str]
    indices: Int[np.ndarray, " M"]
    """Of the sentences in the uncut trace: some are left out."""
    functions: list[str]
    """The first label of each sentence."""
    depends_on: Bool[np.ndarray, "M M"]
    """[source, target]: the labeller says that the target uses the source."""
    scores: Mapping[str, Float[np.ndarray, " M"]]
    """By the names in `SCORES`; NaN where a sentence lacks one."""
    resampling: Float[np.ndarray, "M M"] | None
    """[source, target], NaN where nothing was released; None where it was not read."""
    suppression: Float[np.ndarray, "M M"] | None


def read_published_traces(path: pathlib.Path | str) -> list[PublishedTrace]:
    """All traces of mathematical problems below `path`, by model, problem and correctness.

    Matrices are read of the traces that have one by suppression.

    Raises:
        ValueError: no such folder or archive, none of the files in it, a damaged file.
    """
    path = pathlib.Path(path).expanduser()
    files: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, text in _json_files(path):
        place = _PLACE.search(name)
        if place is not None:
            files.setdefault((place[1], place[3], place[2]), {})[place[4]] = text
    traces = [_trace(key, parts) for key, parts in sorted(files.items()) if "chunks_labeled" in parts]
    if not traces:
        raise ValueError(f"{path} has no MODEL/correct_base_solution/problem_ID/chunks_labeled.json: is it the data?")
    return traces


def _json_files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None and member.name.endswith(".json"):
                    yield member.name, stream.read()
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"cannot read published traces from {path}: {error}") from error


def _trace(key: tuple[str, str, str], parts: Mapping[str, bytes]) -> PublishedTrace:
    model, problem, correctness = key
    records = sorted(_parsed(parts["chunks_labeled"], key), key=lambda record: record["chunk_idx"])
    indices = np.array([record["chunk_idx"] for record in records])
    place = {int(index): row for row, index in enumerate(indices)}
    depends = np.zeros((len(records), len(records)), bool)
    for row, record in enumerate(records):
        known = [place[int(source)] for source in record.get("depends_on") or () if int(source) in place]
        depends[known, row] = True
    return PublishedTrace(
        model=model,
        problem=int(problem),
        is_correct=correctness == "correct",
        sentences=[record["chunk"] for record in records],
        indices=indices,
        functions=checked_functions([first_function(record.get("function_tags")) for record in records]),
        depends_on=depends,
        scores={name: np.array([_number(record.get(name)) for record in records]) for name in SCORES},
        resampling=_matrix(parts, "step_importance", key, place),
        suppression=_matrix(parts, "step_importance_supp", key, place),
    )


def _matrix(parts: Mapping[str, bytes], name: str, key: Any, place: Mapping[int, int]) -> np.ndarray | None:
    if "step_importance_supp" not in parts or name not in parts:
        return None
    matrix = np.full((len(place), len(place)), np.nan)
    for source in _parsed(parts[name], key):
        row = place.get(int(source["source_chunk_idx"]))
        for target in source["target_impacts"]:
            column = place.get(int(target["target_chunk_idx"]))
            if row is not None and column is not None:
                matrix[row, column] = _number(target["importance_score"])
    return matrix


def _parsed(text: bytes, key: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"a file of {'/'.join(key)} is damaged: {error}") from error


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
