"""Byte pairs: every text comes back, the merges are those that count, the same tokenizer from disk and from texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data.byte_pair_vocabulary import END_OF_TEXT, load_byte_pairs, train_byte_pairs

TEXTS = ["the cat sat on the mat", "the hat of the cat", "that is that, the end\n\nthe rest"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_pairs(TEXTS, vocab_size=275, max_length=64)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: END_OF_TEXT not in text))
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and all(0 <= i < len(tokenizer) for i in ids)


def test_nothing_is_added_and_frequent_words_are_one_token(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer(" the the").input_ids) == ["Ġthe", "Ġthe"]
    assert len(tokenizer) == 275
    assert len(tokenizer("zq").input_ids) == 2
    assert tokenizer(END_OF_TEXT).input_ids == [0]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 64


def test_it_is_deterministic_and_the_same_from_disk(tokenizer, tmp_path):
    assert train_byte_pairs(iter(TEXTS), vocab_size=275).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_byte_pairs(tmp_path / "saved")
    text = "the cat   sat é\n!"
    assert loaded(text).input_ids == tokenizer(text).input_ids and loaded.decode(loaded(text).input_ids) == text
    assert loaded.pad_token_id == 0 and loaded.get_vocab() == tokenizer.get_vocab()


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 257"):
        train_byte_pairs(TEXTS, vocab_size=256)
    with pytest.raises(ValueError, match="no text"):
        train_byte_pairs(["", ""], vocab_size=300)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_byte_pairs(tmp_path)
