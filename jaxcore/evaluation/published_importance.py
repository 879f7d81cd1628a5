"""The released scores of Thought Anchors analysed again: an identity, importance by function, contrasts, agreement."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcore.attribution.sentence_matrices import matrix_agreement
from jaxcore.data.published_traces import PublishedTrace
from jaxcore.evaluation.reasoning_categories import (
    CategoryMean,
    category_means,
    compare_functions,
    convergence_index,
    function_means,
)

COUNTERFACTUAL, FORCED = "counterfactual_importance_kl", "forced_importance_kl"
CONTRASTS = {
    "plan_over_computation": (COUNTERFACTUAL, "plan_generation", "active_computation"),
    "doubt_over_computation": (COUNTERFACTUAL, "uncertainty_management", "active_computation"),
    "plan_over_facts": (COUNTERFACTUAL, "plan_generation", "fact_retrieval"),
    "forced_computation_over_plan": (FORCED, "active_computation", "plan_generation"),
}
"""Name -> score, the function said to be more important by it, the other."""


class PublishedAnalysis(NamedTuple):
    """Numbers by name, and importance by function of each (model, score)."""

    metrics: dict[str, float]
    table: dict[tuple[str, str], dict[str, CategoryMean]]


def analyse_published(traces: Sequence[PublishedTrace]) -> PublishedAnalysis:
    """All of it, from the traces of one or several models.

    Metrics:
        identity_error, identity_holds: largest deviation of the released resampling importance (accuracy form) of a
            sentence from the change of accuracy to the next one, and the share of pairs within 1e-9.
        CONTRAST/share, CONTRAST/evidence: share of traces in which the first function is more important, and -log10 of
            the one-sided Wilcoxon p, pooled over traces.
        agreement/all, agreement/near: mean Spearman correlation of suppression and resampling matrices over traces,
            and over pairs less than 5 sentences apart.
    """
    errors: list[float] = []
    by_score: dict[tuple[str, str], list[dict[str, float]]] = {}
    for trace in traces:
        change = np.diff(trace.scores["accuracy"]) - trace.scores["resampling_importance_accuracy"][:-1]
        errors += np.abs(change[(np.diff(trace.indices) == 1) & np.isfinite(change)]).tolist()
        stop = convergence_index(trace.scores["accuracy"])
        for score in (COUNTERFACTUAL, FORCED):
            found = function_means(trace.functions, trace.scores[score], indices=trace.indices, stop=stop)
            by_score.setdefault((trace.model.removeprefix("deepseek-r1-distill-"), score), []).append(found)
    metrics = {
        "traces": float(len(traces)),
        "identity_pairs": float(len(errors)),
        "identity_error": max(errors),
        "identity_holds": float(np.mean(np.asarray(errors) <= 1e-9)),
    }
    for name, (score, greater, smaller) in CONTRASTS.items():
        pooled = [trace for (_, of), found in by_score.items() if of == score for trace in found]
        test = compare_functions(pooled, greater, smaller)
        metrics |= {f"{name}/share": test.share, f"{name}/evidence": -float(np.log10(test.p_value))}
    pairs = [(t.suppression, t.resampling) for t in traces if t.suppression is not None and t.resampling is not None]
    for label, farthest in (("all", None), ("near", 4)) if pairs else ():
        metrics[f"agreement/{label}"] = float(np.nanmean([matrix_agreement(*p, farthest=farthest) for p in pairs]))
    return PublishedAnalysis(metrics, {key: category_means(found) for key, found in by_score.items()})


def reproduced_share(
    table: Mapping[tuple[str, str], Mapping[str, CategoryMean]],
    printed: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]],
) -> float:
    """Share of the printed (mean, standard error) pairs that come out to three decimals.

    Raises:
        ValueError: nothing of what was printed is in the table.
    """
    held = [
        max(abs(table[key][name].mean - mean), abs(table[key][name].standard_error - error)) <= 0.0005 + 1e-9
        for key, cells in printed.items()
        if key in table
        for name, (mean, error) in cells.items()
    ]
    if not held:
        raise ValueError(f"no printed number is of {sorted(table)}: expected some of {sorted(printed)}")
    return float(np.mean(held))
