"""Files of the PAN authorship verification tasks: truth and answers as JSON lines.

One line per problem: `{"id": "...", "same": true}` in the truth, `{"id": "...", "value": 0.83}` in the
answers.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

T = TypeVar("T")

UNANSWERED = 0.5  # a value of exactly 0.5 declines the problem (PAN evaluators, all years)


def read_pan_answers(path: str | Path) -> dict[str, float]:
    """A system's answers, `id -> probability that both texts have one author`.

    A value may be a number or a list of one number (the PAN20 submission ordonez20-large writes lists). Blank
    lines are skipped; nothing else is repaired.

    Args:
        path: JSON lines file, UTF-8, with `id` (string) and `value` (in [0, 1]) on each line.
    Raises:
        ValueError: no such file, no answers, or malformed lines; names the file and the first such line, and
            counts the others. Malformed: not UTF-8, not a JSON object, no or non-string id, id seen before,
                value missing,
            not a number, NaN or outside [0, 1].
    Source: authorship_survey.md, parity table (PAN20 submissions).
    """
    return _read_json_lines(path, "value", _probability)


def read_pan_truth(path: str | Path) -> dict[str, bool]:
    """The truth of a collection, `id -> whether both texts have one author` (field `same`).

    Raises:
        ValueError: as `read_pan_answers`, with `same` (true, false, 0 or 1) in place of `value`.
    """
    return _read_json_lines(path, "same", _same_author)


def align_answers(
    truth: Mapping[str, bool], answers: Mapping[str, float]
) -> tuple[Bool[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Labels and probabilities in the order of `truth`; a problem without an answer gets 0.5 (unanswered).

    Raises:
        ValueError: `truth` is empty, or an answer's id is not in `truth`.
    """
    if not truth:
        raise ValueError("truth is empty; pass at least one problem")
    strangers = [problem for problem in answers if problem not in truth]
    if strangers:
        raise ValueError(
            f"{len(strangers)} answers have ids that are not in the truth (first: {strangers[0]!r}); "
            "read both files from the same collection"
        )
    labels = np.fromiter((bool(same) for same in truth.values()), dtype=bool, count=len(truth))
    values = (answers.get(problem, UNANSWERED) for problem in truth)
    return labels, np.fromiter(values, dtype=np.float64, count=len(truth))


def _read_json_lines(path: str | Path, field: str, convert: Callable[[Any], T]) -> dict[str, T]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; pass the path of a JSON lines file with 'id' and {field!r}")
    records: dict[str, T] = {}
    faults: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                problem, value = _parse(line, field, convert)
                if problem in records:
                    raise ValueError(f"id {problem!r} occurs twice")
                records[problem] = value
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}")
    if faults:
        others = f" (and {len(faults) - 1} more malformed lines)" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}{others}; mend or remove it")
    if not records:
        raise ValueError(f"{path}: no records; expected one JSON object a line with 'id' and {field!r}")
    return records


def _parse(line: bytes, field: str, convert: Callable[[Any], T]) -> tuple[str, T]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"not JSON: {line[:60]!r}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    for key in ("id", field):
        if key not in record:
            raise ValueError(f"no field {key!r} (fields: {', '.join(map(repr, record)) or 'none'})")
    if not isinstance(record["id"], str):
        raise ValueError(f"id must be a string, found {record['id']!r}")
    return record["id"], convert(record[field])


def _probability(value: Any) -> float:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"value must be a number or a list of one number, found {value!r}")
    if math.isnan(value) or not 0 <= value <= 1:
        raise ValueError(f"value must lie in [0, 1], found {value!r}")
    return float(value)


def _same_author(value: Any) -> bool:
    if value not in (True, False):  # 1 == True and 0 == False, so numeric truth passes too
        raise ValueError(f"same must be true or false, found {value!r}")
    return bool(value)
