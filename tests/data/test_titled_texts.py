"""Titled texts: the embedded reference is what it says, files are read or refused with their line."""

import json

import pytest

from jaxcore.data.titled_texts import python_reference_texts, read_titled_texts


def test_the_reference_is_real_prose_under_real_headings():
    corpus = python_reference_texts()
    assert len(corpus.texts) == len(set(corpus.texts)) > 500
    assert len(set(corpus.titles)) > 80 and len(set(corpus.topics)) > 40
    assert min(text.count(" ") + 1 for text in corpus.texts) >= 16
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz_ ") for text in (*corpus.texts, *corpus.titles))
    titles_of = dict(zip(corpus.titles, corpus.topics, strict=True))
    assert titles_of["string methods"] == "string-methods"
    first = next(text for text, title in zip(corpus.texts, corpus.titles, strict=True) if title == "the if statement")
    assert "selects exactly one of the suites" in first
    assert corpus == python_reference_texts()


def test_lines_of_title_and_text(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("A walk\tOne day he went out.\n\nThe end\tIt was late.\tVery late.\n", encoding="utf-8")
    corpus = read_titled_texts(path)
    assert corpus.titles == corpus.topics == ("A walk", "The end")
    assert corpus.texts == ("One day he went out.", "It was late.\tVery late.")


def test_records_with_named_columns(tmp_path):
    path = tmp_path / "news.jsonl"
    rows = [{"head": f"h{i}", "body": f"words {i}", "section": "s"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = read_titled_texts(path, title_field="head", text_field="body", topic_field="section")
    assert corpus == (("words 0", "words 1", "words 2"), ("h0", "h1", "h2"), ("s", "s", "s"))


def test_real_utterances_under_their_intents(shared_data):
    corpus = read_titled_texts(shared_data / "intents" / "banking77_test.csv", title_field="category")
    assert len(corpus.texts) == 3080 and len(set(corpus.titles)) == 77


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "title\ttext\nno tab here\n", r"a\.txt:2: expected title<TAB>text, found no tab"),
        ("b.txt", "\n", "no records"),
        ("c.jsonl", '{"title": "t"}\n', "missing field 'text'"),
        ("missing.txt", None, "no file at"),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_titled_texts(path)
