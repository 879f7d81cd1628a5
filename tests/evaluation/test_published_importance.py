"""The analysis of released scores on traces made up for it: the identity breaks when it should, tables are compared."""

import dataclasses

import numpy as np
import pytest

from jaxcore.data.published_traces import SCORES, PublishedTrace
from jaxcore.data.reasoning_trace import ReasoningTrace
from jaxcore.evaluation.dependency_recovery import dependency_auc
from jaxcore.evaluation.published_importance import COUNTERFACTUAL, FORCED, analyse_published, reproduced_share
from jaxcore.evaluation.reasoning_categories import CategoryMean

FUNCTIONS = ["plan_generation", "active_computation", "fact_retrieval", "uncertainty_management"]


def traces(broken=0.0):
    rng = np.random.default_rng(0)
    made = []
    for number in range(6):
        accuracy = rng.uniform(0.2, 0.8, 8)
        importance = np.tile([4.0, 1.0, 2.0, 3.0], 2) + rng.uniform(0, 0.5, 8)
        scores = {name: np.zeros(8) for name in SCORES} | {
            "accuracy": accuracy,
            "resampling_importance_accuracy": np.append(np.diff(accuracy) + broken, 0),
            COUNTERFACTUAL: importance,
            FORCED: -importance + 9,
        }
        matrix = np.where(np.triu(np.ones((8, 8)), 1) > 0, rng.normal(size=(8, 8)), np.nan)
        matrices = (matrix, matrix**3) if number < 2 else (None, None)
        made.append(
            PublishedTrace(
                "deepseek-r1-distill-some", number, True, ["s"] * 8, np.array([0, 1, 2, 3, 4, 5, 7, 8]), FUNCTIONS * 2,
                np.zeros((8, 8), bool), scores, *matrices,
            )
        )  # fmt: skip
    return made


def test_identity_contrasts_table_and_agreement():
    found = analyse_published(traces())
    metrics = found.metrics
    assert metrics["identity_pairs"] == 6 * 6, "sentences 5 and 7 are no neighbours"
    assert metrics["identity_holds"] == 1 and metrics["identity_error"] < 1e-12
    for name in ("plan_over_computation", "doubt_over_computation", "plan_over_facts", "forced_computation_over_plan"):
        assert metrics[f"{name}/share"] == 1 and metrics[f"{name}/evidence"] == pytest.approx(-np.log10(1 / 2**6))
    assert metrics["agreement/all"] == pytest.approx(1) and set(found.table) == {
        ("some", COUNTERFACTUAL),
        ("some", FORCED),
    }
    assert 4 < found.table["some", COUNTERFACTUAL]["plan_generation"].mean < 4.5
    assert analyse_published(traces(1e-6)).metrics["identity_holds"] == 0


def test_printed_numbers_count_when_they_agree_to_three_decimals():
    table = {("m", "s"): {"a": CategoryMean(0.12345, 0.0101, 4), "b": CategoryMean(1.0, 0.5, 4)}}
    printed = {("m", "s"): {"a": (0.123, 0.010), "b": (1.0, 0.501)}, ("other", "s"): {"a": (9.0, 9.0)}}
    assert reproduced_share(table, printed) == 0.5
    with pytest.raises(ValueError, match="no printed number"):
        reproduced_share(table, {("other", "s"): {"a": (9.0, 9.0)}})


def test_dependencies_are_asked_of_the_given_functions_over_all_traces():
    edges = np.zeros((4, 4), bool)
    edges[0, 2] = edges[1, 3] = True
    trace = ReasoningTrace(
        "t", "", (1,) * 8, ("s",) * 4, np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), tuple(FUNCTIONS), "", "", edges
    )
    matrix = np.where(edges, 2.0, 1.0)
    asked = {"targets": ("fact_retrieval", "uncertainty_management")}
    assert dependency_auc([trace, trace], [matrix, matrix], **asked) == (1.0, pytest.approx(1 / 3))
    matrix[1, 3] = 0.0  # of one target: the other one stays perfect
    assert dependency_auc([trace], [matrix], targets=("fact_retrieval",))[0] == 1
    assert dependency_auc([trace], [matrix], **asked)[0] < 1
    assert dependency_auc([trace], [np.where(edges, 2.0, 1.0)], **asked, nearest=2)[1] == 1
    with pytest.raises(ValueError, match="dependencies of t are not known"):
        dependency_auc([dataclasses.replace(trace, edges=None)], [matrix], **asked)
