"""Human raters: how far they agree beyond chance, and averages in which every rater counts the same."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


def fleiss_kappa(counts: Int[np.ndarray, "items categories"]) -> float:
    """``(P - P_e) / (1 - P_e)``, agreement beyond chance of ratings n_ij (items i, categories j).

        P = mean_i sum_j n_ij (n_ij - 1) / (n_i (n_i - 1)),   P_e = sum_j (sum_i n_ij / sum_ij n_ij)^2

    Items may have different numbers of ratings; those with fewer than two say nothing and are left out.

    Raises:
        ValueError: counts that are no table of numbers >= 0, no item with two ratings, or all ratings of one category
            (chance agreement is 1).

    Source: Fleiss 1971.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or not np.all(counts >= 0):
        raise ValueError(f"counts must be [items, categories], none below 0: got {counts.shape}")
    totals = counts.sum(1, keepdims=True)
    counts, totals = counts[totals[:, 0] > 1], totals[totals[:, 0] > 1]
    if not len(counts):
        raise ValueError("fleiss_kappa needs an item with at least two ratings")
    observed = float(np.mean(np.sum(counts * (counts - 1), axis=1) / (totals * (totals - 1))[:, 0]))
    expected = float(np.sum((counts.sum(0) / counts.sum()) ** 2))
    if expected == 1:
        raise ValueError("fleiss_kappa is undefined: all ratings are of one category")
    return (observed - expected) / (1 - expected)


def mean_over_raters(values: ArrayLike, raters: Sequence[Hashable]) -> Float[np.ndarray, " measures"]:
    """``mean_r mean_{i of r} values_i``: first over the ratings of each rater, then over raters.

    Args:
        values: [ratings, measures].
        raters: who gave each rating.

    Raises:
        ValueError: no rating, or lengths that differ.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not len(table) or len(table) != len(raters):
        raise ValueError(
            f"values must be [ratings, measures] with a rater each: got {table.shape} and {len(raters)} raters"
        )
    rows: dict[Hashable, list[int]] = {}
    for row, rater in enumerate(raters):
        rows.setdefault(rater, []).append(row)
    return np.mean([np.mean(table[chosen], axis=0) for chosen in rows.values()], axis=0)
