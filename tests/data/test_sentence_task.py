"""Sentence tasks from the world and from a folder: what is trained on, what is held out, ids and words."""

import csv

import numpy as np
import pytest

from jaxcore.data.graded_pairs import normalized
from jaxcore.data.sentence_task import SentenceDataConfig, open_sentence_task, sentence_vocab_size, split_words
from jaxcore.data.sentence_world import SentenceWorldConfig

WORLD = SentenceWorldConfig(
    num_concepts=100, num_sentences=300, num_development_pairs=40, num_test_pairs=40, num_training_pairs=40
)


CONFIG = SentenceDataConfig(world=WORLD, min_count=2)


@pytest.fixture(scope="module")
def task():
    return open_sentence_task(CONFIG, seed=3)


def test_the_world_gives_ids_within_the_vocabulary_known_beforehand(task):
    assert task.input_ids.shape == (300, 32) and task.attention_mask.shape == (300, 32)
    assert task.input_ids.max() < task.vocab_size == sentence_vocab_size(CONFIG)
    encoded = task.encode(task.texts[:5])
    np.testing.assert_array_equal(encoded["input_ids"], task.input_ids[:5])
    assert (task.development, task.test) == ("dev", "test")
    assert np.all(task.input_ids[task.attention_mask == 0] == task.pad_id)


def test_no_measured_sentence_is_trained_on(task):
    held_out = {text for pairs in task.pairs.values() for text in pairs.sentences()}
    assert not held_out & set(task.texts) and len(set(task.texts)) == len(task.texts)


def test_words_keep_their_numbers_and_padding_is_zero(task):
    first, again = task.word_ids(task.texts[:3]), task.word_ids(task.texts[2:0:-1])
    for row, text in zip(first, task.texts[:3], strict=True):
        assert (row > 0).sum() == len(split_words(text))
    np.testing.assert_array_equal(first[2][first[2] > 0], again[0][again[0] > 0])
    unseen = task.word_ids(["unheard word unheard", "word"])
    assert unseen[0, 0] == unseen[0, 2] != unseen[0, 1] == unseen[1, 0] > first.max()


def test_word_vectors_are_of_words_only(task):
    vectors = task.word_vectors(16)
    assert vectors.shape == (sentence_vocab_size(CONFIG), 16)
    special = task.tokenizer.all_special_ids
    np.testing.assert_array_equal(vectors[special], 0)
    counts = np.bincount(task.input_ids[task.attention_mask == 1], minlength=len(vectors))
    counts[special] = 0
    np.testing.assert_array_equal(np.any(vectors != 0, axis=1), counts >= 2)


@pytest.fixture
def folder(tmp_path):
    def write(name, rows):
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    write("stsb_dev.csv", [("A dev sentence.", "Another dev one.", 3.0), ("Dev three.", "Dev four.", 1.0)])
    write("stsb_test.csv", [("A test sentence.", "Another test one.", 2.0), ("Test three.", "Test four.", 5.0)])
    write("stsb_train.csv", [("Train text one.", "A DEV  sentence.", 4.0), ("Train text two.", "Test four.", 0.0)])
    return tmp_path


def test_a_folder_trains_on_what_is_not_measured(folder):
    task = open_sentence_task(SentenceDataConfig(path=str(folder), vocab_size=64, min_count=1), seed=0)
    assert sorted(task.texts) == ["Train text one.", "Train text two."]
    assert set(task.pairs) == {"stsb_dev", "stsb_test"} and len(task.training_pairs) == 2
    assert (task.development, task.test) == ("stsb_dev", "stsb_test")


def test_a_corpus_is_used_without_the_measured_sentences(folder):
    (folder / "corpus.txt").write_text("One line.\n\na dev sentence.\nOne line.\nTrain text one.\n")
    config = SentenceDataConfig(path=str(folder), corpus=str(folder / "corpus.txt"), vocab_size=64)
    assert list(open_sentence_task(config, seed=0).texts) == ["One line.", "Train text one."]


def test_the_shared_folder_holds_out_every_scored_sentence(shared_data):
    task = open_sentence_task(SentenceDataConfig(path=str(shared_data / "sts")), seed=0)
    held_out = {normalized(text) for pairs in task.pairs.values() for text in pairs.sentences()}
    assert not held_out & {normalized(text) for text in task.texts}
    assert len(task.pairs["stsb_test"]) == 1379 and len(task.pairs["stsb_dev"]) == 1500
    assert "MSRvid" in task.description
    assert task.word_vectors(4).shape == (30522, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/does/not/exist"}, "/does/not/exist"),
        ({"path": "{folder}", "corpus": "/no/corpus.txt"}, "/no/corpus.txt"),
        ({"corpus": "x.txt"}, "data.corpus needs data.path"),
        ({"max_length": 2}, "data.max_length must be at least 4"),
    ],
)
def test_bad_input_is_named(folder, changes, message):
    changes = {name: str(folder) if value == "{folder}" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        open_sentence_task(SentenceDataConfig(**changes), seed=0)


def test_a_folder_without_development_pairs_is_refused(folder):
    (folder / "stsb_dev.csv").unlink()
    with pytest.raises(ValueError, match="has no stsb_dev"):
        open_sentence_task(SentenceDataConfig(path=str(folder)), seed=0)
