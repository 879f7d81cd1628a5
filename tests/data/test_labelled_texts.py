"""Labelled texts from files of every kind, and what is refused."""

import gzip

import numpy as np
import pytest

from jaxcore.data.labelled_texts import (
    LabelledTexts,
    read_labelled_records,
    read_text_label_lines,
    read_tree_sentences,
)

NEWS = {"text_fields": ("title", "body"), "label_field": "label"}


def test_trees_give_words_and_two_classes(tmp_path):
    trees = tmp_path / "trees.txt"
    trees.write_text("(3 (2 A) (4 joy))\n(2 (2 So) (2 so))\n(0 (2 No) (1 good))\n")
    texts = read_tree_sentences(trees)
    assert list(texts.first) == [("A", "joy"), ("No", "good")] and texts.labels.tolist() == [1, 0]


def test_a_table_reads_the_same_with_and_without_its_header(tmp_path):
    table, bare, packed = tmp_path / "table.csv", tmp_path / "bare.csv", tmp_path / "bare.csv.gz"
    rows = '3,One,"b, c"\n4,Two,d\n'
    table.write_text("label,title,body\n" + rows)
    bare.write_text(rows)
    packed.write_bytes(gzip.compress(rows.encode()))
    texts = read_labelled_records(str(table), **NEWS)
    assert texts.first == ["One b, c", "Two d"] and texts.labels.tolist() == [3, 4]
    for file in (bare, packed):
        again = read_labelled_records(str(file), columns=("label", "title", "body"), **NEWS)
        assert again.first == texts.first and again.labels.tolist() == [3, 4]


def test_pairs_are_taken_together():
    texts = LabelledTexts(["a", "b", "c"], ["d", "e", "f"], np.array([0, 1, 2]))
    taken = texts.take(np.array([2, 0]))
    assert (taken.first, taken.second, taken.labels.tolist()) == (["c", "a"], ["f", "d"], [2, 0])
    assert len(texts) == 3 and LabelledTexts(["a"], None, np.array([0])).take(np.array([0])).second is None


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file at .*none\.csv"):
        read_labelled_records(str(tmp_path / "none.csv"), columns=("label", "title", "body"), **NEWS)
    (tmp_path / "bad.csv").write_text("no label here\n")
    with pytest.raises(ValueError, match=r"bad\.csv:1: expected text,label"):
        read_text_label_lines(tmp_path / "bad.csv")
