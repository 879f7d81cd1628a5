"""Outputs of generators: the published form read, or asked for; highlights and candidates from their attribution."""

import json

import pytest

from jaxcore.attribution.text_spans import Span
from jaxcore.data.grounded_answers import (
    GroundedAnswer,
    answer_prompt,
    answer_queries,
    read_grounded_answers,
    with_output,
    write_answers,
)
from jaxcore.data.grounded_texts import GroundedText, source_document
from jaxcore.data.highlight_queries import CoarseRow, facts_prompt
from jaxcore.generation import rule_generator, scripted_generator

PAGES = (
    source_document("a", "The ferry left Oslo. It sank off Skagen."),
    source_document("b", "Forty people were saved."),
)
SOURCES = GroundedText("q1", PAGES)
OUTPUT = "The ferry sank off Skagen. Forty were saved."
SECOND = (27, len(OUTPUT))
RECORD = {
    "unique_id": "q1",
    "query": "What happened?",
    "response": OUTPUT,
    "documents": [
        {"documentFile": "a", "documentText": ["The ferry left Oslo. ", "It sank off Skagen."]},
        {"documentFile": "b", "documentText": "Forty people were saved."},
    ],
    "set_of_highlights_in_context": [
        {"scuSentCharIdx": 0, "scuSentence": OUTPUT[:26], "documentFile": "a", "docSpanOffsets": [[21, 28], [29, 32]]},
        {"scuSentCharIdx": 27, "scuSentence": OUTPUT[27:], "documentFile": "b", "docSpanOffsets": None},
        {"scuSentCharIdx": None, "scuSentence": None, "documentFile": None},
    ],
}


def written(tmp_path, *records):
    file = tmp_path / "results.json"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_the_published_form_is_read_with_its_attribution(tmp_path):
    [answer] = read_grounded_answers(written(tmp_path, RECORD))
    assert answer.text.output == OUTPUT and answer.text.question == "What happened?"
    assert answer.text.texts()["a"] == "The ferry left Oslo. It sank off Skagen."
    assert [tuple(s) for s in answer.text.sentences()] == [("a", 0, 21), ("a", 21, 40), ("b", 0, 24)]
    assert answer.rows == (
        CoarseRow((0, 26), Span("a", 21, 28)),
        CoarseRow((0, 26), Span("a", 29, 32)),
        CoarseRow(SECOND, Span("b", 0, 24)),
        CoarseRow(None, None),
    )


def test_lines_without_documents_take_them_by_their_id(tmp_path):
    bare = {"unique_id": "q1", "query": None, "response": OUTPUT}
    [answer] = read_grounded_answers(written(tmp_path, bare), {"q1": SOURCES})
    assert answer.text.documents == PAGES and answer.rows is None and answer.text.output_sentences == ((0, 26), SECOND)
    with pytest.raises(ValueError, match=r"line 1: no documents of q1"):
        read_grounded_answers(written(tmp_path, bare))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": " "}, "the response of q1 is empty"),
        ({"set_of_highlights_in_context": [{"documentFile": "c"}]}, "no document c of q1"),
        (
            {"set_of_highlights_in_context": [{"documentFile": "b", "docSpanOffsets": [[0, 99]]}]},
            r"line 2: b has 24 characters: \[0, 99\) is no part of it",
        ),
        ({"set_of_highlights_in_context": [{"scuSentCharIdx": 40, "scuSentence": OUTPUT}]}, "the response has"),
        ({"documents": [{"documentFile": "a"}]}, r"line 2: not an output with its sources \(KeyError"),
    ],
)
def test_damaged_lines_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_grounded_answers(written(tmp_path, RECORD, RECORD | change))


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file at /does/not/exist"):
        read_grounded_answers("/does/not/exist")
    with pytest.raises(ValueError, match="holds no line"):
        read_grounded_answers(written(tmp_path))


def test_a_model_writes_from_the_sources_it_is_shown():
    prompt = answer_prompt(GroundedText("q", PAGES, question="Where?"))
    assert "Source 2: Forty people were saved.\nQuestion: Where?\nAnswer: " in prompt
    assert "Question" not in answer_prompt(SOURCES) and answer_prompt(SOURCES).endswith("saved.\nAnswer: ")
    last = rule_generator(lambda prompt, seed: f" {prompt.splitlines()[-2].partition(': ')[2]}\n")
    assert write_answers([SOURCES], last) == ["Forty people were saved."]


def test_highlights_of_facts_have_the_source_sentences_their_sentence_was_attributed_to(tmp_path):
    generate = scripted_generator(
        {facts_prompt(OUTPUT[:26]): "- The ferry sank.", facts_prompt(OUTPUT[27:]): "- Forty were saved."}
    )
    free = GroundedAnswer(with_output(SOURCES, OUTPUT), None)
    attributed, everything = answer_queries([*read_grounded_answers(written(tmp_path, RECORD)), free], generate)
    assert [query.words() for query in attributed] == ["The ferry sank .", "Forty were saved."]
    assert [query.candidates for query in attributed] == [(Span("a", 21, 40),), (Span("b", 0, 24),)]
    assert all(len(query.candidates) == 3 and not query.gold for query in everything)
