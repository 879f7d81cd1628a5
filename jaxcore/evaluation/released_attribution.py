"""The example runs published with LAQuer computed again: highlights, places of quotations, lengths, candidates."""

import os

import numpy as np

from jaxcore.attribution.lexical_alignment import lexical_align
from jaxcore.attribution.quoted_sources import locate_quotation, parse_quotations
from jaxcore.attribution.text_spans import Span
from jaxcore.data.highlight_queries import transfer_candidates
from jaxcore.data.laquer_release import ReleasedAnswer, ReleasedRun, read_released_runs
from jaxcore.evaluation.span_attribution import span_agreement


def released_agreement(path: str | os.PathLike[str]) -> dict[str, float]:
    """Agreement with the published runs below a folder, by run and over runs ("highlights_f1", ...).

    Per run: the share of facts whose highlight is the published one and the mean character F1 of highlights; the same
    of quotations, of all answers and of those that quote verbatim (what is only near is placed by other rules than the
    release's); the published spans' mean length per attributed fact; sampled facts without candidates, without
    attribution as released, and those that have candidates here but were left without attribution ("recovered").

    Raises:
        ValueError: as `read_released_runs`.
    """
    runs = {run.name: _agreement(run) for run in read_released_runs(path)}
    metrics = {f"{name}/{key}": value for name, found in runs.items() for key, value in found.items()}
    names = ("highlights_f1", "quotations_f1", "verbatim_identical")
    return metrics | {name: float(np.mean([found[name] for found in runs.values()])) for name in names}


def _agreement(run: ReleasedRun) -> dict[str, float]:
    same, overlaps = [], []
    for fact in run.facts:
        ours = lexical_align(fact.fact, fact.sentence).spans()
        same.append(tuple(ours) == fact.local)
        one, two = ([Span("", *span) for span in spans] for spans in (ours, fact.local))
        overlaps.append(span_agreement(one, two).f1)
    placed = np.asarray([_quotation_f1(answer) for answer in run.answers])
    verbatim = np.asarray([_is_verbatim(answer) for answer in run.answers])
    sampled = [fact for fact in run.facts if fact.sampled]
    lost = [not transfer_candidates(run.rows, fact.output, aligned=run.aligned) for fact in sampled]
    unattributed = [fact.number not in run.attributed for fact in sampled]
    lengths = [sum(span.end - span.start for span in spans) for spans in run.attributed.values()]
    return {
        "facts": float(len(run.facts)),
        "highlights_identical": float(np.mean(same)),
        "highlights_f1": float(np.mean(overlaps)),
        "quotations": float(len(run.answers)),
        "quotations_identical": float(np.mean(placed > 1 - 1e-9)),
        "quotations_f1": float(np.mean(placed)),
        "verbatim_answers": float(np.sum(verbatim)),
        "verbatim_identical": float(np.mean(placed[verbatim] > 1 - 1e-9)) if verbatim.any() else 1.0,
        "characters": float(np.mean(lengths)),
        "without_candidates": float(np.sum(lost)),
        "without_attribution_as_released": float(np.sum(unattributed)),
        "recovered": float(np.sum(np.asarray(unattributed) & ~np.asarray(lost))),
    }


def _quotation_f1(answer: ReleasedAnswer) -> float:
    try:
        return span_agreement(parse_quotations(answer.answer, answer.shown), answer.spans).f1
    except ValueError:  # a quotation that is nowhere: the answer would be asked for again
        return 0.0


def _is_verbatim(answer: ReleasedAnswer) -> bool:
    """Whether every quotation stands in a source letter by letter."""
    parts = [part for part in answer.answer.split(";") if part.strip()]
    return all(any(locate_quotation(part, source.text, fuzzy=False) for source in answer.shown) for part in parts)
