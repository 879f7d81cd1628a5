"""Paired tests between two methods measured on the same seeds, draws, or items."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxcore.evaluation.input_checks import finite_array, fraction, positive_integer, same_length

Alternative = Literal["two-sided", "greater", "less"]

_BATCH_ENTRIES = 1 << 22  # sign-flipped values held at once: 32 MiB


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired test of `mean(a - b)` against `margin`.

    Attributes:
        statistic: Student's t, or the mean difference for the permutation test.
        p_value: under the alternative asked for.
        effect: mean(a - b), in the units of the values (the margin is not subtracted).
        standardised_effect: (effect - margin) / sd of the differences (Cohen's d_z); infinite when they all
            equal.
        confidence_interval: two-sided t interval of `effect`, whatever the alternative.
        level: its coverage.
        alternative: "two-sided", "greater" (mean(a - b) > margin) or "less".
        margin: the difference under the null hypothesis.
        num_pairs: n.
        method: "t", "exact permutation" or "random permutation".
    """

    statistic: float
    p_value: float
    effect: float
    standardised_effect: float
    confidence_interval: tuple[float, float]
    level: float
    alternative: str
    margin: float
    num_pairs: int
    method: str


def paired_t_test(
    a: Float[ArrayLike, "n"],
    b: Float[ArrayLike, "n"],
    *,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
    level: float = 0.95,
) -> PairedTest:
    """Student's paired t-test.

    `t = (mean(d) - margin) / (sd(d) / sqrt(n))`, d = a - b, sd with n - 1, n - 1 degrees of freedom.
    Differences
    without spread give the limit: t infinite and p 0 or 1, or t 0 and p 1 when they equal the margin.

    Args:
        a, b: [n] values of the two methods, row i measured on the same seed or item.
        alternative: "two-sided"; "greater" tests mean(d) > margin; "less" mean(d) < margin.
        margin: difference under the null hypothesis, in the units of a and b.
        level: coverage of the interval, in (0, 1).
    Raises:
        ValueError: lengths differ, fewer than two pairs, NaN, unknown alternative, level outside (0, 1).
    Source: authorship_survey.md, section 2.3 item 7 (paired tests between methods).
    """
    differences = _differences(a, b, alternative)
    centred = differences - float(margin)
    if _no_spread(differences):
        statistic, p_value = _limit_of_t(float(centred.mean()), alternative, scale=float(np.abs(differences).max()))
    else:
        test = scipy.stats.ttest_1samp(centred, 0.0, alternative=alternative)
        statistic, p_value = float(test.statistic), float(test.pvalue)
    return _result(differences, statistic, p_value, alternative, margin, level, "t")


def paired_permutation_test(
    a: Float[ArrayLike, "n"],
    b: Float[ArrayLike, "n"],
    *,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
    level: float = 0.95,
    resamples: int = 9999,
    rng: np.random.Generator | int = 0,
) -> PairedTest:
    """Sign-flip test of the mean paired difference: by the null hypothesis d - margin is symmetric about 0.

    Exact (all 2^n sign patterns) when 2^n <= `resamples`; else over `resamples` random patterns, with
    p = (1 + #as extreme) / (1 + resamples). Two-sided p is twice the smaller tail, at most 1. The exact
    one-sided p is at least 2^-n: with 5 pairs never below 0.031, so no claim can pass p < 0.05 two-sided with
    fewer than 6. The interval is the t interval of `paired_t_test`.

    Args:
        a, b: [n] values of the two methods, row i measured on the same seed or item.
        alternative, margin, level: as in `paired_t_test`.
        resamples: bound on the exact enumeration and number of random patterns, >= 100.
        rng: generator, or a seed, for the random patterns.
    Raises:
        ValueError: as `paired_t_test`; fewer than 100 resamples.
    Source: authorship_survey.md, section 2.3 item 7.
    """
    differences = _differences(a, b, alternative)
    resamples = positive_integer("resamples", resamples, minimum=100)
    centred = differences - float(margin)
    exact = len(centred) < 63 and 2 ** len(centred) <= resamples
    test = scipy.stats.permutation_test(
        (centred,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else resamples,
        batch=max(1, _BATCH_ENTRIES // len(centred)),
        alternative=alternative,
        rng=np.random.default_rng(rng),
    )
    statistic = float(test.statistic) + float(margin)
    method = "exact permutation" if exact else "random permutation"
    return _result(differences, statistic, float(test.pvalue), alternative, margin, level, method)


def _differences(a: Any, b: Any, alternative: str) -> Float[np.ndarray, "n"]:
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative must be 'two-sided', 'greater' or 'less', got {alternative!r}")
    first, second = finite_array("a", a, ndim=1), finite_array("b", b, ndim=1)
    same_length(a=first, b=second)
    if len(first) < 2:
        raise ValueError(f"a paired test needs at least two pairs, got {len(first)}; run more seeds")
    return first - second


def _no_spread(differences: np.ndarray) -> bool:
    """Whether all differences agree up to rounding, so that t would be a quotient of rounding errors."""
    return float(np.ptp(differences)) <= 1e-12 * float(np.abs(differences).max())


def _limit_of_t(mean: float, alternative: str, scale: float) -> tuple[float, float]:
    if abs(mean) <= 1e-12 * scale:
        return 0.0, 1.0
    supported = alternative == "two-sided" or (alternative == "greater") == (mean > 0)
    return float(np.copysign(np.inf, mean)), 0.0 if supported else 1.0


def _result(
    differences: np.ndarray,
    statistic: float,
    p_value: float,
    alternative: str,
    margin: float,
    level: float,
    method: str,
) -> PairedTest:
    level, n = fraction("level", level), len(differences)
    effect = float(differences.mean())
    sd = 0.0 if _no_spread(differences) else float(differences.std(ddof=1))
    excess = effect - float(margin)
    half_width = float(scipy.stats.t.ppf((1 + level) / 2, n - 1)) * sd / np.sqrt(n)
    if sd > 0:
        standardised = excess / sd
    else:
        standardised = _limit_of_t(excess, "two-sided", scale=float(np.abs(differences).max()))[0]
    interval = (float(effect - half_width), float(effect + half_width))
    return PairedTest(
        statistic=statistic,
        p_value=p_value,
        effect=effect,
        standardised_effect=float(standardised),
        confidence_interval=interval,
        level=level,
        alternative=alternative,
        margin=float(margin),
        num_pairs=n,
        method=method,
    )
