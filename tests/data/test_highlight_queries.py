"""Highlights from facts, and which sources a highlight inherits from its sentence."""

import dataclasses

from jaxcore.attribution.text_spans import Span
from jaxcore.data.grounded_texts import GroundedText
from jaxcore.data.highlight_queries import (
    CoarseRow,
    facts_prompt,
    merge_pieces,
    parse_facts,
    simulated_highlight,
    simulated_highlights,
    transfer_candidates,
)
from jaxcore.generation import scripted_generator

OUTPUT = "Ann left Rome. The blue ferry sank off Skagen with forty people."
SENTENCES = ((0, 14), (15, len(OUTPUT)))
ROWS = [
    CoarseRow(SENTENCES[0], Span("a", 0, 10)),
    CoarseRow(SENTENCES[1], Span("b", 5, 9)),
    CoarseRow(SENTENCES[1], Span("a", 20, 30)),
    CoarseRow(SENTENCES[0], None),
]


def test_a_highlight_within_a_sentence_has_that_sentence_s_sources():
    """The released code tests only whether an end of the sentence lies in the highlight, and would give none."""
    assert transfer_candidates(ROWS, [(24, 29)]) == [Span("a", 20, 30), Span("b", 5, 9)]
    assert transfer_candidates(ROWS, [(4, 8)]) == [Span("a", 0, 10)]
    assert transfer_candidates(ROWS, [(8, 14), (15, 18)]) == [Span("a", 0, 10), Span("a", 20, 30), Span("b", 5, 9)]
    assert transfer_candidates(ROWS, [(14, 15)]) == []


def test_an_attribution_that_is_not_aligned_is_of_every_highlight():
    assert len(transfer_candidates(ROWS, [(0, 1)], aligned=False)) == 3
    assert transfer_candidates([CoarseRow(None, Span("c", 0, 1))], [(50, 51)]) == [Span("c", 0, 1)]


def test_pieces_that_touch_stay_apart_and_those_that_overlap_do_not():
    spans = [Span("a", 5, 9), Span("a", 0, 5), Span("a", 8, 12), Span("a", 0, 5), Span("b", 1, 2)]
    assert merge_pieces(spans) == [Span("a", 0, 5), Span("a", 5, 12), Span("b", 1, 2)]


def test_a_fact_highlights_its_words_in_the_output():
    found = simulated_highlight("The ferry sank off Skagen.", SENTENCES[1], OUTPUT)
    assert [OUTPUT[slice(*span)] for span in found] == ["The", "ferry sank off Skagen", "."]


def test_facts_of_other_words_are_dropped():
    """Two content words are missing: one more than may be."""
    assert simulated_highlight("The ferry sank off Malta yesterday.", SENTENCES[1], OUTPUT) is None
    assert simulated_highlight("The ferry sank off Malta yesterday.", SENTENCES[1], OUTPUT, max_missing=2)
    assert simulated_highlight("zebra", SENTENCES[1], OUTPUT) is None


def test_facts_are_asked_for_and_drawn_by_the_text_s_own_seed():
    text = GroundedText("t", (), OUTPUT, SENTENCES)
    answers = {
        facts_prompt(OUTPUT[0:14]): "- Ann left.\n- Ann left Rome.",
        facts_prompt(OUTPUT[15:]): "- The ferry sank.\n\n- The ferry was blue\n- Forty people.\n- Cows fly over hills.",
    }
    generate = scripted_generator(answers)
    [every] = simulated_highlights([text], generate)
    assert len(every) == 5 and [sentence for sentence, _ in every].count(SENTENCES[0]) == 2
    [some] = simulated_highlights([text], generate, most=2)
    assert len(some) == 2 and all(highlight in every for highlight in some)
    other = dataclasses.replace(text, name="u", output=OUTPUT[:14], output_sentences=SENTENCES[:1])
    assert simulated_highlights([other, text], generate, most=2) == [every[:2], some]


def test_lines_are_facts_with_or_without_a_dash():
    assert parse_facts("- one\n\n  two \n-three") == ["one", "two", "three"]
