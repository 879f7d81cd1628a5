"""People's alignments: offsets read as the files mean them."""

import csv
import json

import pytest

from jaxcore.attribution.text_spans import Span
from jaxcore.data.grounded_texts import GroundedText, SourceDocument, read_mds
from jaxcore.data.span_alignments import (
    read_granular_statements,
    read_spark_alignments,
    spark_queries,
    unmark,
)

DOCUMENT = SourceDocument("0.txt", "Red cats sleep. Dogs bark at night.", ((0, 16), (16, 35)))
TEXTS = {"t": GroundedText("t", (DOCUMENT,), "Cats sleep, dogs bark.", ((0, 22),))}


def spark(tmp_path, **changes):
    base = {
        "topic": "t", "scuSentCharIdx": "0.0", "scuSentence": TEXTS["t"].output, "documentFile": "0.txt",
        "docSentCharIdx": "0,16", "docSpanOffsets": "4, 14;16, 20", "docSpanText": "cats sleep<SPAN_SEP>Dogs",
        "summarySpanOffsets": "0, 10", "summarySpanText": "Cats sleep",
    }  # fmt: skip
    second = {"docSentCharIdx": "16", "docSpanOffsets": "16, 25", "docSpanText": "Dogs bark"}
    second |= {"summarySpanOffsets": "12, 21", "summarySpanText": "dogs bark"}
    file = tmp_path / "spark.csv"
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(base))
        writer.writeheader()
        writer.writerows([base, {**base, **second, **changes}])
    return file


def test_a_query_is_a_highlight_with_its_spans_and_the_sentence_s_sources(tmp_path):
    first, second = spark_queries(read_spark_alignments(spark(tmp_path), TEXTS), TEXTS)
    assert (first.words(), second.words()) == ("Cats sleep", "dogs bark")
    assert first.gold == (Span("0.txt", 4, 14), Span("0.txt", 16, 20)) and second.gold == (Span("0.txt", 16, 25),)
    assert first.candidates == second.candidates == (Span("0.txt", 0, 16), Span("0.txt", 16, 35))


def test_sentences_with_one_highlight_are_left_out(tmp_path):
    same = {"summarySpanOffsets": "0, 10", "summarySpanText": "Cats sleep"}
    alignments = read_spark_alignments(spark(tmp_path, **same), TEXTS)
    assert spark_queries(alignments, TEXTS) == []
    [query] = spark_queries(alignments, TEXTS, min_highlights=1)
    assert query.gold == (Span("0.txt", 4, 14), Span("0.txt", 16, 25))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docSpanText": "Dogs barked"}, r"row 3: \[16, 25\) reads 'Dogs bark', expected 'Dogs barked'"),
        ({"summarySpanText": "cats"}, "row 3: .* expected 'cats'"),
        ({"topic": "u"}, "row 3: no document 0.txt of topic u"),
    ],
)
def test_spans_of_another_text_are_refused_with_their_row(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_spark_alignments(spark(tmp_path, **changes), TEXTS)


def test_marks_are_removed_and_their_spans_kept():
    text, spans = unmark("[ 2 Cats sleep. ] Dogs[ 11  bark at ] the[ 11  moon ]")
    assert text == "Cats sleep. Dogs bark at the moon"
    assert {number: [text[slice(*span)] for span in found] for number, found in spans.items()} == {
        2: ["Cats sleep."],
        11: ["bark at", "moon"],
    }


def test_statements_point_to_their_passage(tmp_path):
    record = {"question": "q", "summary": "All[ 2  dogs bark. ]", "chunk": "", "passages": ["Cats.", "Dogs bark."]}
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps(record))
    [query] = read_granular_statements(file)
    assert query.words() == "dogs bark." and query.gold == (Span("page", 6, 16),) and len(query.candidates) == 2
    file.write_text(json.dumps({**record, "passages": ["Cats."]}))
    with pytest.raises(ValueError, match="line 1: passage 2 of 1"):
        read_granular_statements(file)


def test_the_published_alignments(shared_data):
    """Counts of laquer.md; the reader itself compares all 6,508 spans with the text at their offsets."""
    folder = shared_data / "laquer"
    texts = read_mds(folder / "mds_sents_separation.json")
    alignments = read_spark_alignments(folder / "spark_manual_alignments.csv", texts)
    assert len(alignments) == 2256 and sum(len(alignment.source) for alignment in alignments) == 3367
    queries = spark_queries(alignments, texts)
    assert len(queries) == 1458 and len({(query.text.name, query.sentence) for query in queries}) == 483


def test_the_published_statements_read_as_they_do_without_marks(shared_data):
    """The file also has each marked sentence unmarked."""
    for part, spans in (("dev", 272), ("test", 320)):
        file = shared_data / "laquer" / f"verifiability_granular_{part}.jsonl"
        queries = read_granular_statements(file)
        assert sum(len(query.highlight) for query in queries) == spans
        chunks = [json.loads(line)["chunk"] for line in file.read_text(encoding="utf-8").splitlines()]
        for query in queries:
            chunk = chunks[int(query.text.name.split(":")[1]) - 1]
            letters = ["".join(filter(str.isalnum, text)) for text in (chunk, query.text.output)]
            assert letters[0] in letters[1]
