"""A page that shows what steps of reasoning traces hang on: one HTML file, no network, readable without its script.

Every sentence is a row with its function and a dot as large as its importance; arcs are the strongest influences
between sentences. A click on a sentence shows what it hangs on (or what hangs on it) as a tree, and what the model
wrote most often in its place.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxcore.data.reasoning_taxonomy import FUNCTIONS, UNKNOWN
from jaxcore.reporting.html import render_page, write_page
from jaxcore.reporting.tables import format_number

MOST_INFLUENCES = 10
"""Of each sentence in each direction that the page keeps: the most that its slider can show."""


@dataclasses.dataclass(frozen=True)
class GraphSentence:
    """A sentence of a trace.

    Attributes:
        text: as the model wrote it.
        function: one of `jaxcore.data.reasoning_taxonomy.FUNCTIONS`, or "unknown".
        importance: 0 or more, in nats; None where it is undefined.
        resamples: what was written most often in its place, and how often.
        note: anything else, shown in the panel.
    """

    text: str
    function: str
    importance: float | None = None
    resamples: Sequence[tuple[str, int]] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ReasoningGraph:
    """A trace and the influences between its sentences.

    Attributes:
        title: names the trace.
        problem: what was asked.
        sentences: in order.
        influences: matrices [source, target] by the name of the method; NaN where there is none. The first is shown.
        answer: the trace's, in words.

    Raises:
        ValueError: no sentence, an unknown function, a negative importance, a matrix of another size.
    """

    title: str
    problem: str
    sentences: Sequence[GraphSentence]
    influences: Mapping[str, Float[np.ndarray, "source target"]]
    answer: str = ""

    def __post_init__(self) -> None:
        count = len(self.sentences)
        if not count:
            raise ValueError(f"the trace {self.title!r} has no sentence")
        for number, sentence in enumerate(self.sentences):
            if sentence.function not in FUNCTIONS and sentence.function != UNKNOWN:
                raise ValueError(f"sentence {number} has the function {sentence.function!r}: no such function")
            if sentence.importance is not None and not sentence.importance >= 0:
                raise ValueError(f"sentence {number} has importance {sentence.importance}: expected 0 or more, or None")
        for name, matrix in self.influences.items():
            if np.shape(matrix) != (count, count):
                raise ValueError(f"{name} must be [{count}, {count}], source by target: got shape {np.shape(matrix)}")


def render_reasoning_page(title: str, graphs: Sequence[ReasoningGraph], *, note: str = "") -> str:
    """The page as text. All of it that comes from traces is escaped by the template, or set as text by the script.

    Raises:
        ValueError: no trace.
    """
    if not graphs:
        raise ValueError("a reasoning page needs at least one trace")
    return render_page(
        "reasoning_graph.html.jinja",
        styles=("reasoning_graph.css",),
        scripts=("reasoning_graph.js",),
        title=title,
        note=note,
        functions={name: name.replace("_", " ") for name in (*FUNCTIONS, UNKNOWN)},
        traces=[_view(graph) for graph in graphs],
        most=MOST_INFLUENCES,
    )


def write_reasoning_page(
    path: str | os.PathLike[str], title: str, graphs: Sequence[ReasoningGraph], *, note: str = ""
) -> None:
    """Write the page to `path`, whole or not at all; see `render_reasoning_page`."""
    write_page(path, render_reasoning_page(title, graphs, note=note))


def strongest_influences(
    matrix: Float[np.ndarray, "source target"], *, count: int = MOST_INFLUENCES
) -> list[tuple[int, int, float]]:
    """(source, target, value) of the `count` largest magnitudes out of each sentence, and of those into each.

    Without repetition, in reading order of the sources; NaN and zeros are no influence.
    """
    magnitudes = np.nan_to_num(np.abs(np.triu(np.nan_to_num(matrix), 1)))
    kept = np.zeros(magnitudes.shape, bool)
    for axis in (0, 1):
        places = np.argsort(-magnitudes, axis=axis, kind="stable").take(range(min(count, len(matrix))), axis=axis)
        np.put_along_axis(kept, places, True, axis=axis)
    pairs = np.argwhere(kept & (magnitudes > 0))
    return [(int(source), int(target), float(matrix[source, target])) for source, target in pairs]


def _view(graph: ReasoningGraph) -> dict[str, Any]:
    """A trace as what template and script need."""
    largest = max((sentence.importance or 0 for sentence in graph.sentences), default=0) or 1.0
    steps = [
        {
            "text": sentence.text,
            "function": sentence.function,
            "importance": "" if sentence.importance is None else format_number(sentence.importance),
            "size": round(math.sqrt((sentence.importance or 0) / largest), 3),
            "resamples": [[text, int(count)] for text, count in sentence.resamples],
            "note": sentence.note,
        }
        for sentence in graph.sentences
    ]
    influences = {
        name: [[source, target, float(f"{value:.4g}")] for source, target, value in strongest_influences(matrix)]
        for name, matrix in graph.influences.items()
    }
    data = json.dumps({"steps": steps, "influences": influences}, ensure_ascii=True, allow_nan=False)
    return {"title": graph.title, "problem": graph.problem, "answer": graph.answer, "steps": steps, "data": data}
