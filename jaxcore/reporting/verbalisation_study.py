"""The published human study of saliency map verbalisation, analysed again: every number of its table compared.

Heatmaps, templates, a rationaliser's words and GPT-3.5's texts, rated by people for movie reviews and news articles
(Feldhus et al. 2023, Table 2); coverage@k and citation precision of what was shown. The files are read by
`jaxcore.evaluation.explanation_study`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from jaxcore.evaluation import paired_permutation_test
from jaxcore.evaluation.explanation_study import (
    STUDY_DATASETS,
    Subset,
    evaluation_rows,
    guess_agreement,
    read_study,
    study_coverage_at_k,
    study_files,
    subset_means,
)
from jaxcore.reporting.html import Section
from jaxcore.reporting.tables import Table
from jaxcore.reporting.verbalisation_measures import all_citations

RANKS = tuple(range(1, 11))
"""k of coverage@k."""
_KINDS = {"HM": "heatmap", "ER": "rationale", "SMV": "template", "GPT": "instructed"}
_MEASURES = ("accuracy", "helpful", "ease")

# Table 2 [fig], rows HM, ER, SMV, GPT (AG News without ER); each row A, B1, B2. Simulation wrong: A is 0 by definition.
TABLE_2: Mapping[tuple[str, Subset], tuple[tuple[float, ...], ...]] = {
    ("IMDb", "all"): ((90.75, 4.73, 4.35), (85.94, 4.19, 4.00), (87.50, 4.46, 4.67), (94.06, 5.80, 5.88)),
    ("IMDb", "high_coverage"): ((94.38, 4.98, 4.47), (89.45, 4.50, 4.34), (92.19, 4.91, 4.99), (96.09, 5.94, 5.99)),
    ("IMDb", "model_wrong"): ((74.49, 3.67, 3.48), (58.43, 3.09, 2.92), (63.90, 3.21, 3.61), (84.65, 5.01, 5.25)),
    ("IMDb", "simulation_wrong"): ((0, 3.40, 3.48), (0, 3.10, 3.18), (0, 2.85, 3.35), (0, 3.94, 4.33)),
    ("AGNews", "all"): ((79.83, 5.26, 5.02), (79.50, 4.65, 4.90), (77.60, 5.63, 5.77)),
    ("AGNews", "high_coverage"): ((85.31, 5.41, 5.18), (84.57, 4.98, 5.13), (81.13, 5.80, 5.89)),
    ("AGNews", "model_wrong"): ((70.17, 5.02, 4.84), (69.37, 4.52, 4.84), (64.53, 5.36, 5.61)),
    ("AGNews", "simulation_wrong"): ((0, 4.14, 4.08), (0, 3.34, 3.89), (0, 4.40, 5.10)),
}

# Coverage@k recomputed from the released files [measured], k = 1, 2, 3, 5, 10.
COVERAGE_TABLE: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("IMDb", "SMV"): (0.213, 0.280, 0.315, 0.353, 0.391),
    ("IMDb", "GPT"): (0.168, 0.227, 0.254, 0.296, 0.344),
    ("AGNews", "SMV"): (0.345, 0.440, 0.492, 0.544, 0.560),
}
_TABLE_RANKS = (1, 2, 3, 5, 10)


class Study(NamedTuple):
    """The study analysed again: numbers by name, and rows (dataset, subset, representation, A, B1, B2)."""

    metrics: dict[str, float]
    rows: list[tuple[Any, ...]]


def analyse_study(path: str) -> Study:
    """Table 2, agreement, coverage@k and citation precision of the published files, and how many cells agree."""
    files = study_files(path)
    tables = {dataset: read_study(files, dataset) for dataset in STUDY_DATASETS}
    metrics: dict[str, float] = {}
    rows: list[tuple[Any, ...]] = []
    apart: list[float] = []
    for (dataset, subset), printed in TABLE_2.items():
        kinds = [kind for kind in _KINDS if kind != "ER" or dataset == "IMDb"]
        for kind, cells in zip(kinds, printed, strict=True):
            means = subset_means(tables[dataset], subset, kind) or (np.nan,) * 3
            rows.append((dataset, subset, _KINDS[kind], *means))
            apart += [abs(mean - cell) for mean, cell in zip(means, cells, strict=True)]
            for measure, mean in zip(_MEASURES, means, strict=True):
                metrics[f"study/{dataset}/{subset}/{_KINDS[kind]}/{measure}"] = float(mean)
    per_item = {(dataset, kind): study_coverage_at_k(files, dataset, kind) for dataset, kind in COVERAGE_TABLE}
    for (dataset, kind), printed_coverage in COVERAGE_TABLE.items():
        means = per_item[dataset, kind].mean(0)
        apart += [abs(means[k - 1] - cell) for k, cell in zip(_TABLE_RANKS, printed_coverage, strict=True)]
        metrics |= {f"study/{dataset}/coverage_at_k/{_KINDS[kind]}/{k}": float(means[k - 1]) for k in RANKS}
    for dataset, table in tables.items():
        metrics[f"study/{dataset}/kappa"] = guess_agreement(table)
        quoting = [row for row in evaluation_rows(files, dataset) if row["Type"] == "GPT"]
        citations = all_citations((row["Explanation"] for row in quoting), (row["Input Text"] for row in quoting))
        metrics[f"study/{dataset}/citation_precision"] = citations.precision
    metrics |= {
        "study/cells": float(len(apart)),
        "study/cells_reproduced": float(np.mean(np.asarray(apart) <= 0.005 + 1e-9)),
        "study/largest_difference": float(np.max(apart)),
    }
    return Study(metrics | _coverage_contrast(per_item), rows)


def _coverage_contrast(per_item: Mapping[tuple[str, str], np.ndarray]) -> dict[str, float]:
    """IMDb, template minus instructed: at the least favourable k, in the mean over k, and two paired tests of it."""
    template, instructed = per_item["IMDb", "SMV"], per_item["IMDb", "GPT"]
    difference = (template - instructed).mean(1)
    test = paired_permutation_test(template.mean(1), instructed.mean(1))
    return {
        "study/IMDb/coverage_gap/smallest": float((template - instructed).mean(0).min()),
        "study/IMDb/coverage_gap/mean": test.effect,
        "study/IMDb/coverage_gap/p_permutation": test.p_value,
        "study/IMDb/coverage_gap/p_wilcoxon": float(scipy.stats.wilcoxon(difference[difference != 0]).pvalue),
        "study/IMDb/coverage_gap/items_above": float(np.sum(difference > 0)),
        "study/IMDb/coverage_gap/items_below": float(np.sum(difference < 0)),
    }


def study_section(study: Study) -> Section:
    """Table 2 recomputed, and the automatic numbers."""
    automatic = [
        (name.removeprefix("study/"), value) for name, value in study.metrics.items() if not name.endswith(_MEASURES)
    ]
    return Section(
        "The published human study, analysed again",
        [
            Table(("data", "texts", "representation", "accuracy (%)", "helpful 1-7", "ease 1-7"), study.rows),
            Table(("measure", "value"), automatic),
        ],
        note="Mean of each annotator, then over annotators; a blank guess is a wrong one.",
    )
