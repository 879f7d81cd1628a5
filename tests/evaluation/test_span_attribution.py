"""Measures of attributed spans, worked by hand."""

import numpy as np
import pytest

from jaxcore.attribution.text_spans import Span
from jaxcore.evaluation.span_attribution import (
    attribution_premise,
    autoais,
    content_coverage,
    entailment_input,
    paired_gain,
    span_agreement,
    token_agreement,
)

DOCUMENTS = {"b": "Red cats\nsleep. Dogs bark", "a": "Birds sing!"}


def test_agreement_counts_characters_once():
    predicted = [Span("a", 0, 6), Span("a", 4, 8), Span("b", 0, 2)]
    gold = [Span("a", 6, 10), Span("b", 1, 3)]
    assert span_agreement(predicted, gold) == pytest.approx((3 / 10, 3 / 6, 6 / 16))
    assert span_agreement([], gold) == (0, 0, 0)
    with pytest.raises(ValueError, match="no gold span"):
        span_agreement(predicted, [])


def test_words_cut_by_a_span_count_as_words():
    predicted, gold = [Span("b", 5, 14)], [Span("b", 4, 8), Span("b", 16, 20)]
    assert token_agreement(predicted, gold, DOCUMENTS) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert token_agreement([], gold, DOCUMENTS) == (0, 0, 0)


def test_coverage_is_of_content_words_in_any_form():
    spans = [Span("b", 0, 14)]
    assert content_coverage("the cat sleeps", spans, DOCUMENTS) == 1
    assert content_coverage("cats and dogs", spans, DOCUMENTS) == 0.5
    assert content_coverage("of the", spans, DOCUMENTS) == 1 and content_coverage("cats", [], DOCUMENTS) == 0


def test_a_premise_has_its_documents_in_order_with_periods():
    spans = [Span("a", 0, 11), Span("b", 16, 20), Span("b", 0, 14), Span("b", 8, 9)]
    assert attribution_premise(spans, DOCUMENTS) == "Red cats sleep. Dogs.\n Birds sing!"
    assert attribution_premise([], DOCUMENTS) == "" == attribution_premise([Span("b", 8, 9)], DOCUMENTS)
    assert entailment_input("a\n b", "c") == "premise: a b hypothesis: c"


def test_queries_without_attribution_stay_in_the_denominator_and_are_not_asked_about():
    asked = []

    def entail(premises, hypotheses):
        asked.extend(premises)
        return [hypothesis in premise for premise, hypothesis in zip(premises, hypotheses, strict=True)]

    found = autoais(["cats sleep", "", "dogs"], ["cats", "", "cats"], entail)
    assert found == (pytest.approx(1 / 3), (True, False, False), pytest.approx(1 / 3)) and asked == [
        "cats sleep",
        "dogs",
    ]
    with pytest.raises(ValueError, match="at least one: got 0, 0"):
        autoais([], [], entail)
    assert autoais(["", ""], ["a", "b"], entail) == (0, (False, False), 1) and len(asked) == 2


def test_gains_resample_topics_not_queries():
    """Forty queries of two topics that disagree: over queries the mean would be sure, over topics it is not."""
    first = np.asarray([1.0] * 20 + [0.2] * 20)
    gain = paired_gain(first, np.full(40, 0.5), ["x"] * 20 + ["y"] * 20)
    assert gain.estimate == pytest.approx(0.1) and (gain.low, gain.high) == (pytest.approx(-0.3), pytest.approx(0.5))
