"""Highlights of outputs and what several methods attribute to them: length, coverage, agreement, entailment.

Source: LAQuer (Hirsch et al. 2025), laquer.md. Every method is asked about the same hypotheses; a method that was asked
about some queries only, the first ones, is measured on those.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxcore.attribution.text_spans import Span, num_characters
from jaxcore.data.highlight_queries import HighlightQuery
from jaxcore.evaluation.span_attribution import attribution_premise, autoais, content_coverage, span_agreement

Attributed: TypeAlias = Sequence[tuple[Span, ...]]
"""Of each query, the attributed spans."""
Pair: TypeAlias = tuple[str, str]
"""Premise and hypothesis."""


class Scored(NamedTuple):
    """Scores of each query under one method."""

    f1: np.ndarray
    """Empty where nobody has aligned the queries."""
    metrics: dict[str, float]


def measure(queries: Sequence[HighlightQuery], attributed: Attributed) -> Scored:
    """Length, non-attributed share, coverage and, where there are gold spans, character precision, recall and F1; means
    over queries."""
    pairs = list(zip(queries, attributed, strict=True))
    lengths = np.asarray([num_characters(spans) for spans in attributed], float)
    covered = [content_coverage(query.words(), spans, query.text.texts()) for query, spans in pairs]
    metrics = {
        "characters": float(lengths.mean()),
        "non_attributed": float(np.mean(lengths == 0)),
        "coverage": float(np.mean(covered)),
    }
    if not all(query.gold for query in queries):
        return Scored(np.zeros(0), metrics)
    agreement = np.asarray([span_agreement(spans, query.gold) for query, spans in pairs])
    named = zip(("precision", "recall", "f1"), agreement.mean(axis=0).tolist(), strict=True)
    return Scored(agreement[:, 2], dict(named) | metrics)


def entailment_pairs(
    queries: Sequence[HighlightQuery], attributed: Mapping[str, Attributed], hypotheses: Mapping[str, Sequence[str]]
) -> list[Pair]:
    """The pairs that `entailment_metrics` needs judged, each once: none for a query without attributed text.

    Args:
        attributed: by method.
        hypotheses: of each query, by kind.
    """
    pairs = (
        pair
        for texts in hypotheses.values()
        for premises in _premises(queries, attributed).values()
        for pair in zip(premises, texts, strict=False)
        if pair[0]
    )
    return list(dict.fromkeys(pairs))


def entailment_metrics(
    queries: Sequence[HighlightQuery],
    attributed: Mapping[str, Attributed],
    hypotheses: Mapping[str, Sequence[str]],
    judged: Mapping[Pair, Sequence[bool]],
) -> dict[str, float]:
    """``METHOD/KIND``, the AutoAIS of a method for a kind of hypotheses, and ``METHOD/premise_cut``, the share of its
    premises of which the classifier read only the beginning.

    Args:
        queries, attributed, hypotheses: as of `entailment_pairs`.
        judged: of each pair, whether it is entailed and whether its premise was cut.
    """
    metrics = {}
    for method, premises in _premises(queries, attributed).items():
        cut = []
        for kind, texts in hypotheses.items():
            given = texts[: len(premises)]
            found = autoais(premises, given, lambda *lists: [judged[pair][0] for pair in zip(*lists, strict=True)])
            metrics[f"{method}/{kind}"] = found.score
            cut += [judged[pair][1] for pair in zip(premises, given, strict=True) if pair[0]]
        metrics[f"{method}/premise_cut"] = float(np.mean(cut)) if cut else 0.0
    return metrics


def _premises(queries: Sequence[HighlightQuery], attributed: Mapping[str, Attributed]) -> dict[str, list[str]]:
    return {
        method: [attribution_premise(part, q.text.texts()) for q, part in zip(queries, spans, strict=False)]
        for method, spans in attributed.items()
    }
