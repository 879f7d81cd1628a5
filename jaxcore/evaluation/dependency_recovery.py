"""Do influences between sentences point at known dependencies? Area under ROC, against distance alone."""

from collections.abc import Sequence

import numpy as np

from jaxcore.attribution.sentence_matrices import Matrix, area_under_roc, distances, edge_scores
from jaxcore.data.reasoning_trace import ReasoningTrace


def dependency_auc(
    traces: Sequence[ReasoningTrace], matrices: Sequence[Matrix], *, targets: Sequence[str], nearest: int = 1
) -> tuple[float, float]:
    """AUC of the influences, and of minus the distance, over all pairs of all traces.

    Args:
        traces: with `edges`.
        matrices: influences [source, target] of each.
        targets: functions of the sentences whose dependencies are asked for.
        nearest: smallest distance of a pair that counts.

    Raises:
        ValueError: a trace without edges.
    """
    influences, nearness = [], []
    for trace, matrix in zip(traces, matrices, strict=True):
        if trace.edges is None:
            raise ValueError(f"the dependencies of {trace.name} are not known")
        apart = distances(matrix)
        where = np.isin(trace.functions, list(targets))[None, :] & (np.nan_to_num(apart) >= nearest)
        influences.append(edge_scores(matrix, trace.edges, where=where))
        nearness.append(edge_scores(-apart, trace.edges, where=where))
    first, second = (
        area_under_roc(*(np.concatenate(side) for side in zip(*pairs, strict=True))) for pairs in (influences, nearness)
    )
    return first, second
