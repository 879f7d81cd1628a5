"""The report of one run of an experiment: what every such page says, around the experiment's own sections."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxcore.reporting.html import Headline, KeyValues, Report, Section, write_report
from jaxcore.training import Results


def write_run_report(
    path: pathlib.Path,
    results: Results,
    *,
    title: str,
    claim: str,
    headline: Sequence[Headline],
    sections: Sequence[Section | None],
) -> None:
    """``report.html`` of a run: title and claim, the facts of `results`, headline numbers, sections.

    Args:
        sections: None stands for a section that this run has nothing to say in.
    """
    facts = {"preset": results.preset, "seed": str(results.seed), "steps": str(results.steps)}
    facts |= {"device": results.device, "duration": f"{results.seconds:.0f} s", "jax": results.versions["jax"]}
    kept = [section for section in sections if section is not None]
    write_report(path, Report(title, claim, facts=facts, headline=headline, sections=kept))


def configuration_section(config: Any, *, note: str = "") -> Section:
    """Every field of a configuration, a dataclass."""
    return Section("Configuration", [KeyValues(dataclasses.asdict(config))], note=note)
