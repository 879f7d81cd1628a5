"""What sentences of a reasoning trace do: the eight functions of Thought Anchors, and labels read from files."""

import json
import pathlib
from collections.abc import Sequence

FUNCTIONS: dict[str, str] = {
    "problem_setup": "parses or rephrases the problem",
    "plan_generation": "states or chooses a plan, reasons about the reasoning",
    "fact_retrieval": "recalls facts, formulas, details of the problem, without computing",
    "active_computation": "algebra and calculation towards the answer",
    "uncertainty_management": "doubts, re-evaluates, backtracks, weighs alternatives",
    "result_consolidation": "aggregates or summarises results",
    "self_checking": "verifies earlier steps",
    "final_answer_emission": "states the final answer",
}
"""Name -> meaning (Bogdan et al. 2025)."""
UNKNOWN = "unknown"


def checked_functions(functions: Sequence[str], *, count: int | None = None) -> list[str]:
    """The same labels in lower case.

    Raises:
        ValueError: a label that is no function (nor "unknown"), or not `count` of them.
    """
    labels = [str(label).lower() for label in functions]
    wrong = [label for label in labels if label not in FUNCTIONS and label != UNKNOWN]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no function of a sentence: expected {', '.join(FUNCTIONS)} or {UNKNOWN}")
    if count is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} sentences: expected one each")
    return labels


def read_labels(path: pathlib.Path | str, *, count: int | None = None) -> list[str]:
    """The first function of every sentence, from a JSON file: a list of labels, or of records with `function_tags`.

    Records are what the released labeller writes (``chunks_labeled.json``), by index (a mapping) or in order.

    Args:
        count: sentences that there should be.

    Raises:
        ValueError: no such file, no JSON, a label that is no function, another number of labels.
    """
    path = pathlib.Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read labels from {path}: {error}") from error
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found, key=int)]
    labels = [first_function(item.get("function_tags")) if isinstance(item, dict) else item for item in found]
    return checked_functions(labels, count=count)


def first_function(tags: Sequence[str] | None) -> str:
    """The label that counts; "unknown" without one."""
    return str(tags[0]) if tags else UNKNOWN
