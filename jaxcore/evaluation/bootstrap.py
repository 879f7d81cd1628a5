"""Bootstrap confidence intervals over rows, or over groups of rows (all texts of an author together)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxcore.evaluation.input_checks import class_codes, finite_array, fraction, positive_integer, same_length

_BATCH_ENTRIES = 1 << 22  # index entries resampled at once: 32 MiB of int64


@dataclass(frozen=True)
class ConfidenceInterval:
    """A point estimate with its interval.

    Attributes:
        estimate: the statistic of the data itself.
        low, high: bounds of the two-sided interval.
        level: nominal coverage.
        method: "percentile" or "bca", the one that was used.
        num_units: how many rows, or groups, were resampled.
        resamples: how many times.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str
    num_units: int
    resamples: int


def bootstrap_interval(
    values: Float[ArrayLike, "n ..."],
    *,
    statistic: Callable[[np.ndarray], float] | None = None,
    groups: Shaped[np.ndarray, "n"] | Sequence | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    method: Literal["percentile", "bca"] = "percentile",
    rng: np.random.Generator | int = 0,
) -> ConfidenceInterval:
    """Bootstrap interval of a statistic over the rows of `values`.

    Units (rows, or whole groups when `groups` is given) are drawn with replacement as many as there are.
    Percentile: the (1 -+ level)/2 quantiles of the resampled statistics. BCa: bias-corrected and accelerated,
    with the jackknife over the same units. Where BCa is undefined (a resampled distribution without spread on
    one side of the estimate) the percentile interval is returned and `method` says so.

    Args:
        values: [n] or [n, ...], finite; row i is one observation (several columns stay together).
        statistic: rows [m, ...] -> number; None is the mean of a vector, which takes a fast path.
        groups: [n] group of every row (author, prompt); rows of a group are kept or left out together.
        level: coverage, in (0, 1).
        resamples: number of bootstrap samples, >= 100.
        method: "percentile" or "bca".
        rng: generator, or a seed.
    Raises:
        ValueError: fewer than two units, NaN, lengths that differ, `statistic` not a finite number on the
            data or on a resample, level, resamples or method out of range.
    Source: authorship_survey.md, section 2.3 item 7 (bootstrap over documents, clustered by author or
    prompt).
    """
    rows = finite_array("values", values)
    if statistic is None and rows.ndim != 1:
        raise ValueError(f"the default mean needs a vector, got shape {rows.shape}; pass statistic=")
    if method not in ("percentile", "bca"):
        raise ValueError(f"method must be 'percentile' or 'bca', got {method!r}")
    level, resamples = fraction("level", level), positive_integer("resamples", resamples, minimum=100)
    codes = _unit_codes(rows, groups)
    units = np.arange(codes.max() + 1)
    of_units = _mean_of_units(rows, codes) if statistic is None else _statistic_of_units(rows, codes, statistic)
    estimate = float(of_units(units))
    if not np.isfinite(estimate):
        raise ValueError(f"the statistic is {estimate} on the data; it must be a finite number")
    distribution = _resampled(of_units, len(units), resamples, np.random.default_rng(rng), statistic is None)
    undefined = int(np.count_nonzero(~np.isfinite(distribution)))
    if undefined:
        raise ValueError(
            f"the statistic is not finite on {undefined} of {resamples} resamples; define it for every sample"
        )
    # A resample of every unit once is the data: rounding must not put it beside the estimate, as BCa counts.
    distribution = np.where(np.isclose(distribution, estimate, rtol=1e-12, atol=0), estimate, distribution)
    low, high = np.quantile(distribution, [(1 - level) / 2, (1 + level) / 2])
    used = "percentile"
    if method == "bca":
        corrected = _bca(of_units, units, distribution, level, statistic is None)
        if corrected is not None:
            (low, high), used = corrected, "bca"
    return ConfidenceInterval(estimate, float(low), float(high), level, used, len(units), resamples)


def _unit_codes(rows: np.ndarray, groups: Any) -> Int[np.ndarray, "n"]:
    """The unit (0..k-1) that every row belongs to."""
    if groups is None:
        codes, kind = np.arange(len(rows)), "rows"
    else:
        (codes, _), kind = class_codes("groups", groups), "groups"
        same_length(values=rows, groups=codes)
    if codes.max() < 1:
        raise ValueError(f"a bootstrap needs at least two {kind}, got one; pass more {kind}")
    return codes


def _mean_of_units(rows: np.ndarray, codes: np.ndarray) -> Callable:
    sums, counts = np.bincount(codes, weights=rows), np.bincount(codes)
    return lambda units, axis=-1: sums[units].sum(axis=axis) / counts[units].sum(axis=axis)


def _statistic_of_units(rows: np.ndarray, codes: np.ndarray, statistic: Callable) -> Callable:
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return lambda units: statistic(rows[np.concatenate([members[unit] for unit in units])])


def _resampled(
    of_units: Callable, num_units: int, resamples: int, rng: np.random.Generator, vectorised: bool
) -> Float[np.ndarray, "resamples"]:
    if not vectorised:
        return np.array([float(of_units(rng.integers(num_units, size=num_units))) for _ in range(resamples)])
    batch = _batch(num_units)
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    return np.concatenate([of_units(rng.integers(num_units, size=(size, num_units))) for size in sizes])


def _batch(num_units: int) -> int:
    return max(1, _BATCH_ENTRIES // num_units)


def _bca(
    of_units: Callable, units: np.ndarray, distribution: np.ndarray, level: float, vectorised: bool
) -> tuple[float, float] | None:
    """scipy's BCa interval around an existing bootstrap distribution, or None where it is undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DegenerateDataWarning and the divisions behind it: reported as None
        result = scipy.stats.bootstrap(
            (units,),
            of_units,
            n_resamples=0,
            batch=_batch(len(units)),
            vectorized=vectorised,
            confidence_level=level,
            method="BCa",
            bootstrap_result=_Distribution(distribution),  # type: ignore[arg-type]
        )
    low, high = result.confidence_interval
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


@dataclass(frozen=True)
class _Distribution:
    """The one attribute that `scipy.stats.bootstrap` reads from an earlier result."""

    bootstrap_distribution: np.ndarray
