"""Reading sentiment treebanks: words, phrases and grades, the two-class task, and what is refused."""

import os
import pathlib

import numpy as np
import pytest

from jaxcore.data.sentiment_trees import binary_sentences, parse_tree, read_sentiment_trees

TREE = "(3 (2 The) (4 (4 lovely) (2 film)))"
SHARED = pathlib.Path(os.environ.get("JAXCORE_SHARED", "../shared")) / "data/sentiment"


def test_a_tree_has_its_words_and_the_grade_of_every_phrase():
    tree = parse_tree(TREE)
    assert tree.words == ("The", "lovely", "film") and tree.grade == 3
    graded = {" ".join(tree.words[p.start : p.end]): p.grade for p in tree.phrases}
    assert graded == {"The": 2, "lovely": 4, "film": 2, "lovely film": 4, "The lovely film": 3}


def test_escaped_brackets_are_brackets():
    assert parse_tree("(1 (2 -LRB-) (1 dull))").words == ("(", "dull")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("(3 (2 The) (4 film)", "never closed"),
        ("(3 (2 The) (4 film)))", "without its"),
        ("(5 film)", "grade from 0 to 4"),
        ("(x film)", "grade from 0 to 4"),
        ("(3 film) (2 more)", "after the tree"),
        ("(3 )", "without words"),
        ("film", "outside of brackets"),
        ("(", "grade"),
    ],
)
def test_a_malformed_tree_says_what_is_wrong(line, message):
    with pytest.raises(ValueError, match=message):
        parse_tree(line)


def test_neutral_sentences_are_left_out_of_the_two_class_task(tmp_path):
    file = tmp_path / "trees.txt"
    file.write_text("\n".join([TREE, "", "(2 (2 a) (2 film))", "(0 (1 dull) (2 film))"]))
    sentences = binary_sentences(read_sentiment_trees(file))
    assert sentences.words == (("The", "lovely", "film"), ("dull", "film"))
    np.testing.assert_array_equal(sentences.labels, [1, 0])


def test_a_bad_line_is_named_with_its_number(tmp_path):
    file = tmp_path / "trees.txt"
    file.write_text(f"{TREE}\n(9 no)\n")
    with pytest.raises(ValueError, match=r"trees\.txt:2: expected a grade"):
        read_sentiment_trees(file)
    assert len(read_sentiment_trees(file, max_malformed_rate=0.5)) == 1


def test_files_that_are_no_treebank_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"(3 caf\xe9)")
    for name, message in {"absent.txt": "no file at", "empty.txt": "no records", "latin.txt": "not UTF-8"}.items():
        with pytest.raises(ValueError, match=message):
            read_sentiment_trees(tmp_path / name)


def test_the_treebank_has_its_published_sizes():
    if not (SHARED / "sst_trees_dev.txt").is_file():
        pytest.skip("no treebank files")
    trees = {split: read_sentiment_trees(SHARED / f"sst_trees_{split}.txt") for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in trees.items()} == {"train": 8544, "dev": 1101, "test": 2210}
    sizes = {split: len(binary_sentences(found).labels) for split, found in trees.items()}
    assert sizes == {"train": 6920, "dev": 872, "test": 1821}
