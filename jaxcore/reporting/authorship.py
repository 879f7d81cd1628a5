"""The sections of an authorship report: curves, accuracy over growing author sets, verification, heatmaps."""

from typing import Any

from jaxcore.data import AuthorshipTask
from jaxcore.evaluation import AuthorshipExplanations, AuthorshipMeasurements
from jaxcore.reporting.heatmaps import TokenHeatmap
from jaxcore.reporting.html import Headline, Section
from jaxcore.reporting.plots import Curves
from jaxcore.reporting.tables import Table, format_interval, format_number

MODEL_NAMES = {"trained": "trained", "untrained": "untrained encoder", "raw_counts": "raw token counts"}


def accuracy_headline(measured: AuthorshipMeasurements) -> list[Headline]:
    """Accuracy at the largest N and S with its interval, verification and clustering."""
    candidates, support = max(measured.grids["trained"])
    result = measured.grids["trained"][candidates, support]
    interval = result.confidence_interval
    untrained = measured.grids["untrained"][candidates, support].mean
    return [
        Headline(
            f"accuracy, {candidates} authors, {support} support texts",
            format_number(result.mean),
            f"{format_interval(result.mean, interval.low, interval.high)} over draws; chance "
            f"{format_number(result.chance)}, untrained {format_number(untrained)}",
        ),
        Headline("verification AUC", format_number(measured.metrics["verification/auc"]), "chance 0.500"),
        Headline("clustering BCubed F", format_number(measured.metrics["clustering/bcubed_f"])),
    ]


def attribution_section(measured: AuthorshipMeasurements) -> Section:
    """Accuracy@(N, S) of the trained encoder and its baselines."""
    grids = measured.grids
    candidates = sorted({n for n, _ in grids["trained"]})
    supports = sorted({s for _, s in grids["trained"]})
    most = candidates[-1]
    series = {MODEL_NAMES[name]: (supports, [grid[most, s].mean for s in supports]) for name, grid in grids.items()}
    low, high = (
        [getattr(grids["trained"][most, s].confidence_interval, end) for s in supports] for end in ("low", "high")
    )
    rows = []
    for (n, s), result in sorted(grids["trained"].items()):
        interval = result.confidence_interval
        rows.append(
            (
                n,
                s,
                format_interval(result.mean, interval.low, interval.high),
                result.top5,
                grids["untrained"][n, s].mean,
                grids["raw_counts"][n, s].mean,
                result.chance,
            )
        )
    return Section(
        "Attribution of unseen texts",
        [
            Curves(
                series,
                "support texts per author",
                "accuracy",
                caption=f"Who of {most} candidates wrote a query text? Shaded: 95 % over draws.",
                bands={MODEL_NAMES["trained"]: (low, high)},
                reference={"chance": grids["trained"][most, supports[0]].chance},
            ),
            Table(
                ("candidates", "support", "accuracy (95 %)", "top 5", "untrained", "raw counts", "chance"),
                rows,
                caption="Centroid attribution; every draw picks candidates, support and query texts anew.",
            ),
        ],
        note="Support and query texts never share a topic or work.",
    )


def verification_section(measured: AuthorshipMeasurements) -> Section:
    """Verification and clustering numbers."""
    metrics = measured.metrics
    verification = [(k.split("/")[1], v) for k, v in metrics.items() if k.startswith("verification/")]
    clustering = [(k.split("/")[1], v) for k, v in metrics.items() if k.startswith("clustering/")]
    return Section(
        "Verification and clustering",
        [
            Table(
                ("measure", "value"),
                verification,
                caption="Same author or not: one dense layer on pair features, fitted on training authors (PAN).",
            ),
            Table(
                ("measure", "value"),
                clustering,
                caption="Agglomerative clustering on cosine distance; the threshold was tuned on training authors.",
            ),
        ],
    )


def explanation_section(task: AuthorshipTask, explained: AuthorshipExplanations, *, shown: int) -> Section | None:
    """Heatmaps of the first `shown` explained texts for each question, and how they rank the known markers."""
    targets, attributions = explained.targets, explained.attributions
    if not attributions:
        return None
    blocks: list[Any] = []
    scored = [(k.removeprefix("explanation/"), v) for k, v in explained.metrics.items()]
    blocks.append(Table(("measure", "value"), scored, caption="Attributions against what is known."))
    for index in range(min(shown, len(targets["rows"]))):
        row = targets["rows"][index]
        length = int(task.test.attention_mask[row].sum())
        ids = task.test.input_ids[row][:length]
        author, other = targets["author"][index], targets["runner_up"][index]
        marked = None if task.markers is None else task.markers(author, ids).tolist()
        name, other_name = task.test_author_names[author], task.test_author_names[other]
        outcome = "attributed rightly" if targets["correct"][index] else f"attributed to {other_name}"
        captions = {
            "similarity": f"What makes this text similar to {name}? ({outcome})",
            "contrast": f"Why {name} rather than {other_name}? ({outcome})",
        }
        for question, values in attributions.items():
            blocks.append(
                TokenHeatmap(
                    task.tokens(ids),
                    values[index][:length],
                    caption=captions[question],
                    marked=marked,
                    marked_label="true style marker",
                )
            )
    return Section(
        "Which words give an author away",
        blocks,
        note="Integrated gradients of the similarity to the author's support texts, per token; hover for values.",
    )
