"""Importance by function: convergence and means by hand, comparison by scipy."""

import numpy as np
import pytest
from scipy import stats

from jaxcore.evaluation.reasoning_categories import (
    category_means,
    compare_functions,
    convergence_index,
    function_means,
)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.5, 1, 1, 1, 1, 1, 1, 1], 1),
        ([0.5, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0], 5),
        ([0.5, 0.995, 0.995, 0.0, 0.0, 0.995, 0.995], None),  # not one side
        ([0.5, 0.5, 0.5, 1, 1, 1, 1], None),  # as released: too near the end
        ([1.0], None),
    ],
)
def test_an_answer_is_settled_from_a_run_of_accuracies_on(accuracies, expected):
    assert convergence_index(np.array(accuracies, float)) == expected


def test_means_are_of_what_is_left_with_negatives_at_zero():
    functions = ["plan_generation", "unknown", "plan_generation", "self_checking", "plan_generation"]
    importances = np.array([1.0, 9.0, -5.0, 2.0, 100.0])
    assert function_means(functions, importances, stop=4) == {"plan_generation": 0.5, "self_checking": 2.0}
    shifted = function_means(functions, importances, indices=np.array([0, 1, 4, 5, 6]), stop=5)
    assert shifted == {"plan_generation": 0.5}
    with pytest.raises(ValueError, match="5 functions, but 2"):
        function_means(functions, importances[:2])


def test_the_unit_is_the_trace():
    rng = np.random.default_rng(0)
    traces = [
        {"plan_generation": v, **({"self_checking": v / 2} if i < 2 else {})} for i, v in enumerate(rng.random(6))
    ]
    found = category_means(traces)
    values = [trace["plan_generation"] for trace in traces]
    assert set(found) == {"plan_generation"}, "two traces are too few"
    assert found["plan_generation"].mean == pytest.approx(np.mean(values)) and found["plan_generation"].num_traces == 6
    assert found["plan_generation"].standard_error == pytest.approx(stats.sem(values))


def test_functions_are_compared_within_traces():
    rng = np.random.default_rng(1)
    traces = [{"a": float(x), "b": float(y)} for x, y in rng.random((12, 2)) + np.array([0.3, 0])] + [{"a": 1.0}]
    found = compare_functions(traces, "a", "b")
    difference = [trace["a"] - trace["b"] for trace in traces[:12]]
    assert found.num_traces == 12 and found.share == np.mean(np.array(difference) > 0)
    assert found.p_value == pytest.approx(stats.wilcoxon(difference, alternative="greater").pvalue)
    assert compare_functions(traces, "b", "a").p_value > 0.5
    assert compare_functions([{"a": 1.0, "b": 1.0}], "a", "b").p_value == 1
    with pytest.raises(ValueError, match="no trace"):
        compare_functions(traces, "a", "c")
