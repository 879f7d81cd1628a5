"""Authorship verification: the PAN metrics, pair features, the one-layer head, and abstention.

A verification problem is a pair of texts with a label y in {0, 1} (1: same author) and a probability p in [0,
1]; p exactly 0.5 means "unanswered". Formulas: authorship_survey.md, "Metrics and headline results".
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped
from scipy.special import expit

from jaxcore.evaluation.input_checks import (
    binary_labels,
    both_classes,
    finite_array,
    positive_integer,
    probabilities_in_unit_interval,
    same_length,
)
from jaxcore.evaluation.pan import UNANSWERED

FIRST_YEAR = 2020  # earlier PAN years used other measures (AUC x c@1)


class _Outcomes(NamedTuple):
    """Counts over the answered problems, and how many of each class were left unanswered.

    Every field is an integer, or an array of them (one per candidate threshold pair in
    `calibrate_unanswered`).
    """

    true_positives: Any
    false_negatives: Any
    false_positives: Any
    true_negatives: Any
    unanswered_positives: Any
    unanswered_negatives: Any

    @property
    def unanswered(self):
        return self.unanswered_positives + self.unanswered_negatives

    @property
    def total(self):
        return sum(self)


def verification_metrics(
    labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"], *, year: int = 2021
) -> dict[str, float]:
    """All PAN verification scores under the conventions of one year.

    `overall` is the plain mean: of AUC, c@1, F1 and F0.5u as published in 2020; of AUC, c@1, F1, F0.5u and
    the Brier complement from 2021 on.

    Args:
        labels: [n], 0 or 1 (1: same author).
        probabilities: [n], in [0, 1]; exactly 0.5 = unanswered.
        year: PAN year, >= 2020; see `verification_f1` for what else changes with it.
    Returns:
        `auc`, `c_at_1`, `f1`, `f05u`, `f05u_published_2020`, `brier`, `overall`; all in [0, 1], higher is
        better.
    Raises:
        ValueError: shapes differ, NaN, labels other than 0 and 1 or of one class only (AUC is undefined),
            probabilities outside [0, 1], year before 2020.
    Source: authorship_survey.md, "Metrics and headline results" and its parity table.
    """
    from sklearn.metrics import roc_auc_score  # it takes more than a second to import

    y, p = _checked(labels, probabilities)
    year = _checked_year(year)
    both_classes("labels", y)
    scores = {
        # Unanswered problems take part in the AUC as ordinary scores of 0.5.
        "auc": float(roc_auc_score(y, p)),
        "c_at_1": c_at_1(y, p),
        "f1": verification_f1(y, p, year=year),
        "f05u": f05u(y, p),
        "f05u_published_2020": f05u_published_2020(y, p),
        "brier": brier_complement(y, p),
    }
    return scores | {"overall": float(np.mean([scores[name] for name in _overall_parts(year)]))}


def c_at_1(labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"]) -> float:
    """Accuracy that credits unanswered problems at the rate of the answered ones.

    `c@1 = (n_c + n_u n_c / n) / n` with n_c answered and correct, n_u unanswered.

    The PAN24 evaluator counts an unanswered problem with y = 0 as correct besides crediting it as unanswered
    (it takes p > 0.5 as the decision on all problems); this function keeps the definition for every year.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in [0, 1]; exactly 0.5 = unanswered.
    Raises:
        ValueError: shapes differ, NaN, labels other than 0 and 1, probabilities outside [0, 1].
    Source: Penas and Rodrigo 2011; authorship_survey.md, "Metrics".
    """
    return float(_c_at_1(_outcomes(*_checked(labels, probabilities))))


def verification_f1(labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"], *, year: int = 2021) -> float:
    """F1 of the class "same author": `2 TP / (2 TP + FP + FN)`, 0 when the denominator is.

    2020 to 2023: over the answered problems only. From 2024 on 0.5 is a negative decision, so that an
    unanswered positive is a false negative.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in [0, 1]; exactly 0.5 = unanswered.
        year: PAN year, >= 2020.
    Raises:
        ValueError: as `c_at_1`, or year before 2020.
    Source: authorship_survey.md, "Metrics"; evaluators of PAN20 and PAN24.
    """
    return float(_f1(_outcomes(*_checked(labels, probabilities)), _checked_year(year)))


def f05u(labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"]) -> float:
    """F0.5 in which every unanswered problem weighs as much as a false negative.

    `F0.5u = 1.25 TP / (1.25 TP + 0.25 (FN + n_u) + FP)`: TP, FN, FP over the answered problems, n_u over all
    unanswered ones, those with y = 0 included; 0 when the denominator is.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in [0, 1]; exactly 0.5 = unanswered.
    Raises:
        ValueError: as `c_at_1`.
    Source: Bevendorff et al. 2019; authorship_survey.md, "Metrics".
    """
    return float(_f05u(_outcomes(*_checked(labels, probabilities))))


def f05u_published_2020(labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"]) -> float:
    """F0.5u as printed in the PAN 2020 results, where 0.5 was rounded up: unanswered = positive and n_u = 0.

    `1.25 TP' / (1.25 TP' + 0.25 FN + FP')` with TP' and FP' counting p >= 0.5. Only for comparison with those
    tables.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in [0, 1].
    Raises:
        ValueError: as `c_at_1`.
    Source: authorship_survey.md, parity table.
    """
    return float(_f05u(_unanswered_as_positive(_outcomes(*_checked(labels, probabilities)))))


def brier_complement(labels: Shaped[ArrayLike, "n"], probabilities: Float[ArrayLike, "n"]) -> float:
    """One minus the Brier loss, `1 - mean (p - y)^2`; higher is better, part of `overall` from 2021 on.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in [0, 1].
    Raises:
        ValueError: as `c_at_1`.
    Source: authorship_survey.md, "Metrics".
    """
    y, p = _checked(labels, probabilities)
    return float(1 - np.mean((p - y) ** 2))


def pair_features(
    a: Float[ArrayLike, "n dim"],
    b: Float[ArrayLike, "n dim"],
    *,
    mode: Literal["concat", "absdiff"] = "concat",
) -> Float[Array, "n features"]:
    """Features of text pairs for the verification head; works under `jit`.

    `concat`: [a; b; |a - b|; a * b], n x 4 dim. `absdiff`: |a - b|, n x dim, unchanged when a and b swap.

    Args:
        a, b: embeddings of the first and the second text of each pair.
        mode: which combination; the paper's own is not confirmed (star.md, section 2.6).
    Raises:
        ValueError: shapes that differ or are not [n, dim]; unknown mode.
    Source: star.md, section 2.6 (verification).
    """
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b):
        raise ValueError(f"a and b must both be [n, dim], got {np.shape(a)} and {np.shape(b)}")
    first, second = jnp.asarray(a), jnp.asarray(b)
    match mode:
        case "concat":
            return jnp.concatenate([first, second, jnp.abs(first - second), first * second], axis=-1)
        case "absdiff":
            return jnp.abs(first - second)
        case _:
            raise ValueError(f"mode must be 'concat' or 'absdiff', got {mode!r}")


@dataclass(frozen=True, eq=False)
class VerificationHead:
    """One dense layer with a sigmoid: `p = sigmoid(features . weights + bias)`.

    Attributes:
        weights: [k], on the features as given (the fit's standardisation is folded in).
        bias: scalar.
    """

    weights: Float[np.ndarray, "features"]
    bias: float

    def probabilities(self, features: Float[ArrayLike, "n features"]) -> Float[np.ndarray, "n"]:
        """Probabilities that the pairs have one author, from features [n, k].

        Raises:
            ValueError: not [n, k] with the fitted k, or NaN.
        """
        x = finite_array("features", features, ndim=2)
        if x.shape[1] != self.weights.size:
            raise ValueError(f"features must be [n, {self.weights.size}] as fitted, got {x.shape}")
        return expit(x @ self.weights + self.bias)


def fit_verification_head(
    features: Float[ArrayLike, "n features"],
    labels: Shaped[ArrayLike, "n"],
    *,
    inverse_regularisation: float = 1.0,
    max_iterations: int = 2000,
) -> VerificationHead:
    """Fits the dense layer by L2-regularised logistic regression on standardised features.

    `min_w,b  |w|^2 / 2 + C sum_i log(1 + exp(-(2 y_i - 1)(z_i . w + b)))` with z the features after
    subtracting their mean and dividing by their sd (constant features are left undivided); scaling matters
    because entries of unit-norm embeddings are small. Mean and sd are folded into the returned weights.

    Args:
        features: [n, k], for instance from `pair_features`; training pairs only.
        labels: [n], 0 or 1.
        inverse_regularisation: C > 0.
        max_iterations: bound on L-BFGS iterations.
    Raises:
        ValueError: wrong shapes, NaN, one class only, C <= 0.
    Source: star.md, section 2.6 (one dense layer with sigmoid on the frozen encoder).
    """
    from sklearn.linear_model import LogisticRegression  # it takes more than a second to import

    x, y = finite_array("features", features, ndim=2), binary_labels("labels", labels)
    same_length(features=x, labels=y)
    both_classes("labels", y)
    if not inverse_regularisation > 0:
        raise ValueError(f"inverse_regularisation must be > 0, got {inverse_regularisation!r}")
    mean, sd = x.mean(axis=0), x.std(axis=0)
    scale = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, 1.0)
    model = LogisticRegression(
        C=inverse_regularisation, max_iter=positive_integer("max_iterations", max_iterations), tol=1e-6
    )
    model.fit((x - mean) / scale, y)
    weights = model.coef_[0] / scale
    return VerificationHead(weights=weights, bias=float(model.intercept_[0] - mean @ weights))


@dataclass(frozen=True)
class UnansweredCalibration:
    """Two thresholds that turn similarity scores into probabilities with a zone of unanswered problems.

    Attributes:
        lower, upper: p1 < p2, in score units.
        overall: the overall score on the calibration data.
    """

    lower: float
    upper: float
    overall: float

    def probabilities(self, scores: Float[ArrayLike, "n"]) -> Float[np.ndarray, "n"]:
        """Maps scores s in [0, 1]: s <= p1 to 0.49 s / p1; p1 < s < p2 to exactly 0.5; s >= p2 to
        0.51 + 0.49 (s - p2) / (1 - p2).

        Raises:
            ValueError: scores outside [0, 1], NaN, not a vector.
        """
        s = probabilities_in_unit_interval("scores", scores)
        low = 0.49 * s / self.lower
        high = 0.51 + 0.49 * (s - self.upper) / (1 - self.upper)
        return np.where(s <= self.lower, low, np.where(s < self.upper, UNANSWERED, np.minimum(high, 1.0)))


def calibrate_unanswered(
    scores: Float[ArrayLike, "n"], labels: Shaped[ArrayLike, "n"], *, grid: float = 0.01, year: int = 2021
) -> UnansweredCalibration:
    """The thresholds p1 < p2 on a grid with the best overall score, the first such pair on ties.

    All pairs are scored at once from cumulative sums over the sorted scores: O(n log n + 1 / grid^2).

    Args:
        scores: [n], in [0, 1], of held-out calibration problems (never of the test).
        labels: [n], 0 or 1.
        grid: spacing of the candidate thresholds, grid, 2 grid, ... < 1; in (0, 1/3].
        year: whose overall score, >= 2020 (`verification_metrics`).
    Raises:
        ValueError: wrong shapes, NaN, scores outside [0, 1], one class only, grid outside (0, 1/3], year
            before 2020.
    Source: authorship_survey.md, section 2.2 F2 (character n-gram cosine; PAN21 baseline, which searches the
    overall
        score rounded to three digits, so its first maximum can be another pair).
    """
    y, s = _checked(labels, scores, name="scores")
    year = _checked_year(year)
    both_classes("labels", y)
    if not 0 < grid <= 1 / 3:
        raise ValueError(f"grid must lie in (0, 1/3] so that it holds two thresholds, got {grid!r}")
    # Rounding keeps decimal thresholds at the double nearest to their decimal value (0.29, not
    # 0.29000000000000004).
    thresholds = np.round(np.arange(1, int(np.ceil(1 / grid - 1e-9))) * grid, 12)
    overall = _overall_of_threshold_pairs(s, y, thresholds, year)
    lower, upper = np.triu_indices(len(thresholds), k=1)
    # Rounding to 12 digits: equal scores must not be told apart by the order of summation.
    best = int(np.argmax(np.round(overall[lower, upper], 12)))
    i, j = lower[best], upper[best]
    return UnansweredCalibration(float(thresholds[i]), float(thresholds[j]), float(overall[i, j]))


def _overall_of_threshold_pairs(
    s: Float[np.ndarray, "n"], y: np.ndarray, thresholds: Float[np.ndarray, "t"], year: int
) -> Float[np.ndarray, "t t"]:
    """Overall score for p1 = thresholds[i] (rows) and p2 = thresholds[j] (columns), used for i < j only."""
    order = np.argsort(s, kind="stable")
    s, y = s[order], y[order].astype(np.float64)
    below = np.searchsorted(s, thresholds, side="right")[:, None]  # how many scores are <= p1
    upto = np.searchsorted(s, thresholds, side="left")[None, :]  # how many are < p2
    n, total = len(s), lambda values: np.concatenate([[0.0], np.cumsum(values)])
    positives, negatives = total(y), total(1 - y)
    outcomes = _Outcomes(
        true_positives=positives[n] - positives[upto] + 0 * below,
        false_negatives=positives[below] + 0 * upto,
        false_positives=negatives[n] - negatives[upto] + 0 * below,
        true_negatives=negatives[below] + 0 * upto,
        unanswered_positives=positives[upto] - positives[below],
        unanswered_negatives=negatives[upto] - negatives[below],
    )
    # AUC: the map keeps the order and merges the unanswered into one tie, so that a (positive, negative) pair
    # inside the zone is worth 1/2 instead of 1, 1/2 or 0. wins[k]: over the positives among the first k
    # scores, the number of negatives scored lower, equal ones counting 1/2.
    lower_negatives = (
        negatives[np.searchsorted(s, s, side="left")] + negatives[np.searchsorted(s, s, side="right")]
    ) / 2
    wins = total(y * lower_negatives)
    inside = wins[upto] - wins[below] - negatives[below] * outcomes.unanswered_positives
    merged = outcomes.unanswered_positives * outcomes.unanswered_negatives / 2
    auc = (wins[n] - inside + merged) / (positives[n] * negatives[n])
    # Brier: sums of (a s + c - y)^2 over the lower part (a = .49 / p1, c = 0) and the upper part, from
    # moments of s.
    first, second, cross = total(s), total(s * s), total(s * y)
    p1, p2 = thresholds[:, None], thresholds[None, :]
    a, c = 0.49 / (1 - p2), 0.51 - 0.49 * p2 / (1 - p2)
    low = (0.49 / p1) ** 2 * second[below] - 2 * (0.49 / p1) * cross[below] + positives[below]
    high = (
        a**2 * (second[n] - second[upto])
        + 2 * a * c * (first[n] - first[upto])
        + c**2 * (n - upto)
        - 2 * a * (cross[n] - cross[upto])
        + (1 - 2 * c) * (positives[n] - positives[upto])
    )
    brier = 1 - (low + 0.25 * outcomes.unanswered + high) / n
    scores = {
        "auc": auc,
        "c_at_1": _c_at_1(outcomes),
        "f1": _f1(outcomes, year),
        "f05u": _f05u(outcomes),
        "f05u_published_2020": _f05u(_unanswered_as_positive(outcomes)),
        "brier": brier,
    }
    parts = [scores[name] for name in _overall_parts(year)]
    return sum(parts) / len(parts)


def _overall_parts(year: int) -> tuple[str, ...]:
    if year == 2020:
        return "auc", "c_at_1", "f1", "f05u_published_2020"
    return "auc", "c_at_1", "f1", "f05u", "brier"


def _checked(labels: Any, values: Any, *, name: str = "probabilities") -> tuple[np.ndarray, np.ndarray]:
    y, p = binary_labels("labels", labels), probabilities_in_unit_interval(name, values)
    same_length(**{"labels": y, name: p})
    return y, p


def _checked_year(year: int) -> int:
    if isinstance(year, bool) or not isinstance(year, int) or year < FIRST_YEAR:
        raise ValueError(f"year must be a PAN year from {FIRST_YEAR} on, got {year!r}")
    return year


def _outcomes(y: np.ndarray, p: np.ndarray) -> _Outcomes:
    positive, negative, unanswered = p > UNANSWERED, p < UNANSWERED, p == UNANSWERED
    cells = ((y, positive), (y, negative), (~y, positive), (~y, negative), (y, unanswered), (~y, unanswered))
    return _Outcomes(*(int(np.count_nonzero(truth & decision)) for truth, decision in cells))


def _unanswered_as_positive(outcomes: _Outcomes) -> _Outcomes:
    return outcomes._replace(
        true_positives=outcomes.true_positives + outcomes.unanswered_positives,
        false_positives=outcomes.false_positives + outcomes.unanswered_negatives,
        unanswered_positives=0,
        unanswered_negatives=0,
    )


def _ratio(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator, 0 where the denominator is 0 (the numerator is 0 there too)."""
    return numerator / np.where(denominator == 0, 1, denominator)


def _c_at_1(outcomes: _Outcomes) -> Any:
    correct, n = outcomes.true_positives + outcomes.true_negatives, outcomes.total
    return (correct + outcomes.unanswered * correct / n) / n


def _f1(outcomes: _Outcomes, year: int) -> Any:
    missed = outcomes.false_negatives + (outcomes.unanswered_positives if year >= 2024 else 0)
    doubled = 2 * outcomes.true_positives
    return _ratio(doubled, doubled + outcomes.false_positives + missed)


def _f05u(outcomes: _Outcomes) -> Any:
    weighted = 1.25 * outcomes.true_positives
    missed = 0.25 * (outcomes.false_negatives + outcomes.unanswered)
    return _ratio(weighted, weighted + missed + outcomes.false_positives)
