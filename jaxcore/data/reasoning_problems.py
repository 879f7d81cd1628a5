"""Mathematical problems for reasoning models: read from JSON, put into the prompt of Thought Anchors."""

import json
import pathlib
from typing import NamedTuple

FORCED_LEAD_IN = "\n</think>\n\nTherefore, the final answers is \\boxed{"
"""Behind a cut chain of thought it makes a model answer at once; as released, spelling included."""


class ReasoningProblem(NamedTuple):
    """A problem and its right answer."""

    name: str
    text: str
    answer: str

    def prompt(self) -> str:
        """The raw completion prompt of the released code, up to the opened think tag and a newline."""
        return (
            "Solve this math problem step by step. You MUST put your final answer in \\boxed{}. "
            f"Problem: {self.text} Solution: \n<think>\n"
        )


def read_problems(path: pathlib.Path | str) -> list[ReasoningProblem]:
    """Problems from a JSON list of records with `problem_idx`, `problem` and `gt_answer` (``selected_problems.json``).

    Raises:
        ValueError: no such file, or anything else in it.
    """
    try:
        records = json.loads(pathlib.Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read problems from {path}: {error}") from error
    fields = ("problem_idx", "problem", "gt_answer")
    if not isinstance(records, list) or not records or any(f not in record for record in records for f in fields):
        raise ValueError(f"{path} must be a JSON list of records with {', '.join(fields)}")
    return [ReasoningProblem(*(str(record[field]) for field in fields)) for record in records]
