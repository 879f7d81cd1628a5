"""Readers of source documents: offsets checked, joints right."""

import json

import pytest

from jaxcore.data.grounded_texts import read_lfqa, read_mds, split_sentences


def mds(tmp_path, second_start=7):
    rows = [("One a. ", 0), ("Two b.", second_start)]
    sentences = [{"sent_i": i, "sent_idx": start, "sent_text": text} for i, (text, start) in enumerate(rows)]
    file = tmp_path / "mds.json"
    file.write_text(json.dumps({"documents": {"t": {"0.txt": sentences}}, "summaries": {"t": sentences[:1]}}))
    return file


def test_clusters_are_joined_without_a_separator(tmp_path):
    text = read_mds(mds(tmp_path))["t"]
    assert text.texts() == {"0.txt": "One a. Two b."} and text.output == "One a. "
    assert [tuple(span) for span in text.sentences()] == [("0.txt", 0, 7), ("0.txt", 7, 13)]


def test_offsets_that_are_not_where_the_sentence_is_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"t/0.txt: sentence 1 starts at 8, expected 7"):
        read_mds(mds(tmp_path, 8))


@pytest.mark.parametrize("content", [None, "[]", '{"documents": {}}'])
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_mds(file)


def test_sentences_end_at_marks_before_a_capital_and_at_line_breaks():
    text = 'He left. "Why?" she asked.  Nobody knew\n\nat 3.5 p.m. that'
    found = [text[start:end] for start, end in split_sentences(text)]
    assert found == ["He left.", '"Why?" she asked.', "Nobody knew", "at 3.5 p.m. that"]


def test_the_published_files(shared_data):
    texts = read_mds(shared_data / "laquer" / "mds_sents_separation.json")
    assert len(texts) == 100 and all(text.output and text.documents for text in texts.values())
    pages = read_lfqa(shared_data / "laquer" / "lfqa_test.json")
    assert len(pages) == 45
    for page in pages.values():
        for document in page.documents:
            words = [word for a, b in document.sentences for word in document.text[a:b].split()]
            assert words == document.text.split()  # nothing is lost between sentences
