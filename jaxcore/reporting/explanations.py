"""Texts explained by several attribution methods: as heatmaps for page and terminal, as lines of data, as a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcore.attribution.agreement import agreement_matrix, kendall_tau
from jaxcore.attribution.method_names import TOKEN_METHODS
from jaxcore.evaluation.text_explanation import TextExplanation
from jaxcore.reporting.heatmaps import TokenHeatmap, TokenHeatmaps
from jaxcore.reporting.html import Block, Headline, KeyValues, Paragraph, Report, Section
from jaxcore.reporting.tables import Table, format_number
from jaxcore.reporting.token_maps import AgreementMatrix

SPECIAL_TOKEN = "special token"


def explanation_heatmaps(explanation: TextExplanation, labels: Sequence[str], *, versus: int | None) -> TokenHeatmaps:
    """A text as each method explains it; special tokens are marked. Colour scales differ between methods."""
    heatmaps = []
    for name, found in explanation.methods.items():
        error = found.completeness_error
        note = "" if error is None else f", completeness error {format_number(error)}"
        signed = TOKEN_METHODS[name].is_signed
        heatmaps.append(
            TokenHeatmap(
                explanation.tokens,
                found.scores,
                caption=name + note,
                marked=explanation.special.tolist(),
                marked_label=SPECIAL_TOKEN,
                positive_label="speaks for" if signed else "matters",
                negative_label="speaks against" if signed else "(never negative)",
                breaks=() if explanation.second_start is None else (explanation.second_start,),
            )
        )
    return TokenHeatmaps(heatmaps, caption=explanation_title(explanation, labels, versus=versus))


def explanation_title(explanation: TextExplanation, labels: Sequence[str], *, versus: int | None) -> str:
    """What is explained of this text, in one line."""
    number = f"{'text' if explanation.text_pair is None else 'pair'} {explanation.number}: "
    cut = " (cut)" if explanation.truncated else ""
    if explanation.target is None:
        return f"{number}similarity {format_number(explanation.score)}{cut}"
    named = f"why {labels[explanation.target]}" + (f" rather than {labels[versus]}" if versus is not None else "")
    if explanation.probability is not None:
        named += f" (probability {format_number(explanation.probability)})"
    if explanation.predicted != explanation.target and explanation.predicted is not None:
        named += f", predicted {labels[explanation.predicted]}"
    return number + named + cut


def explanation_lines(
    explanation: TextExplanation, labels: Sequence[str], *, versus: int | None, level: str
) -> list[dict[str, Any]]:
    """One record per method, of what JSON holds."""

    def label(index: int | None) -> str | None:
        return None if index is None else labels[index]

    shared = {
        "index": explanation.number,
        "text": explanation.text,
        "text_pair": explanation.text_pair,
        "level": level,
        "predicted": label(explanation.predicted),
        "target": label(explanation.target),
        "versus": label(versus),
        "probability": explanation.probability,
        "score": explanation.score,
        "baseline_score": explanation.baseline_score,
        "truncated": explanation.truncated,
        "tokens": list(explanation.tokens),
        "offsets": explanation.offsets.tolist(),
        "special": explanation.special.tolist(),
        "second_start": explanation.second_start,
    }
    return [
        {
            "method": name,
            **shared,
            "scores": [float(str(np.float32(value))) for value in found.scores],
            "completeness_error": found.completeness_error,
        }
        for name, found in explanation.methods.items()
    ]


def explanation_agreement(explanations: Sequence[TextExplanation]) -> AgreementMatrix | None:
    """How alike methods rank the tokens by magnitude (mean Kendall tau-b over texts, special tokens left out).

    None for a single method, or texts of fewer than two tokens.
    """
    names = list(explanations[0].methods)
    longest = max(len(explanation.tokens) for explanation in explanations)
    mask = np.zeros((len(explanations), longest), bool)
    scores = {name: np.zeros(mask.shape, np.float32) for name in names}
    for row, explanation in enumerate(explanations):
        mask[row, : len(explanation.tokens)] = ~explanation.special
        for name, scored in explanation.methods.items():
            scores[name][row, : len(scored.scores)] = np.abs(scored.scores)
    if len(names) < 2 or mask.sum(axis=1).max() < 2:
        return None
    on_device = {name: jnp.asarray(values) for name, values in scores.items()}
    found = agreement_matrix(on_device, jnp.asarray(mask), measure=kendall_tau)
    texts = f"{len(explanations)} texts" if len(explanations) > 1 else "1 text"
    return AgreementMatrix(
        names,
        np.asarray(found.mean),
        np.asarray(found.std) if len(explanations) > 1 else None,
        measure="Kendall tau-b",
        caption=f"Agreement of the ranking of tokens by magnitude over {texts}, special tokens left out",
    )


def explanations_report(
    explanations: Sequence[TextExplanation],
    labels: Sequence[str],
    *,
    versus: int | None,
    facts: Mapping[str, str],
    options: Mapping[str, Any],
    max_texts: int = 100,
) -> Report:
    """The page: the first texts as all methods explain them, the methods' agreement, what they are."""
    methods = list(explanations[0].methods)
    shown = explanations[:max_texts]
    kind = "text" if shown[0].text_pair is None else "pair"
    blocks: list[Block] = [explanation_heatmaps(item, labels, versus=versus) for item in shown]
    left_out = len(explanations) - len(shown)
    note = "Each method has its own colour scale: compare where the colour is, not how strong. "
    note += "Special tokens are underlined."
    if kind == "pair":
        note += " The second text of a pair begins on a line of its own, behind ‖."
    sections = [Section("Texts", blocks, note + (f" {left_out:,} more {kind}s are not shown." if left_out else ""))]
    headline = [Headline(f"{kind}s", f"{len(explanations):,}"), Headline("methods", str(len(methods)))]
    agreement = explanation_agreement(explanations)
    if agreement is not None:
        pairs = np.asarray(agreement.mean)[~np.eye(len(methods), dtype=bool)]
        defined = pairs[np.isfinite(pairs)]
        if defined.size:
            headline.append(Headline("mean agreement", format_number(float(defined.mean())), "Kendall tau-b of pairs"))
        sections.append(Section("Agreement of the methods", [agreement.table()]))
    sections.append(Section("Methods", [_methods_table(explanations), _reading(explanations)]))
    sections.append(Section("Settings", [KeyValues(options)]))
    title = f"Attributions of a {kind}" if len(explanations) == 1 else f"Attributions of {len(explanations):,} {kind}s"
    return Report(title, facts=facts, headline=headline, sections=sections)


def _methods_table(explanations: Sequence[TextExplanation]) -> Table:
    rows = []
    for name in explanations[0].methods:
        errors = [explanation.methods[name].completeness_error for explanation in explanations]
        defined = [abs(error) for error in errors if error is not None]
        rows.append((name, TOKEN_METHODS[name].description, float(np.mean(defined)) if defined else None))
    return Table(("method", "what it measures", "mean completeness error"), rows)


def _reading(explanations: Sequence[TextExplanation]) -> Paragraph:
    known = [(item.score, item.baseline_score) for item in explanations]
    changes = [abs(score - baseline) for score, baseline in known if baseline is not None]
    change = format_number(float(np.mean(changes)) if changes else None)
    return Paragraph(
        "Completeness error: how far the sum over a text's tokens is from the score's change from the baseline "
        f"(from the score itself for layer-wise relevance propagation). The mean change is {change}. "
        "The baseline of a token is the embedding of the padding token."
    )
