"""The page of explained continuations: point at what a model wrote, and the tokens it came from light up.

One HTML file that needs nothing else, like all reports; without the script it holds the same as tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from jaxcore.attribution.sequence_targets import SEQUENCE_METHODS
from jaxcore.evaluation.generation_attribution import (
    ContinuationExplanation,
    Level,
    SegmentExplanation,
    by_segment,
)
from jaxcore.reporting.html import render_page
from jaxcore.reporting.tables import Table, format_number

_STRONGEST = 5
_VISIBLE = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥", " ": "␣"})


@dataclass(frozen=True)
class SegmentCell:
    """A segment ready to draw: the text before it that belongs to none, its own, whether it is a special token."""

    before: str
    text: str
    special: bool


@dataclass(frozen=True)
class TargetView:
    """A segment that was written: what is said of it, and its scores by each method, as text."""

    text: str
    why: str
    log_probability: str
    versus: str
    score: str
    values: tuple[str, ...]
    strongest: tuple[str, ...]


@dataclass(frozen=True)
class LevelView:
    """Everything at one level; the sources of the targets' values are the prompt's cells, then those written."""

    name: str
    prompt: tuple[SegmentCell, ...]
    written: tuple[SegmentCell, ...]
    targets: tuple[TargetView, ...]


def generation_page(
    explanations: Sequence[ContinuationExplanation],
    *,
    title: str = "Where each word came from",
    facts: Mapping[str, str] | None = None,
    levels: Sequence[Level] = ("token", "word", "sentence"),
    max_texts: int = 100,
) -> str:
    """The page as text; `jaxcore.reporting.write_page` writes it.

    Args:
        explanations: of continuations, all by the same methods.
        facts: of the run, shown at the top.
        levels: what readers may switch between; the first is shown first.
        max_texts: texts that are shown.

    Raises:
        ValueError: no explanations, no or unknown levels.
    """
    if not explanations:
        raise ValueError("no explanations: expected at least one")
    unknown = [level for level in levels if level not in get_args(Level)]
    if unknown or not levels:
        raise ValueError(f"levels must be one or more of {', '.join(get_args(Level))}: got {list(levels)}")
    items = [_item(number, explanation, levels) for number, explanation in enumerate(explanations[:max_texts])]
    left_out = len(explanations) - len(items)
    subtitle = "Point at, tap or move to a part of a continuation: what it came from lights up."
    if left_out:
        subtitle += f" {left_out:,} more texts are not shown."
    return render_page(
        "generation.html.jinja",
        styles=("generation.css",),
        scripts=("generation.js",),
        title=title,
        subtitle=subtitle,
        facts=dict(facts or {}),
        items=items,
        reading=_reading(explanations[0]),
    )


def _item(number: int, explanation: ContinuationExplanation, levels: Sequence[Level]) -> dict[str, object]:
    kind = "generated" if explanation.continuation.generated else "given"
    return {
        "caption": f"Text {number}, continuation {kind}",
        "levels": [_level(explanation, by_segment(explanation, level)) for level in levels],
        "methods": list(explanation.methods),
        "has_contrast": explanation.versus is not None,
    }


def _level(explanation: ContinuationExplanation, segments: SegmentExplanation) -> LevelView:
    item, cut = explanation.continuation, segments.num_prompt
    prompt = _cells(item.prompt, segments.sources[:cut], segments.source_offsets[:cut])
    written = _cells(item.text, segments.targets, segments.target_offsets - len(item.prompt))
    texts = [cell.text for cell in (*prompt, *written)]
    targets = tuple(_target(explanation, segments, texts, number) for number in range(len(segments.targets)))
    return LevelView(segments.level, prompt, written, targets)


def _target(
    explanation: ContinuationExplanation, segments: SegmentExplanation, texts: Sequence[str], number: int
) -> TargetView:
    text = texts[segments.num_prompt + number]
    log_probability = format_number(float(segments.log_probabilities[number]))
    versus = "" if segments.versus is None else segments.versus[number].strip() or "␣"
    why = f"Why “{text}”" + (f" rather than “{versus}”" if versus else "")
    score = format_number(float(segments.scores[number]))
    why += f": log probability {log_probability}"
    if versus or explanation.score != "log_probability":
        why += f", {_score_name(explanation)} {score}"
    why += f"; at the baseline {format_number(float(segments.baseline_scores[number]))}."
    rows = [matrix[number, : segments.num_prompt + number + 1] for matrix in segments.methods.values()]
    return TargetView(
        text=text,
        why=why,
        log_probability=log_probability,
        versus=versus,
        score=score,
        values=tuple(" ".join(_short(value) for value in row.tolist()) for row in rows),
        strongest=tuple(_strongest(row, texts) for row in rows),
    )


def _score_name(explanation: ContinuationExplanation) -> str:
    name = explanation.score.replace("_", " ")
    return f"difference of {name}" if explanation.versus is not None else name


def _short(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0"
    return f"{value:.4g}"


def _strongest(row: np.ndarray, texts: Sequence[str]) -> str:
    order = np.argsort(-np.abs(row), kind="stable")[:_STRONGEST].tolist()
    return ", ".join(f"{texts[index]} {format_number(float(row[index]))}" for index in order if row[index] != 0)


def _cells(text: str, texts: Sequence[str], offsets: np.ndarray) -> tuple[SegmentCell, ...]:
    """Segments in the running text; white space at a segment's beginning stands before it, alone it is made visible."""
    cells: list[SegmentCell] = []
    end = 0
    for segment, (left, right) in zip(texts, offsets.tolist(), strict=True):
        if left == right:  # no part of the text
            cells.append(SegmentCell(" " if cells else "", segment.translate(_VISIBLE), True))
            continue
        before, end = text[end:left], max(end, right)
        shown = segment.lstrip()
        if not shown:
            cells.append(SegmentCell(before, segment.translate(_VISIBLE) + "\n" * segment.count("\n"), False))
            continue
        cells.append(SegmentCell(before + segment[: len(segment) - len(shown)], shown, False))
    return tuple(cells)


def _reading(explanation: ContinuationExplanation) -> list[str]:
    lines = [
        "Orange speaks for the part that is pointed at (for methods without sign: matters), blue against it. Each part "
        "has its own colour scale: compare where the colour is, not how strong. A part can only come from what stands "
        "before it. Words and sentences carry the sums over their tokens.",
    ]
    if explanation.versus is not None:
        lines.append("With a contrast, what is explained is why this token rather than the other, in the same context.")
    lines += [f"{name}: {SEQUENCE_METHODS[name].description}." for name in explanation.methods]
    return lines


def continuation_lines(
    number: int, explanation: ContinuationExplanation, segments: SegmentExplanation, *, attributed: str
) -> list[dict[str, Any]]:
    """One record per method, of what JSON holds.

    Args:
        number: of the text, counted through all of them.
        segments: of the explanation, at the level that is wanted.
        attributed: what gets scores, "prefix" or "prompt".
    """
    item = explanation.continuation
    shared = {
        "index": number,
        "prompt": item.prompt,
        "continuation": item.text,
        "generated": item.generated,
        "level": segments.level,
        "attributed": attributed,
        "score": explanation.score,
        "sources": list(segments.sources),
        "source_offsets": segments.source_offsets.tolist(),
        "num_prompt": segments.num_prompt,
        "targets": list(segments.targets),
        "target_offsets": segments.target_offsets.tolist(),
        "versus": None if segments.versus is None else list(segments.versus),
        "log_probabilities": _numbers(segments.log_probabilities),
        "scores": _numbers(segments.scores),
        "baseline_scores": _numbers(segments.baseline_scores),
    }
    return [
        {
            "method": name,
            **shared,
            "attributions": [_numbers(row) for row in matrix],
            "completeness_errors": _numbers(segments.completeness_errors[name]),
        }
        for name, matrix in segments.methods.items()
    ]


def strongest_table(explanation: ContinuationExplanation, segments: SegmentExplanation) -> Table:
    """What was written, a row each: log probability, contrast, and the strongest sources by each method."""
    level = _level(explanation, segments)
    contrast = ["rather than"] if explanation.versus is not None else []
    columns = ["written", "log probability", *contrast, *(f"strongest by {name}" for name in segments.methods)]
    rows = [
        [target.text, target.log_probability, *([target.versus] if contrast else []), *target.strongest]
        for target in level.targets
    ]
    return Table(columns, rows)


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    """Float32s as the floats with the fewest digits that round to them; None for what is not finite."""
    if values is None:
        return None
    return [float(str(np.float32(value))) if np.isfinite(value) else None for value in values]
