"""Methods' attributions of highlights: numbers by hand, with and without gold spans, and AutoAIS over all queries."""

import dataclasses

import pytest

from jaxcore.attribution.text_spans import Span
from jaxcore.data.grounded_texts import GroundedText, source_document
from jaxcore.data.highlight_queries import HighlightQuery
from jaxcore.evaluation.query_attribution import entailment_metrics, entailment_pairs, measure

PAGE = source_document("d", "Cats sleep. Dogs bark.")
TEXT = GroundedText("t", (PAGE,), "Cats sleep and dogs bark.", ((0, 25),))
QUERIES = [
    HighlightQuery(TEXT, ((0, 10),), (0, 25), tuple(PAGE.spans()), (Span("d", 0, 10),)),
    HighlightQuery(TEXT, ((15, 24),), (0, 25), tuple(PAGE.spans()), (Span("d", 12, 21),)),
]
ATTRIBUTED = {"right": [(Span("d", 0, 10),), (Span("d", 12, 21),)], "half": [(Span("d", 5, 15),), ()]}


def test_methods_are_measured_by_characters():
    assert measure(QUERIES, ATTRIBUTED["right"]).metrics == {
        "precision": 1, "recall": 1, "f1": 1, "characters": 9.5, "non_attributed": 0, "coverage": 1,
    }  # fmt: skip
    half = measure(QUERIES, ATTRIBUTED["half"])
    assert half.f1.tolist() == [pytest.approx(0.5), 0] and half.metrics["non_attributed"] == 0.5
    assert half.metrics["coverage"] == 0.25, "'sleep' of two words, and none of the other two"


def test_queries_that_nobody_aligned_have_no_agreement():
    unaligned = [dataclasses.replace(query, gold=()) for query in QUERIES]
    found = measure(unaligned, ATTRIBUTED["right"])
    assert set(found.metrics) == {"characters", "non_attributed", "coverage"} and not len(found.f1)


def test_each_pair_is_judged_once_and_queries_without_text_count_as_not_entailed():
    hypotheses = {"autoais": [query.words() for query in QUERIES], "autoais_claim": ["Cats sleep", "Dogs sing"]}
    some = ATTRIBUTED | {"first": ATTRIBUTED["right"][:1]}
    pairs = entailment_pairs(QUERIES, some, hypotheses)
    assert pairs == [
        ("Cats sleep.", "Cats sleep"), ("Dogs bark.", "dogs bark"), ("sleep. Dog.", "Cats sleep"),
        ("Dogs bark.", "Dogs sing"),
    ]  # fmt: skip
    judged = {pair: [pair[1].lower() in pair[0].lower(), pair[0].startswith("sleep")] for pair in pairs}
    assert entailment_metrics(QUERIES, some, hypotheses, judged) == {
        "right/autoais": 1, "right/autoais_claim": 0.5, "right/premise_cut": 0,
        "half/autoais": 0, "half/autoais_claim": 0, "half/premise_cut": 1,
        "first/autoais": 1, "first/autoais_claim": 1, "first/premise_cut": 0,
    }  # fmt: skip
