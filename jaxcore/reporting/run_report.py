"""The report of one run of an experiment: what every such page says, around the experiment's own sections."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcore.evaluation import Verdict
from jaxcore.reporting.html import Headline, KeyValues, Paragraph, Report, Section, VerdictTable, write_report
from jaxcore.reporting.plots import Curves
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
    facts = {"experiment": results.experiment, "preset": results.preset, "seed": str(results.seed)}
    facts |= {"steps": str(results.steps), "device": results.device}
    facts |= {"duration": f"{results.seconds:.0f} s", "jax": results.versions["jax"]}
    kept = [section for section in sections if section is not None]
    write_report(path, Report(title, claim, facts=facts, headline=headline, sections=kept))


def training_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Loss and gradient norm over steps, from the rows of ``metrics.jsonl``."""
    if not rows:
        return Section("Training", [Paragraph("No step was logged.")])
    steps = [row["step"] for row in rows]
    return Section(
        "Training",
        [
            Curves(
                {"loss": (steps, [row["loss"] for row in rows])},
                "step",
                "loss (nats)",
                caption="Training loss",
            ),
            Curves(
                {"gradient norm": (steps, [row["gradient_norm"] for row in rows])},
                "step",
                "global norm",
                caption="Gradient norm before clipping",
                log_y=True,
            ),
        ],
    )


def verdict_section(verdicts: Sequence[Verdict], note: str) -> Section:
    """Verdicts, or a sentence when none can be given."""
    if not verdicts:
        return Section("Claims", [Paragraph("None of the stated claims can be judged from this run.")], note=note)
    return Section("Claims", [VerdictTable(verdicts)], note=note)


def configuration_section(config: Any, *, note: str = "") -> Section:
    """Every field of a configuration, a dataclass."""
    return Section("Configuration", [KeyValues(dataclasses.asdict(config))], note=note)
