"""Claims as code: what a paper says, in a form that can fail, and the verdict over seeds.

An experiment states `Claims`: named variants of its configuration and a tuple of `Claim`, each comparing one
measured number with another (or with 0) across the same seeds. `judge` decides from recorded values alone, so the
verdict can be recomputed by anyone who has the file.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number to compare: a metric of a variant's run, per seed.

    Attributes:
        variant: a key of `Claims.variants`.
        metric: a name in the run's metrics or, for `Claim.paired_samples`, in its samples.
    """

    variant: str
    metric: str

    def __str__(self) -> str:
        return f"{self.variant}: {self.metric}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """``mean over seeds of (value - against) >= margin``, and significantly above 0 where `alpha` asks for it.

    Attributes:
        name: short, unique.
        statement: what is claimed, in words.
        source: where the paper or its specification says so.
        value, against: what is compared; without `against`, the value itself.
        margin: smallest mean difference that passes, in the metric's unit.
        alpha: level of a one-sided paired t-test of difference > 0; None asks for the margin only.
        paired_samples: pair the samples of each run (draws, say) instead of one number per seed.
        worst: no single difference may be below this; None asks for the mean only.
        worst_share: smallest share of the differences that must keep to `worst`.
        applies: says of the base configuration whether the claim is asked (data may have to be given); None: always.
    """

    name: str
    statement: str
    source: str
    value: Measured
    against: Measured | None = None
    margin: float = 0.0
    alpha: float | None = None
    paired_samples: bool = False
    worst: float | None = None
    worst_share: float = 1.0
    applies: Callable[[Any], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Claims:
    """What an experiment's `verify` runs.

    Attributes:
        preset: the preset whose configuration the variants start from.
        variants: name -> function from the base configuration to the variant's.
        claims: what must hold between them.
    """

    preset: str
    variants: Mapping[str, Callable[[Any], Any]]
    claims: Sequence[Claim]

    def __post_init__(self) -> None:
        names = [claim.name for claim in self.claims]
        if len(set(names)) != len(names):
            raise ValueError(f"claim names must be unique: got {names}")
        for claim in self.claims:
            for side in (claim.value, claim.against):
                if side is not None and side.variant not in self.variants:
                    raise ValueError(
                        f"claim {claim.name!r} speaks of the variant {side.variant!r}: expected one of "
                        f"{sorted(self.variants)}"
                    )

    def asked_of(self, config: Any) -> "Claims":
        """The claims that apply to a base configuration, without the variants that only the others speak of."""
        claims = tuple(claim for claim in self.claims if claim.applies is None or claim.applies(config))
        unneeded = _spoken_of(self.claims) - _spoken_of(claims)
        variants = {name: derive for name, derive in self.variants.items() if name not in unneeded}
        return Claims(self.preset, variants, claims)


def _spoken_of(claims: Sequence[Claim]) -> set[str]:
    return {side.variant for claim in claims for side in (claim.value, claim.against) if side is not None}


@dataclasses.dataclass(frozen=True)
class RunValues:
    """What one run of one variant measured: scalars by name, and per-sample values by name."""

    metrics: Mapping[str, float]
    samples: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim with its outcome.

    Attributes:
        effect: mean difference over pairs; `low`, `high` its 95 % interval (Student t), None for a single pair.
        p_value: one-sided, of difference > 0; None where the claim asks for no test.
        num_pairs: seeds, or seeds times samples.
        passed: effect >= margin, p_value < alpha where a test is asked for, and no difference below `worst`.
        differences: every pair's difference, in seed order.
    """

    name: str
    statement: str
    source: str
    compared: str
    margin: float
    effect: float
    low: float | None
    high: float | None
    test: str
    p_value: float | None
    num_pairs: int
    passed: bool
    differences: tuple[float, ...]


def judge(claim: Claim, runs: Mapping[str, Sequence[RunValues]]) -> Verdict:
    """The verdict on a claim from the runs of each variant, one per seed in the same order of seeds.

    Raises:
        ValueError: a variant or metric that was not measured (naming it and what was), or unequal seed counts.
    """
    difference = _values(claim.value, runs, claim.paired_samples)
    if claim.against is not None:
        against = _values(claim.against, runs, claim.paired_samples)
        if against.shape != difference.shape:
            raise ValueError(
                f"claim {claim.name!r} pairs {difference.size} values of ({claim.value}) with {against.size} of "
                f"({claim.against}): run both over the same seeds"
            )
        difference = difference - against
    effect = float(np.mean(difference))
    low, high = mean_interval(difference)
    p_value = None if claim.alpha is None else _one_sided_p(difference)
    passed = effect >= claim.margin and (p_value is None or p_value < (claim.alpha or 0.0))
    if claim.worst is not None:
        passed = passed and float(np.mean(difference >= claim.worst)) >= claim.worst_share
    return Verdict(
        name=claim.name,
        statement=claim.statement,
        source=claim.source,
        compared=f"{claim.value}" + (f" minus {claim.against}" if claim.against else ""),
        margin=claim.margin,
        effect=effect,
        low=low,
        high=high,
        test=_criterion(claim),
        p_value=p_value,
        num_pairs=int(difference.size),
        passed=bool(passed),
        differences=tuple(float(d) for d in difference),
    )


def _criterion(claim: Claim) -> str:
    """What a claim asks for, in words."""
    parts = [f"mean >= {claim.margin:g}"]
    if claim.worst is not None:
        share = "every" if claim.worst_share == 1 else f"{100 * claim.worst_share:.0f} % of"
        parts.append(f"{share} seed{'s' if share != 'every' else ''} >= {claim.worst:g}")
    if claim.alpha is not None:
        parts.append(f"paired t-test one-sided p < {claim.alpha:g}")
    return ", ".join(parts)


def mean_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Student's t interval of a mean; (None, None) for a single value, a point when all values agree."""
    if values.size < 2:
        return None, None
    error = float(scipy.stats.sem(values))
    if error == 0:
        return float(values[0]), float(values[0])
    low, high = scipy.stats.t.interval(level, values.size - 1, loc=float(np.mean(values)), scale=error)
    return float(low), float(high)


def _one_sided_p(difference: np.ndarray) -> float:
    """P-value of mean > 0. One pair tests nothing (1); equal differences are as sure as their sign."""
    if difference.size < 2:
        return 1.0
    if np.ptp(difference) == 0:
        return 0.0 if difference[0] > 0 else 1.0
    return float(scipy.stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue)


def _values(side: Measured, runs: Mapping[str, Sequence[RunValues]], paired_samples: bool) -> np.ndarray:
    if side.variant not in runs:
        raise ValueError(f"variant {side.variant!r} was not run: there are {sorted(runs)}")
    values: list[float] = []
    for run in runs[side.variant]:
        table = run.samples if paired_samples else run.metrics
        if side.metric not in table:
            raise ValueError(f"metric {side.metric!r} was not measured by {side.variant!r}: there are {sorted(table)}")
        measured = table[side.metric]
        values.extend(np.atleast_1d(np.asarray(measured, np.float64)).tolist())
    if not values or not np.all(np.isfinite(values)):
        raise ValueError(f"({side}) holds a value that is not finite: got {values[:5]}")
    return np.asarray(values)


def judge_single_run(claims: Claims, variant: str, run: RunValues) -> list[Verdict]:
    """Verdicts on the claims that one run of one variant can speak to: a first look, not the verdict over seeds."""
    verdicts = []
    for claim in claims.claims:
        sides = [side for side in (claim.value, claim.against) if side is not None]
        table = run.samples if claim.paired_samples else run.metrics
        if all(side.variant == variant and side.metric in table for side in sides):
            verdicts.append(judge(claim, {variant: [run]}))
    return verdicts
