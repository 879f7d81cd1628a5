"""Classification tasks: both layouts, files of every kind, splits, batches, and what is refused."""

import gzip
import json

import numpy as np
import pytest

from jaxcore.data import entailment_world
from jaxcore.data.classification_task import (
    END,
    PAD,
    START,
    UNKNOWN,
    ClassificationDataConfig,
    class_names,
    open_classification_task,
    task_shape,
)

SMALL = ClassificationDataConfig(num_train=64, num_dev=16, num_test=16, min_count=1)


def test_both_layouts_hold_the_same_words():
    task = open_classification_task("overlap", SMALL, seed=0)
    texts = task.splits["dev"]
    words, sequence = task.rows(texts, "texts"), task.rows(texts, "sequence")
    for row in range(len(texts)):
        first, second = (words[f"{s}_ids"][row][words[f"{s}_mask"][row] > 0].tolist() for s in ("first", "second"))
        ids = sequence["input_ids"][row][sequence["attention_mask"][row] > 0].tolist()
        assert ids == [START, *first, END, *second, END]
        assert task.tokens(words, row) == [*texts.first[row], *texts.second[row]]
        assert task.tokens(sequence, row)[0] == "[CLS]"
    np.testing.assert_array_equal(sequence["input_ids"][sequence["attention_mask"] == 0], PAD)
    np.testing.assert_array_equal(words["labels"], texts.labels)


@pytest.mark.parametrize("name", ["sentiment", "overlap"])
def test_rows_have_the_shapes_that_are_known_without_data(name):
    shape, task = task_shape(name, SMALL), open_classification_task(name, SMALL, seed=1)
    rows: dict = {}
    for layout in ("texts", "sequence"):
        made = task.rows(task.splits["train"], layout)
        assert {field: array.shape[1:] for field, array in made.items()} == {**shape.inputs(layout), "labels": ()}
        assert all(array.dtype == np.int32 and len(array) == 64 for array in made.values())
        rows |= made
    assert rows["first_ids"].shape == (64, shape.text_length)
    assert rows["input_ids"].shape == (64, shape.sequence_length)
    assert len(task.words) <= shape.vocab_size and rows["input_ids"].max() < shape.sequence_vocab_size
    assert rows["labels"].max() < shape.num_classes


def test_a_tokenizer_of_the_words_gives_the_ids_of_a_row():
    task = open_classification_task("sentiment", SMALL, seed=0)
    texts = task.splits["dev"]
    for layout, names, unheard in (
        ("sequence", ("input_ids", "attention_mask"), [START, UNKNOWN, END]),
        ("texts", ("first_ids", "first_mask"), [UNKNOWN]),
    ):
        rows, tokenizer = task.inputs(texts, layout), task.text_tokenizer(layout)
        for row in range(len(texts)):
            ids, mask = (rows[name][row] for name in names)
            assert tokenizer(" ".join(texts.first[row]).title())["input_ids"] == ids[mask > 0].tolist()
        assert tokenizer("unheard")["input_ids"] == unheard
    assert task.text_tokenizer("sequence")("unheard", "heard")["input_ids"] == [START, UNKNOWN, END, UNKNOWN, END]


def test_labels_are_named_in_the_order_of_their_numbers():
    assert class_names("sentiment") == class_names("sst2") == ("negative", "positive")
    relation = ("entailment", "neutral", "contradiction")
    assert class_names("overlap") == class_names("snli") == relation
    for number, name in enumerate(relation):
        assert getattr(entailment_world, name.upper()) == number
    with pytest.raises(ValueError, match="unknown task 'nothing'"):
        class_names("nothing")


def test_a_seed_decides_the_texts():
    first, again, other = (open_classification_task("sentiment", SMALL, seed=seed) for seed in (0, 0, 1))
    assert list(first.splits["test"].first) == list(again.splits["test"].first) != list(other.splits["test"].first)


def test_an_epoch_has_every_text_once():
    task = open_classification_task("sentiment", SMALL, seed=0)
    batches = task.batches("texts", batch_size=16, seed=0, num_steps=8, process_index=0, process_count=1)
    ids = np.concatenate([next(batches)["example_ids"] for _ in range(4)])
    assert sorted(ids.tolist()) == list(range(64))


def tree(grade, text):
    return f"({grade} " + " ".join(f"(2 {word})" for word in text.split()) + ")"


def test_tree_files_make_the_sentiment_task(tmp_path):
    for split in ("train", "dev", "test"):
        lines = [tree(4, "a lovely film"), tree(2, "a film"), tree(0, "a dull Film"), tree(1, "dull " * 30)]
        (tmp_path / f"sst_trees_{split}.txt").write_text("\n".join(lines))
    config = ClassificationDataConfig(path=str(tmp_path), min_count=2)
    task = open_classification_task("sentiment", config, seed=0)
    assert [len(task.splits[split]) for split in ("train", "dev", "test")] == [2, 2, 2]
    assert task.words[5:] == ("a", "film")
    assert task.rows(task.splits["dev"], "texts")["first_ids"][1, :3].tolist() == [5, UNKNOWN, 6]
    assert open_classification_task("overlap", config, seed=0).shape.is_pair
    fewer = open_classification_task("sentiment", ClassificationDataConfig(path=str(tmp_path), most=1), seed=0)
    assert [len(texts) for texts in fewer.splits.values()] == [1, 1, 1]


def test_imdb_lines_train_on_dev_where_the_training_file_is_lost(tmp_path):
    lines = "".join(f"a fine film number {n},{n % 2}\n" for n in range(30))
    (tmp_path / "imdb_dev.csv").write_text(lines)
    with gzip.open(tmp_path / "imdb_test.csv.gz", "wt") as file:
        file.write(lines)
    task = open_classification_task("imdb", ClassificationDataConfig(path=str(tmp_path)), seed=0)
    assert {split: len(texts) for split, texts in task.splits.items()} == {"train": 27, "dev": 3, "test": 30}


def test_pairs_come_from_json_lines_without_those_that_have_no_gold_label(tmp_path):
    rows = [
        {"sentence1": "a dog runs", "sentence2": "it moves", "gold_label": "entailment"},
        {"sentence1": "a dog runs", "sentence2": "it sleeps", "gold_label": "contradiction"},
        {"sentence1": "a dog runs", "sentence2": "it barks", "gold_label": "-"},
    ]
    for split in ("train", "dev", "test"):
        (tmp_path / f"snli_1.0_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_classification_task("snli", ClassificationDataConfig(path=str(tmp_path)), seed=0)
    assert task.splits["test"].labels.tolist() == [0, 2]
    assert list(task.splits["test"].second) == [("it", "moves"), ("it", "sleeps")]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("nothing", {}, "unknown task 'nothing': expected one of sentiment"),
        ("sentiment", {"path": "/does/not/exist"}, "no file or folder at /does/not/exist"),
        ("sentiment", {"path": "{folder}"}, "no file sst"),
        ("snli", {"path": "{folder}"}, "no file snli"),
        ("sentiment", {"num_dev": 0}, "at least 1"),
        ("sentiment", {"max_length": 10}, "would leave out generated texts"),
    ],
)
def test_what_cannot_be_opened_is_named(name, fields, message, tmp_path):
    fields = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises(ValueError, match=message):
        open_classification_task(name, ClassificationDataConfig(**fields), seed=0)
