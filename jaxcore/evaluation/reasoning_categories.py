"""Importance of sentences by their function: means within a trace, then over traces, which are the units.

Source: Bogdan et al. 2025 (Thought Anchors), released `plots.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int

from jaxcore.data.reasoning_taxonomy import UNKNOWN


class CategoryMean(NamedTuple):
    """Mean over traces of the traces' means, its standard error, and the number of traces with such a sentence."""

    mean: float
    standard_error: float
    num_traces: int


class PairedComparison(NamedTuple):
    """Whether one function is more important than another, over the traces that have both."""

    share: float
    """Of traces in which it is."""
    p_value: float
    """One-sided Wilcoxon signed-rank test."""
    num_traces: int


def convergence_index(
    accuracies: Float[np.ndarray, " sentences"], *, run: int = 4, high: float = 0.99, low: float = 0.01
) -> int | None:
    """The first position from which `run` accuracies in a row are all above `high` or all below `low`; None without.

    From there on the answer is settled. As released, the last `run` + 1 positions start no such row.
    """
    for start in range(len(accuracies) - run - 1):
        window = accuracies[start : start + run]
        if np.all(window > high) or np.all(window < low):
            return start
    return None


def function_means(
    functions: Sequence[str],
    importances: Float[np.ndarray, " sentences"],
    *,
    indices: Int[np.ndarray, " sentences"] | None = None,
    stop: int | None = None,
) -> dict[str, float]:
    """Mean importance of a trace's sentences of each function; negative importances count as 0.

    Args:
        indices: of the sentences in the trace; 0, 1, ... by default.
        stop: index from which sentences are left out (`convergence_index`); None: none are.

    Raises:
        ValueError: not as many importances as functions.
    """
    if len(functions) != len(importances):
        raise ValueError(f"{len(functions)} functions, but {len(importances)} importances")
    places = np.arange(len(functions)) if indices is None else np.asarray(indices)
    kept = places < stop if stop is not None else np.ones(len(places), bool)
    values: dict[str, list[float]] = {}
    for function, importance, keep in zip(functions, importances, kept, strict=True):
        if keep and function != UNKNOWN:
            values.setdefault(function, []).append(max(float(importance), 0.0))
    return {function: float(np.mean(found)) for function, found in values.items()}


def category_means(traces: Sequence[Mapping[str, float]]) -> dict[str, CategoryMean]:
    """Over traces, from their `function_means`; functions of fewer than three traces are left out."""
    found: dict[str, CategoryMean] = {}
    for function in sorted({name for trace in traces for name in trace}):
        values = [trace[function] for trace in traces if function in trace]
        if len(values) >= 3:
            error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
            found[function] = CategoryMean(float(np.mean(values)), error, len(values))
    return found


def compare_functions(traces: Sequence[Mapping[str, float]], greater: str, smaller: str) -> PairedComparison:
    """Is `greater` more important than `smaller`, trace by trace?

    Raises:
        ValueError: no trace has both.
    """
    pairs = [(trace[greater], trace[smaller]) for trace in traces if greater in trace and smaller in trace]
    if not pairs:
        raise ValueError(f"no trace has sentences of both {greater} and {smaller}")
    difference = np.diff(np.asarray(pairs)[:, ::-1], axis=1)[:, 0]
    p_value = float(scipy.stats.wilcoxon(difference, alternative="greater").pvalue) if np.any(difference != 0) else 1.0
    return PairedComparison(float(np.mean(difference > 0)), p_value, len(pairs))
