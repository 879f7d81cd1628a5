"""How much each step of a reasoning trace influences each later one, as matrices, and how far two such matrices agree.

A matrix is float64 [source, target] on the host, NaN on and below the diagonal: no step influences an earlier one.

Source: Bogdan et al. 2025 (Thought Anchors).
"""

import numpy as np
import scipy
from jaxtyping import Bool, Float

Matrix = Float[np.ndarray, "source target"]


def resampling_matrix(
    best_cosines: Float[np.ndarray, "positions samples targets"], *, threshold: float = 0.8
) -> Matrix:
    """``I[i, j] = P(a rollout of R_{i+1} has a step like S_j) - P(a rollout of R_i has one)``, j > i.

    Args:
        best_cosines: for each rollout the largest cosine of one of its steps to each step S_j of the trace (-1 for a
            rollout without steps); positions 0, ..., M for M targets (position M may be missing).
        threshold: the cosine from which two steps are alike; 0.8 as published (0.5 in older comparisons).

    Raises:
        ValueError: not as many positions as targets, or one more.
    """
    positions, _, targets = best_cosines.shape
    if positions not in (targets, targets + 1):
        raise ValueError(f"{targets} targets need {targets} or {targets + 1} positions: got {positions}")
    rates = np.mean(best_cosines >= threshold, axis=1)
    matrix = np.full((targets, targets), np.nan)
    matrix[: positions - 1] = np.diff(rates, axis=0)
    return above_diagonal(matrix)


def normalised_by_target(matrix: Matrix) -> Matrix:
    """``C[j, i] - mean_{k < i} C[k, i]``: each target's influences as deviations from their mean over all sources."""
    matrix = above_diagonal(matrix)
    counts = np.maximum(np.sum(~np.isnan(matrix), axis=0), 1)
    return matrix - np.nansum(matrix, axis=0) / counts


def above_diagonal(matrix: Matrix) -> Matrix:
    """The matrix with NaN where source >= target.

    Raises:
        ValueError: not square.
    """
    matrix = np.array(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a matrix of steps must be square, [source, target]: got shape {matrix.shape}")
    matrix[np.tril_indices(len(matrix))] = np.nan
    return matrix


def distances(matrix: Matrix) -> Matrix:
    """``j - i`` above the diagonal."""
    places = np.arange(len(matrix), dtype=np.float64)
    return above_diagonal(places[None, :] - places[:, None])


def matrix_agreement(
    first: Matrix,
    second: Matrix,
    *,
    nearest: int = 1,
    farthest: int | None = None,
    detrended: bool = False,
) -> float:
    """Spearman correlation of two matrices over the pairs i < j that both define; NaN where it is undefined.

    Args:
        nearest, farthest: smallest and largest distance j - i that counts ("below 5" is farthest=4).
        detrended: correlate what is left of both after subtracting the mean of each distance: nearness alone makes
            matrices agree.

    Raises:
        ValueError: matrices of different size.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"matrices must be of one size: got {np.shape(first)} and {np.shape(second)}")
    apart = distances(first)
    with np.errstate(invalid="ignore"):
        kept = (apart >= nearest) & (apart <= (farthest or len(apart)))
    first, second = above_diagonal(first), above_diagonal(second)
    kept &= np.isfinite(first) & np.isfinite(second)
    a, b, of = first[kept], second[kept], apart[kept].astype(int)
    if detrended:
        a, b = _without_distance(a, of), _without_distance(b, of)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(a, b).statistic)


def edge_scores(
    matrix: Matrix, edges: Bool[np.ndarray, "source target"], *, where: Bool[np.ndarray, "source target"] | None = None
) -> tuple[Float[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Scores of the pairs i < j and whether each is an edge, for `area_under_roc` over one or several traces."""
    matrix = above_diagonal(matrix)
    kept = np.isfinite(matrix) if where is None else np.isfinite(matrix) & where
    return matrix[kept], np.asarray(edges, bool)[kept]


def area_under_roc(scores: Float[np.ndarray, " pairs"], edges: Bool[np.ndarray, " pairs"]) -> float:
    """``P(score of an edge > score of a non-edge)``, ties half (Mann-Whitney); NaN without edges or non-edges."""
    positive, negative = int(np.sum(edges)), int(np.sum(~edges))
    if not positive or not negative:
        return float("nan")
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[edges].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _without_distance(values: np.ndarray, distance: np.ndarray) -> np.ndarray:
    counts = np.maximum(np.bincount(distance), 1)
    return values - (np.bincount(distance, values) / counts)[distance]
