"""Tasks of generated opinions and of files: splits, rows with and without a tokenizer, and what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxcore.data.labelled_text_task import LabelledTextConfig, open_labelled_text_task
from jaxcore.data.sentiment_world import SentimentWorldConfig
from jaxcore.data.tokenization import train_tokenizer

SMALL = LabelledTextConfig(
    num_training=60,
    num_test=20,
    vocab_size=256,
    max_length=24,
    world=SentimentWorldConfig(num_polar=10, num_neutral=40, shortest=8, longest=16),
)


@pytest.fixture
def table(tmp_path):
    lines = [f"{5 + n % 2},{'Fine' if n % 2 else 'dull'} film number {n}.\n" for n in range(30)]
    (tmp_path / "table.csv").write_text("label,text\n" + "".join(lines))
    return dataclasses.replace(SMALL, path=str(tmp_path / "table.csv"), cache_dir=str(tmp_path / "cache"))


def test_rows_hold_the_words_and_unknown_words_are_unknown():
    task = open_labelled_text_task(SMALL, seed=0)
    assert len(task.train) == 60 and len(task.test) == 20 and task.tokenizer is None
    for rows in (task.train, task.test):
        assert all(len(tokens) == mask.sum() for tokens, mask in zip(rows.tokens, rows.attention_mask, strict=True))
        np.testing.assert_array_equal(rows.content, rows.attention_mask)
        assert not rows.input_ids[rows.attention_mask == 0].any()
    number = {}
    for row, tokens in zip(task.train.input_ids, task.train.tokens, strict=True):
        number |= dict(zip(tokens, row.tolist(), strict=False))
    assert sorted(number.values()) == list(range(4, task.num_ids)), "one id per word, after the special ones"
    few = open_labelled_text_task(dataclasses.replace(SMALL, vocab_size=16), seed=0)
    assert few.test.input_ids.max() < 16 and np.any(few.test.input_ids == 1)
    assert few.test.tokens == task.test.tokens, "tokens are the words, known or not"


def test_end_tokens_are_in_the_mask_and_no_content():
    plain, ends = (open_labelled_text_task(SMALL, seed=0, end_tokens=end_tokens) for end_tokens in (False, True))
    for words, tokens, ids, mask, content in zip(plain.test.tokens, ends.test.tokens, *ends.test[:3], strict=True):
        assert tokens == ["[CLS]", *words, "[SEP]"]
        assert ids[0] == 2 and ids[mask.sum() - 1] == 3
        assert content.sum() == len(words) and not content[0] and not content[len(words) + 1 :].any()
    shorter = open_labelled_text_task(dataclasses.replace(SMALL, max_length=8), seed=0, end_tokens=True)
    assert all(len(tokens) == 8 and tokens[-1] == "[SEP]" for tokens in shorter.test.tokens)


def test_a_seed_decides_texts_and_what_is_held_out(table):
    for config in (SMALL, table):
        first, again, other = (open_labelled_text_task(config, seed=seed) for seed in (0, 0, 1))
        assert first.test.tokens == again.test.tokens != other.test.tokens
        assert first.train.tokens == again.train.tokens != other.train.tokens


def test_a_file_is_split_and_its_labels_are_numbered(table):
    task = open_labelled_text_task(table, seed=0)
    assert (len(task.train), len(task.test), task.source) == (24, 6, "table.csv")
    everything = [*task.train.tokens, *task.test.tokens]
    assert len({tuple(tokens) for tokens in everything}) == 30, "every text is in one split"
    labels = np.concatenate([task.train.labels, task.test.labels])
    assert [tokens[0] for tokens in everything] == [("dull", "fine")[label] for label in labels]
    given = open_labelled_text_task(dataclasses.replace(table, test_path=table.path), seed=0)
    assert len(given.train) == len(given.test) == 30


def test_a_tokenizer_makes_the_rows(table, tmp_path):
    tokenizer = train_tokenizer(["fine dull film number"], vocab_size=60)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = dataclasses.replace(table, tokenizer=str(tmp_path / "tokenizer"))
    task = open_labelled_text_task(config, seed=0, pad_id=0)
    assert task.num_ids == len(tokenizer)
    for tokens, ids, mask, content in zip(task.test.tokens, *task.test[:3], strict=True):
        assert tokenizer.convert_tokens_to_ids(tokens) == ids[mask > 0].tolist()
        special = [token in ("[CLS]", "[SEP]") for token in tokens]
        assert special[0] and special[-1]
        np.testing.assert_array_equal(content[: len(tokens)] == 0, special)
    with pytest.raises(ValueError, match=rf"the tokenizer has {len(tokenizer)} ids, the model 16"):
        open_labelled_text_task(dataclasses.replace(config, vocab_size=16), seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_names": ("a", "a")}, "two or more different names"),
        ({"max_length": 4}, "max_length must be >= 8"),
        ({"num_test": 1}, "num_test >= 2"),
        ({"test_path": "x.csv"}, "data.test_path needs data.path"),
        ({"tokenizer": "x"}, "data.tokenizer needs data.path"),
        ({"label_names": ("a", "b", "c")}, r"the texts have the labels \[0, 1\]"),
        ({"path": "/does/not/exist.txt"}, "no file at /does/not/exist.txt"),
    ],
)
def test_what_cannot_be_opened_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        open_labelled_text_task(dataclasses.replace(SMALL, **fields), seed=0)


def test_labels_that_no_training_text_has_are_named(table, tmp_path):
    (tmp_path / "test.csv").write_text("label,text\n9,good\n5,bad\n")
    with pytest.raises(ValueError, match=r"has the labels \[9\], which no training text has"):
        open_labelled_text_task(dataclasses.replace(table, test_path=str(tmp_path / "test.csv")), seed=0)
