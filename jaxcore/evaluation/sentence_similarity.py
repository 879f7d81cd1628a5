"""Semantic textual similarity: rank correlation between cosines of sentence embeddings and graded judgements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval
from jaxcore.evaluation.input_checks import class_codes, finite_array, same_length

Aggregation = Literal["all", "mean", "weighted mean"]
Embed = Callable[[Any], ArrayLike]


class SentencePairs(Protocol):
    """Pairs with a graded similarity: two columns of sentences, or of row numbers, their gold and their subsets."""

    @property
    def first(self) -> Sequence: ...
    @property
    def second(self) -> Sequence: ...
    @property
    def gold(self) -> Any: ...
    @property
    def subset(self) -> Sequence: ...


def pearson(x: Float[ArrayLike, "n"], y: Float[ArrayLike, "n"]) -> float:
    """Pearson's correlation, ``sum_i (x_i - mx)(y_i - my) / sqrt(sum_i (x_i - mx)^2 sum_i (y_i - my)^2)``.

    Args:
        x, y: [n] finite values, n >= 2. A side without spread carries no information: the result is 0.
    Raises:
        ValueError: lengths differ, fewer than two values, NaN.
    """
    first, second = _paired(x=x, y=y)
    return _correlation(first, second)


def spearman(x: Float[ArrayLike, "n"], y: Float[ArrayLike, "n"]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, tied values sharing the mean of their ranks.

    Args:
        x, y: [n] finite values, n >= 2. A side without spread (a collapsed encoder) carries no order: the result is 0.
    Raises:
        ValueError: lengths differ, fewer than two values, NaN.
    Source: debcse.md, Metrics (average ranks for ties).
    """
    first, second = _paired(x=x, y=y)
    return _correlation(scipy.stats.rankdata(first), scipy.stats.rankdata(second))


def partial_spearman(
    x: Float[ArrayLike, "n"], y: Float[ArrayLike, "n"], given: Float[ArrayLike, "n"] | Float[ArrayLike, "n c"]
) -> float:
    """Spearman's correlation of x and y that `given` does not explain.

    Ranks of x and of y are each regressed (least squares, with intercept) on the ranks of every column of `given`;
    the result is Pearson's correlation of the residuals. A side that `given` determines leaves nothing: 0. With x the
    cosines of a model, y the surface similarity of the pairs and `given` their gold scores this is a model's surface
    bias: what its cosines owe to shared words beyond what shared meaning explains.

    Args:
        x, y: [n] finite values.
        given: [n], or [n, c] for several covariates.
    Raises:
        ValueError: lengths differ, n <= c + 2, NaN.
    Source: debcse.md, Metrics (bias diagnostics, rho(cos, phi | gold)).
    """
    first, second = _paired(x=x, y=y)
    covariates = finite_array("given", given)
    if covariates.ndim > 2:
        raise ValueError(f"given must be [n] or [n, c], got shape {covariates.shape}")
    covariates = covariates.reshape(len(covariates), -1)
    same_length(x=first, given=covariates)
    if len(first) <= covariates.shape[1] + 2:
        raise ValueError(
            f"{len(first)} pairs leave no residual beside {covariates.shape[1]} covariates; "
            f"pass more than {covariates.shape[1] + 2} pairs"
        )
    centred = [column - column.mean() for column in map(scipy.stats.rankdata, (first, second, *covariates.T))]
    design = np.stack(centred[2:], axis=1)
    targets = np.stack(centred[:2], axis=1)
    residuals = targets - design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    # What is left of a determined side is rounding, which correlates with anything.
    determined = np.linalg.norm(residuals, axis=0) <= 1e-9 * np.linalg.norm(targets, axis=0)
    return 0.0 if determined.any() else _correlation(residuals[:, 0], residuals[:, 1])


def sts_score(
    similarities: Float[ArrayLike, "n"],
    gold: Float[ArrayLike, "n"],
    *,
    subset: Shaped[np.ndarray, "n"] | Sequence | None = None,
    aggregation: Aggregation = "all",
) -> float:
    """Spearman's correlation of predicted similarities with gold scores, over the subsets of a task.

    "all" concatenates the subsets and takes one coefficient: the protocol of the published sentence-embedding tables.
    "mean" averages the subsets' coefficients, "weighted mean" weights them by their number of pairs; both forgive an
    offset between subsets that "all" does not, so numbers of different aggregations do not compare.

    Args:
        similarities: [n] for example cosines; all equal gives 0.
        gold: [n] human scores, any scale.
        subset: [n] name of each pair's subset; None for a task without.
        aggregation: "all", "mean" or "weighted mean".
    Raises:
        ValueError: lengths differ, NaN, fewer than two pairs (in a subset, unless "all"), gold without spread,
            unknown aggregation, or a mean without `subset`.
    Source: debcse.md and whitenedcse.md, Metrics (SentEval's "all" score); SentEval, sts (mean, weighted mean).
    """
    predicted, scores = _paired(similarities=similarities, gold=gold)
    codes = _subset_codes(len(scores), subset, aggregation)
    for name in range(codes.max() + 1):
        of_subset = scores[codes == name]
        if np.ptp(of_subset) == 0:
            raise ValueError(
                f"all {len(of_subset)} gold scores of a task or subset are {of_subset[0]:g}; "
                "a correlation needs at least two pairs that differ"
            )
    return _aggregate(predicted, scores, codes, aggregation)


@dataclass(frozen=True, eq=False)
class PairSimilarities:
    """What a model says of a task's pairs, one entry per pair, for bootstraps and paired tests.

    Attributes:
        similarities: [n] cosines.
        gold: [n] human scores.
        subset: [n] subset codes, all 0 under the aggregation "all".
        aggregation: how the subsets are put together.
        score: Spearman's correlation so aggregated.
    """

    similarities: Float[np.ndarray, "n"]
    gold: Float[np.ndarray, "n"]
    subset: Int[np.ndarray, "n"]
    aggregation: Aggregation
    score: float


@dataclass(frozen=True, eq=False)
class StsEvaluation:
    """Scores of an encoder on several similarity tasks.

    Attributes:
        scores: Spearman's correlation per task, in [-1, 1].
        average: their plain mean.
        pairs: per task, the similarities behind its score.
        num_sentences: distinct sentences that were embedded.
    """

    scores: dict[str, float]
    average: float
    pairs: dict[str, PairSimilarities]
    num_sentences: int


def evaluate_sts(
    embed: Embed, tasks: Mapping[str, SentencePairs], *, aggregation: Aggregation = "all"
) -> StsEvaluation:
    """The STS protocol: cosine of the two sentences of every pair, against the gold scores; no regression head.

    Args:
        embed: called once, with every distinct sentence of all tasks in order of first appearance: a list of strings
            (or, where the pairs hold row numbers, an integer array), returns [n, dim]. A zero vector has cosine 0 with
            anything.
        tasks: task name -> pairs with `first`, `second`, `gold`, `subset` of one length (subset may be empty).
        aggregation: as in `sts_score`.
    Raises:
        ValueError: no task, a task without pairs or with columns of different lengths, `embed` returning another
            number of rows, NaN (the sentence is named), or as `sts_score`.
    Source: debcse.md, Metrics ("all" per task, plain mean over tasks).
    """
    if not tasks:
        raise ValueError("there are no tasks to evaluate; pass at least one task with graded pairs")
    for name, task in tasks.items():
        same_length(**{f"{name}.first": task.first, f"{name}.second": task.second, f"{name}.gold": task.gold})
        if len(task.gold) < 2:
            raise ValueError(f"task {name!r} has {len(task.gold)} pairs; a correlation needs at least two")
    numbers: dict[Any, int] = {}
    sides = {
        name: tuple([numbers.setdefault(s, len(numbers)) for s in column] for column in (task.first, task.second))
        for name, task in tasks.items()
    }
    unit = _embed_sentences(embed, list(numbers))
    pairs = {
        name: _pair_similarities(unit[sides[name][0]], unit[sides[name][1]], task, aggregation)
        for name, task in tasks.items()
    }
    scores = {name: task.score for name, task in pairs.items()}
    return StsEvaluation(scores, float(np.mean(list(scores.values()))), pairs, len(numbers))


def similarity_intervals(
    evaluation: StsEvaluation,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | int = 0,
) -> dict[str, ConfidenceInterval]:
    """Percentile bootstrap interval of every task's score, over its pairs.

    Args:
        evaluation: from `evaluate_sts`.
        level, resamples, rng: as in `bootstrap_interval`; a seed serves every task.
    Raises:
        ValueError: as `bootstrap_interval`.
    """
    return {
        name: bootstrap_interval(
            np.stack([task.similarities, task.gold, task.subset], axis=1),
            statistic=partial(_score_of_rows, aggregation=task.aggregation),
            level=level,
            resamples=resamples,
            rng=rng,
        )
        for name, task in evaluation.pairs.items()
    }


def similarity_gain_intervals(
    evaluation: StsEvaluation,
    baseline: StsEvaluation,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | int = 0,
) -> dict[str, ConfidenceInterval]:
    """Percentile bootstrap interval of score(evaluation) - score(baseline) per task, both on the same resampled pairs.

    Pairing removes the spread that both share: far narrower than the difference of two separate intervals.

    Args:
        evaluation, baseline: from `evaluate_sts` on the same tasks.
        level, resamples, rng: as in `bootstrap_interval`.
    Raises:
        ValueError: the two were measured on different tasks, pairs or aggregations; as `bootstrap_interval`.
    """
    if evaluation.pairs.keys() != baseline.pairs.keys():
        raise ValueError(f"tasks differ: {sorted(evaluation.pairs)} and {sorted(baseline.pairs)}; compare equal tasks")
    intervals = {}
    for name, task in evaluation.pairs.items():
        other = baseline.pairs[name]
        if not np.array_equal(task.gold, other.gold) or task.aggregation != other.aggregation:
            raise ValueError(f"task {name!r} has other pairs or another aggregation in the baseline; evaluate it alike")
        intervals[name] = bootstrap_interval(
            np.stack([task.similarities, task.gold, task.subset, other.similarities], axis=1),
            statistic=partial(_gain_of_rows, aggregation=task.aggregation),
            level=level,
            resamples=resamples,
            rng=rng,
        )
    return intervals


def _paired(**sides: Any) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    checked = {name: finite_array(name, values, ndim=1) for name, values in sides.items()}
    same_length(**checked)
    first, second = checked.values()
    if len(first) < 2:
        raise ValueError(f"a correlation needs at least two pairs, got {len(first)}; pass more pairs")
    return first, second


def _correlation(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    # Scaled first: squares of deviations below 1e-154 or above 1e154 leave the range of float64.
    unit = [centred / np.linalg.norm(centred) for centred in ((s - s.mean()) / np.ptp(s) for s in (x, y))]
    return float(np.clip(unit[0] @ unit[1], -1.0, 1.0))


def _subset_codes(num_pairs: int, subset: Any, aggregation: str) -> Int[np.ndarray, "n"]:
    if aggregation not in ("all", "mean", "weighted mean"):
        raise ValueError(f"aggregation must be 'all', 'mean' or 'weighted mean', got {aggregation!r}")
    if aggregation == "all":
        return np.zeros(num_pairs, dtype=np.int64)
    if subset is None or len(subset) == 0:
        raise ValueError(f"aggregation {aggregation!r} averages over subsets; pass subset=, one name per pair")
    codes, _ = class_codes("subset", subset)
    same_length(subset=codes, gold=np.empty(num_pairs))
    return codes


def _aggregate(similarities: np.ndarray, gold: np.ndarray, subset: np.ndarray, aggregation: Aggregation) -> float:
    """Inputs already checked; a subset without spread, as a resample can have it, counts as 0."""
    if aggregation == "all":
        return _correlation(scipy.stats.rankdata(similarities), scipy.stats.rankdata(gold))
    names, sizes = np.unique(subset, return_counts=True)
    members = [subset == name for name in names]
    scores = [_correlation(scipy.stats.rankdata(similarities[m]), scipy.stats.rankdata(gold[m])) for m in members]
    return float(np.average(scores, weights=sizes if aggregation == "weighted mean" else None))


def _score_of_rows(rows: Float[np.ndarray, "n columns"], *, aggregation: Aggregation) -> float:
    """Columns: similarities, gold, subset."""
    return _aggregate(rows[:, 0], rows[:, 1], rows[:, 2], aggregation)


def _gain_of_rows(rows: Float[np.ndarray, "n columns"], *, aggregation: Aggregation) -> float:
    """Columns: similarities, gold, subset, similarities of the baseline."""
    return _score_of_rows(rows, aggregation=aggregation) - _score_of_rows(rows[:, [3, 1, 2]], aggregation=aggregation)


def _embed_sentences(embed: Embed, sentences: list) -> Float[np.ndarray, "n dim"]:
    """Unit rows in float64, zero rows where the embedding is zero."""
    kinds = {isinstance(sentence, str) for sentence in sentences}
    if len(kinds) > 1:
        raise ValueError("some pairs hold strings and some row numbers; use one of the two in every task")
    embeddings = np.asarray(embed(sentences if kinds == {True} else np.asarray(sentences)))
    if embeddings.ndim != 2 or len(embeddings) != len(sentences):
        raise ValueError(f"embed must return [{len(sentences)}, dim] for as many sentences, got {embeddings.shape}")
    embeddings = embeddings.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(sentences)} embeddings are NaN or infinite, first that of {sentences[bad[0]]!r}; "
            "repair the encoder or drop those sentences"
        )
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(norms == 0, 1.0, norms)


def _pair_similarities(
    first: Float[np.ndarray, "n dim"], second: Float[np.ndarray, "n dim"], task: SentencePairs, aggregation: Aggregation
) -> PairSimilarities:
    cosines, gold = np.einsum("nd,nd->n", first, second), finite_array("gold", task.gold, ndim=1)
    score = sts_score(cosines, gold, subset=task.subset, aggregation=aggregation)
    return PairSimilarities(cosines, gold, _subset_codes(len(gold), task.subset, aggregation), aggregation, score)
