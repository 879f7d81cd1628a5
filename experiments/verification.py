"""``verify NAME``: run the paper's claims over seeds, method against baselines, and print the verdicts."""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

from experiments import protocol
from jaxcore.evaluation import Claims, RunValues, Verdict, judge
from jaxcore.reporting import format_interval, format_number, text_table
from jaxcore.training import as_plain, describe_device, package_versions, write_json


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """What `verify` takes besides the configuration."""

    seeds: int = 3
    """Number of seeds; seed, seed + 1, ... are run."""
    json: pathlib.Path | None = None
    """File for the verdicts with every seed's values."""


def verify(name: str, options: VerifyOptions, config: Any) -> bool:
    """Run every variant at every seed, print and write the verdicts; True when all claims hold.

    Args:
        name: the experiment.
        config: the base configuration (preset of ``CLAIMS`` with the user's fields); variants derive from it.

    Raises:
        ValueError: fewer than one seed, or a JSON file that cannot be made.
    """
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1: got {options.seeds}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"cannot write {options.json}: its folder does not exist; make it first")
    module = protocol.load(name)
    seeds = [config.seed + offset for offset in range(options.seeds)]
    started = time.perf_counter()
    claims = module.CLAIMS.asked_of(config)
    runs = run_variants(module, claims, config, seeds)
    verdicts = [judge(claim, runs) for claim in claims.claims]
    seconds = time.perf_counter() - started
    for claim in claims.claims:
        print(f"{claim.name}: {claim.statement} ({claim.source})")
    print(verdict_table(verdicts))
    held = sum(verdict.passed for verdict in verdicts)
    print(f"{held} of {len(verdicts)} claims hold over seeds {seeds} ({seconds:.0f} s, {describe_device()})")
    if options.json is not None:
        write_json(options.json, _record(name, config, seeds, seconds, runs, verdicts))
    return held == len(verdicts)


def run_variants(
    module: protocol.Experiment, claims: Claims, config: Any, seeds: list[int]
) -> dict[str, list[RunValues]]:
    """What each variant measured, one entry per seed; each run has a directory of its own, removed afterwards."""
    runs: dict[str, list[RunValues]] = {variant: [] for variant in claims.variants}
    for seed in seeds:
        for variant, derive in claims.variants.items():
            with tempfile.TemporaryDirectory(prefix="jaxcore-verify-") as directory:
                started = time.perf_counter()
                results = module.run(dataclasses.replace(derive(config), seed=seed), pathlib.Path(directory) / "run")
            runs[variant].append(RunValues(results.metrics, results.samples))
            print(f"seed {seed} {variant}: {time.perf_counter() - started:.1f} s", flush=True)
    return runs


def verdict_table(verdicts: list[Verdict]) -> str:
    """One row per claim: effect with its interval, what was asked of it, and the verdict."""
    rows = [
        (
            verdict.name,
            _effect(verdict),
            verdict.test,
            "" if verdict.p_value is None else format_number(verdict.p_value),
            "holds" if verdict.passed else "FAILS",
        )
        for verdict in verdicts
    ]
    return text_table(("claim", "effect (95 % interval)", "criterion", "p", "verdict"), rows)


def _effect(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return format_number(verdict.effect)
    return format_interval(verdict.effect, verdict.low, verdict.high)


def _record(
    name: str, config: Any, seeds: list[int], seconds: float, runs: dict, verdicts: list[Verdict]
) -> dict[str, Any]:
    return {
        "experiment": name,
        "config": as_plain(config),
        "seeds": seeds,
        "seconds": seconds,
        "device": describe_device(),
        "versions": package_versions(),
        "verdicts": [as_plain(verdict) for verdict in verdicts],
        "values": {variant: [as_plain(run) for run in values] for variant, values in runs.items()},
    }
