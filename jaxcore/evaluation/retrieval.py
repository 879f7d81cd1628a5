"""Retrieval measures from where the relevant keys stand: recall, mean recall, MRR, MAP, nDCG, with intervals.

Every measure follows from two counts per relevant key (keys above it, keys equal to it), which
`jaxcore.evaluation.similarity_search.target_ranks` gathers on device without sorting or storing scores. The arithmetic
here is float64 on the host.

Ties. Keys of one score have no order; a measure has to choose one. `ties` places the relevant keys of a tied group
last ("pessimistic", the default: an encoder that maps everything to one point finds nothing), at their expected places
under a random order ("average"), or first ("optimistic"). MAP and nDCG follow scikit-learn instead, and say how.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval
from jaxcore.evaluation.input_checks import positive_integer
from jaxcore.evaluation.similarity_search import KEY_BLOCK, QUERY_BLOCK, RankCounts, target_ranks

Ties = Literal["pessimistic", "average", "optimistic"]
Relevance = np.ndarray | jax.Array | Sequence[Sequence[int] | np.ndarray]


# ---- ranks and measures --------------------------------------------------------------------------------------


def ranks_from_counts(counts: RankCounts, *, ties: Ties = "pessimistic") -> Float[np.ndarray, "n p"]:
    """Ranks from 1 of every target, infinite at padding.

    In a group of E tied keys below `above` others, of which r are targets of the query, the o-th target (in the order
    listed) has rank ``above + E - r + o`` (pessimistic), ``above + o (E + 1) / (r + 1)`` (average: the mean over all
    orders of the group), or ``above + o`` (optimistic).

    Args:
        counts: from `target_ranks`; [n, p], `above` -1 at padding.
        ties: "pessimistic", "average" or "optimistic".
    Raises:
        ValueError: counts not two integer matrices of one shape, a query without targets, unknown `ties`.
    """
    if ties not in ("pessimistic", "average", "optimistic"):
        raise ValueError(f"ties must be 'pessimistic', 'average' or 'optimistic', got {ties!r}")
    order, above, size = _best_first(counts)
    first, last = _runs(above)
    members, ordinal = last - first + 1, np.arange(above.shape[1]) - first + 1
    # A tolerance that chains near-ties can leave a group smaller than its targets.
    size = np.maximum(size, members)
    if ties == "pessimistic":
        sorted_ranks = (above + size - members + ordinal).astype(np.float64)
    elif ties == "average":
        sorted_ranks = above + ordinal * (size + 1.0) / (members + 1.0)
    else:
        sorted_ranks = (above + ordinal).astype(np.float64)
    ranks = np.empty_like(sorted_ranks)
    np.put_along_axis(ranks, order, np.where(above < 0, np.inf, sorted_ranks), axis=1)
    return ranks


def recall_at_k(counts: RankCounts, *, k: int, ties: Ties = "pessimistic") -> float:
    """R@K of cross-modal retrieval: the share of queries with at least one relevant key among their first k.

    Args:
        counts: from `target_ranks`.
        k: >= 1.
        ties: see the module.
    Raises:
        ValueError: as `ranks_from_counts`; k < 1.
    """
    return float(_found_by(ranks_from_counts(counts, ties=ties), k).any(axis=1).mean())


def relevant_share_at_k(counts: RankCounts, *, k: int, ties: Ties = "pessimistic") -> float:
    """Recall of information retrieval: the share of a query's relevant keys among its first k, averaged over queries.

    Equal to `recall_at_k` where every query has one relevant key.

    Args:
        counts, k, ties: as in `recall_at_k`.
    Raises:
        ValueError: as `recall_at_k`.
    """
    ranks = ranks_from_counts(counts, ties=ties)
    return float((_found_by(ranks, k).sum(axis=1) / np.isfinite(ranks).sum(axis=1)).mean())


def mean_recall(
    forward: RankCounts, backward: RankCounts, *, ks: Sequence[int] = (1, 5, 10), ties: Ties = "pessimistic"
) -> float:
    """mR: mean of R@K over `ks` and both directions (image to text, text to image).

    Args:
        forward, backward: from `target_ranks`, one per direction.
        ks: cut-offs; 1, 5, 10 in the literature.
        ties: see the module.
    Raises:
        ValueError: as `recall_at_k`; no cut-off.
    """
    _check_cutoffs(ks)
    return float(np.mean([recall_at_k(counts, k=k, ties=ties) for counts in (forward, backward) for k in ks]))


def mean_reciprocal_rank(counts: RankCounts, *, ties: Ties = "pessimistic") -> float:
    """MRR: mean over queries of 1 / rank of the first relevant key.

    Args:
        counts, ties: as in `recall_at_k`.
    Raises:
        ValueError: as `ranks_from_counts`.
    """
    return float((1 / ranks_from_counts(counts, ties=ties).min(axis=1)).mean())


def mean_average_precision(counts: RankCounts) -> float:
    """MAP: ``mean_q (1 / |R_q|) sum_{r in R_q} #{relevant scored >= r} / #{keys scored >= r}``.

    Tied keys enter the ranking together, as in `sklearn.metrics.average_precision_score`.

    Args:
        counts: from `target_ranks`; all relevant keys of a query must be among its targets.
    Raises:
        ValueError: as `ranks_from_counts`.
    """
    return float(_average_precisions(counts).mean())


def ndcg_at_k(counts: RankCounts, gains: Float[ArrayLike, "n p"] | None = None, *, k: int | None = 10) -> float:
    """nDCG: ``DCG@k / DCG@k of the best order``, ``DCG@k = sum_{rank <= k} gain / log2(1 + rank)``; mean over queries.

    A tied key counts with the mean discount of the places its group takes, which is the mean over all orders of the
    group and what `sklearn.metrics.ndcg_score` computes.

    Args:
        counts: from `target_ranks`; every key of positive gain must be among the targets.
        gains: [n, p] >= 0, entries at padding ignored; None is 1 for every target. They enter linearly: pass
            ``2 ** grade - 1`` for the exponential form.
        k: cut-off, or None for the whole ranking.
    Raises:
        ValueError: as `ranks_from_counts`; gains of another shape, negative, not finite, or all 0 for a query; k < 1.
    """
    return float(_ndcg(counts, gains, k).mean())


# ---- from embeddings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RetrievalEvaluation:
    """Retrieval measured from embeddings.

    Attributes:
        metrics: "recall@K", "share@K", "mrr", "map", "ndcg@K" (means over queries) and "median rank" (of the first
            relevant key).
        per_query: for each metric but the median, its value [n] for every query; "rank" holds the first ranks. Rows of
            two encoders on the same queries are what paired tests and bootstraps compare.
        counts: what everything was computed from.
    """

    metrics: dict[str, float]
    per_query: dict[str, Float[np.ndarray, "n"]]
    counts: RankCounts


def evaluate_retrieval(
    queries: Float[ArrayLike, "n dim"],
    keys: Float[ArrayLike, "m dim"],
    relevance: Relevance,
    *,
    gains: Float[ArrayLike, "n p"] | Sequence[Sequence[float]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "pessimistic",
    normalize: bool = True,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    mesh: Mesh | None = None,
) -> RetrievalEvaluation:
    """All measures of one direction of retrieval; scores are computed in tiles and never stored.

    Args:
        queries, keys, normalize, query_block, key_block, mesh: as in `similarity_search.target_ranks`.
        relevance: the relevant keys of every query: [n], [n, p] padded with -1, or n sequences of any lengths >= 1
            (padded to the longest; the work on scores grows with that length).
        gains: graded relevance for nDCG, of the form of `relevance`; None is 1 for every relevant key.
        ks: cut-offs of recall, share and nDCG.
        ties: see the module.
    Raises:
        ValueError: as `target_ranks`, `ndcg_at_k`; a query without relevant keys; no cut-off.
    """
    _check_cutoffs(ks)
    targets = padded_relevance(relevance)
    counts = target_ranks(
        queries, keys, targets, normalize=normalize, query_block=query_block, key_block=key_block, mesh=mesh
    )
    counts = jax.device_get(counts)
    ranks = ranks_from_counts(counts, ties=ties)
    first, number = ranks.min(axis=1), np.isfinite(ranks).sum(axis=1)
    of_gains = None if gains is None else _padded_gains(gains, targets)
    per_query = {
        **{f"recall@{k}": _found_by(ranks, k).any(axis=1).astype(np.float64) for k in ks},
        **{f"share@{k}": _found_by(ranks, k).sum(axis=1) / number for k in ks},
        "mrr": 1 / first,
        "map": _average_precisions(counts),
        **{f"ndcg@{k}": _ndcg(counts, of_gains, k) for k in ks},
    }
    metrics = {name: float(values.mean()) for name, values in per_query.items()}
    return RetrievalEvaluation(
        {**metrics, "median rank": float(np.median(first))}, {**per_query, "rank": first}, counts
    )


class CrossModalEvaluation(NamedTuple):
    """Both directions, and their mean recall over the cut-offs."""

    forward: RetrievalEvaluation
    backward: RetrievalEvaluation
    mean_recall: float


def evaluate_cross_modal(
    first: Float[ArrayLike, "n dim"],
    second: Float[ArrayLike, "m dim"],
    relevance: Relevance,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "pessimistic",
    normalize: bool = True,
    mesh: Mesh | None = None,
) -> CrossModalEvaluation:
    """Retrieval of `second` by `first` and of `first` by `second` (images and their captions), and mR.

    Args:
        first, second: embeddings; rows of `second` that belong to no row of `first` are distractors: never queries.
        relevance: for every row of `first` its rows of `second`, as in `evaluate_retrieval`.
        ks, ties, normalize, mesh: as there.
    Raises:
        ValueError: as `evaluate_retrieval`.
    """
    targets = padded_relevance(relevance)
    forward = evaluate_retrieval(first, second, targets, ks=ks, ties=ties, normalize=normalize, mesh=mesh)
    rows, columns = np.nonzero(targets >= 0)
    owners, owned = targets[rows, columns], rows
    by_owner = np.argsort(owners, kind="stable")
    present, starts = np.unique(owners[by_owner], return_index=True)
    inverse = np.split(owned[by_owner], starts[1:])
    backward = evaluate_retrieval(
        np.asarray(second)[present], first, inverse, ks=ks, ties=ties, normalize=normalize, mesh=mesh
    )
    recalls = [side.metrics[f"recall@{k}"] for side in (forward, backward) for k in ks]
    return CrossModalEvaluation(forward, backward, float(np.mean(recalls)))


def retrieval_intervals(
    evaluation: RetrievalEvaluation,
    *,
    groups: Sequence | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    rng: np.random.Generator | int = 0,
) -> Mapping[str, ConfidenceInterval]:
    """Percentile bootstrap interval of every mean in `evaluation.metrics`, over queries or groups of queries.

    Args:
        evaluation: from `evaluate_retrieval`.
        groups, level, resamples, rng: as in `bootstrap_interval` (captions of one image belong together).
    Raises:
        ValueError: as `bootstrap_interval`.
    """
    return {
        name: bootstrap_interval(values, groups=groups, level=level, resamples=resamples, rng=rng)
        for name, values in evaluation.per_query.items()
        if name in evaluation.metrics
    }


def padded_relevance(relevance: Relevance) -> Int[np.ndarray, "n p"]:
    """Relevant keys of every query as one integer matrix, padded with -1 behind.

    Raises:
        ValueError: not integers, no query, or a query without relevant keys.
    """
    if isinstance(relevance, np.ndarray | jax.Array):
        targets = np.asarray(relevance)
        targets = targets[:, None] if targets.ndim == 1 else targets
        if targets.ndim != 2 or targets.dtype.kind not in "iu" or 0 in targets.shape:
            raise ValueError(f"relevance must be integers [n] or [n, p], got {targets.dtype} {targets.shape}")
        return targets.astype(np.int64)
    rows = [np.atleast_1d(np.asarray(row)) for row in relevance]
    if not rows:
        raise ValueError("relevance is empty; pass the relevant keys of at least one query")
    for query, row in enumerate(rows):
        if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
            raise ValueError(
                f"relevance of query {query} must be one or more integers, got {row.dtype} {row.shape}; "
                "drop queries without a relevant key"
            )
    targets = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for query, row in enumerate(rows):
        targets[query, : len(row)] = row
    return targets


# ---- arithmetic ------------------------------------------------------------------------------------------------


def _checked_counts(counts: RankCounts) -> tuple[Int[np.ndarray, "n p"], Int[np.ndarray, "n p"]]:
    """Keys above, and size of the tied group that the target itself belongs to."""
    above, equal = (np.asarray(array) for array in counts)
    if (
        above.ndim != 2
        or above.shape != equal.shape
        or 0 in above.shape
        or {above.dtype.kind, equal.dtype.kind} - {*"iu"}
    ):
        raise ValueError(
            f"counts must hold two integer [n, p] arrays, got {above.dtype} {above.shape} and "
            f"{equal.dtype} {equal.shape}; pass what target_ranks returns"
        )
    empty = np.flatnonzero((above < 0).all(axis=1))
    if empty.size:
        raise ValueError(f"{empty.size} queries have no target, first query {empty[0]}; drop those queries")
    return above.astype(np.int64), equal.astype(np.int64) + 1


def _best_first(counts: RankCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order that sorts every query's targets, padding last; keys above and group sizes in that order."""
    above, size = _checked_counts(counts)
    order = np.argsort(np.where(above < 0, np.iinfo(np.int64).max, above), axis=1, kind="stable")
    return order, np.take_along_axis(above, order, axis=1), np.take_along_axis(size, order, axis=1)


def _runs(rows: Int[np.ndarray, "n p"]) -> tuple[Int[np.ndarray, "n p"], Int[np.ndarray, "n p"]]:
    """First and last place of the run of equal values that every entry of sorted rows belongs to."""
    num_rows, width = rows.shape
    places = np.broadcast_to(np.arange(width), rows.shape)
    changes = rows[:, 1:] != rows[:, :-1]
    edge = np.ones((num_rows, 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), places, 0), axis=1)
    ends = np.where(np.hstack([changes, edge]), places, width)
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _found_by(ranks: Float[np.ndarray, "n p"], k: int) -> np.ndarray:
    return ranks <= positive_integer("k", k)


def _check_cutoffs(ks: Sequence[int]) -> None:
    if not len(ks):
        raise ValueError("ks is empty; name at least one cut-off, for example (1, 5, 10)")
    for k in ks:
        positive_integer("k", k)


def _average_precisions(counts: RankCounts) -> Float[np.ndarray, "n"]:
    _, above, size = _best_first(counts)
    reached = _runs(above)[1] + 1  # relevant keys that score at least as high
    precisions = np.where(above >= 0, reached / np.maximum(above + size, reached), 0.0)
    return precisions.sum(axis=1) / (above >= 0).sum(axis=1)


def _ndcg(counts: RankCounts, gains: Any, k: int | None) -> Float[np.ndarray, "n"]:
    above, size = _checked_counts(counts)
    weights = _checked_gains(gains, above)
    cut = max(int((above + size).max()), above.shape[1]) if k is None else positive_integer("k", k)
    discounts = 1 / np.log2(np.arange(2, cut + 2))
    total = np.concatenate([[0.0], np.cumsum(discounts)])
    start = np.maximum(above, 0)
    discount = (total[np.minimum(start + size, cut)] - total[np.minimum(start, cut)]) / size
    ideal = -np.sort(-weights, axis=1)[:, :cut]
    return (weights * discount).sum(axis=1) / (ideal * discounts[: ideal.shape[1]]).sum(axis=1)


def _checked_gains(gains: Any, above: Int[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    """Gains in float64, 0 at padding."""
    values = np.ones(above.shape) if gains is None else np.asarray(gains).astype(np.float64)
    if values.shape != above.shape:
        raise ValueError(f"gains must have the shape of the targets {above.shape}, got {values.shape}")
    values = np.where(above < 0, 0.0, values)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("gains must be finite and >= 0; shift negative grades first")
    worthless = np.flatnonzero(~values.any(axis=1))
    if worthless.size:
        raise ValueError(
            f"{worthless.size} queries have no key of positive gain, first query {worthless[0]}; drop those queries"
        )
    return values


def _padded_gains(gains: Any, targets: Int[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    if isinstance(gains, np.ndarray | jax.Array):
        values = np.asarray(gains)
        return values[:, None] if values.ndim == 1 else values
    values = np.zeros(targets.shape)
    lengths = (targets >= 0).sum(axis=1)
    if [np.size(row) for row in gains] != lengths.tolist():
        raise ValueError("gains must have one entry per relevant key of every query; their lengths differ")
    for query, row in enumerate(gains):
        values[query, : lengths[query]] = row
    return values
