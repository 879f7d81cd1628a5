"""Tokenizers: reproducible training, round trips, a cache that saves tokenising, trigrams against a loop."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.data import (
    attention_mask,
    hashed_trigrams,
    load_tokenizer,
    pad_rows,
    tokenize_texts,
    tokenizer_fingerprint,
    train_tokenizer,
    word_tokenizer,
)

TEXTS = [
    "The slanting rays of afternoon sunshine, pouring through stone arches, lay upon the flags.",
    "Daily they went, and daily they returned, by the underground way; a passage over a mile in length.",
    "No one knew what the underground way had been, nor why the passage was a mile in length.",
] * 3


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "word"])
def test_trained_tokenizer_reads_its_texts_back(kind):
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, kind=kind)
    assert tokenizer.is_fast and len(tokenizer) <= 400
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id] == [0, 1, 4]
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id and 1 not in ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    expected = TEXTS[0] if kind == "bpe" else TEXTS[0].lower()
    assert text.replace(" ", "") == expected.replace(" ", "")


def test_vocabulary_limits_and_case():
    assert train_tokenizer(["aa aa bb cc"], vocab_size=7, kind="word").get_vocab().keys() >= {"aa", "bb"}
    assert len(train_tokenizer(TEXTS, vocab_size=20)) == 20
    cased = train_tokenizer(["Aa Aa"], vocab_size=30, lowercase=False)
    assert "Aa" in cased.get_vocab() and "aa" not in cased.get_vocab()
    bytes_only = train_tokenizer(["abc"], vocab_size=261, kind="bpe")
    assert 1 not in bytes_only("naïve 中文 \U0001f600")["input_ids"]  # every text has ids


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "word"])
def test_training_is_the_same_in_every_process(kind):
    """A resumed run trains its tokenizer again: other ids would silently change the data."""
    program = (
        "from jaxcore.data import train_tokenizer, tokenizer_fingerprint\n"
        f"print(tokenizer_fingerprint(train_tokenizer({TEXTS!r}, vocab_size=400, kind={kind!r})))"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == tokenizer_fingerprint(train_tokenizer(TEXTS, vocab_size=400, kind=kind))


def test_wordpiece_agrees_with_the_stock_trainer():
    """Same pieces as tokenizers' own WordPieceTrainer wherever merges are not tied."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    stock = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    stock.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    stock.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [" ".join(["the"] * 90 + ["then"] * 50 + ["other"] * 20 + ["ether"] * 7)]
    stock.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    ours = train_tokenizer(texts, vocab_size=60)
    for word in ("the", "then", "other", "ether"):
        assert ours.tokenize(word) == stock.encode(word).tokens == [word]
    # Ours also numbers the one continuation that no word has: "o" occurs at the start of a word only.
    assert set(ours.get_vocab()) ^ set(stock.get_vocab()) == {"##o"}


def test_special_tokens_stay_out_of_pieces():
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    assert tokenizer.convert_tokens_to_ids("##a") > 4
    assert "##a" not in tokenizer.tokenize("the ##a")  # pieces are no special tokens of the text
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_training_errors():
    with pytest.raises(ValueError, match="vocab_size 5 is too small for a word tokenizer; give at least 6"):
        train_tokenizer(TEXTS, vocab_size=5, kind="word")
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer(iter([" ", ""]), vocab_size=50)
    with pytest.raises(ValueError, match="unknown tokenizer kind 'char'"):
        train_tokenizer(TEXTS, vocab_size=50, kind="char")
    with pytest.raises(ValueError, match="lacks the special tokens"):
        word_tokenizer(["[PAD]", "a"])
    with pytest.raises(ValueError, match="1 words twice"):
        word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "a"])


def test_saved_tokenizer_loads_equal(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=200)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    with pytest.raises(ValueError, match="no such folder") as caught:
        load_tokenizer(tmp_path / "absent")
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no tokenizer at .*give a folder with tokenizer\.json") as caught:
        load_tokenizer(tmp_path / "empty")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=200)
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    bare.save_pretrained(tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare").pad_token == "[SEP]"
    type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        load_tokenizer(tmp_path / "none")


def test_tokenize_texts_is_the_tokenizer_padded(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=200)
    tokens = tokenize_texts([*TEXTS, ""], tokenizer, max_length=12)
    expected = tokenizer([*TEXTS, ""], truncation=True, max_length=12, padding="max_length", return_tensors="np")
    np.testing.assert_array_equal(tokens.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(tokens.attention_mask, expected["attention_mask"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int32


def test_second_call_does_not_tokenise(tmp_path):
    class Counting(type(train_tokenizer(TEXTS, vocab_size=100))):
        calls = 0

        def __call__(self, *args, **kwargs):
            type(self).calls += 1
            return super().__call__(*args, **kwargs)

    def make(vocab_size: int) -> Counting:
        backend = train_tokenizer(TEXTS, vocab_size=vocab_size).backend_tokenizer
        return Counting(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")

    first = tokenize_texts(TEXTS, make(100), max_length=12, cache_dir=tmp_path)
    second = tokenize_texts(TEXTS, make(100), max_length=12, cache_dir=tmp_path)  # truncation state left by call 1
    assert Counting.calls == 1
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    np.testing.assert_array_equal(first.lengths, second.lengths)
    tokenize_texts(TEXTS, make(100), max_length=13, cache_dir=tmp_path)
    tokenize_texts(TEXTS[1:], make(100), max_length=12, cache_dir=tmp_path)
    tokenize_texts(TEXTS, make(90), max_length=12, cache_dir=tmp_path)
    assert Counting.calls == 4  # another length, other texts, another tokenizer


def test_tokenize_errors():
    tokenizer = train_tokenizer(TEXTS, vocab_size=100)
    with pytest.raises(ValueError, match="no texts"):
        tokenize_texts([], tokenizer, max_length=8)
    with pytest.raises(ValueError, match="text 1 is bytes, not str"):
        tokenize_texts(["a", b"b"], tokenizer, max_length=8)
    with pytest.raises(ValueError, match="max_length 2 leaves no room beside 2 special tokens"):
        tokenize_texts(["a"], tokenizer, max_length=2)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=6),
    length=st.integers(1, 7),
    pad=st.integers(-1, 0),
)
def test_padding_and_mask(rows, length, pad):
    padded, lengths = pad_rows(rows, length=length, pad_id=pad)
    mask = attention_mask(lengths, length)
    assert padded.shape == mask.shape == (len(rows), length)
    for row, ids, kept in zip(rows, padded, mask, strict=True):
        assert ids[kept == 1].tolist() == row[:length]
        assert (ids[kept == 0] == pad).all()
        assert (np.diff(kept) <= 0).all()


def scrambled(number: int) -> int:
    """The splitmix64 finaliser in Python integers."""
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) % 2**64
    return number ^ number >> 31


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("aab \n\té中\U0001f600."), max_size=30))
def test_trigrams_equal_a_plain_loop(text):
    plain = re.sub(r"\s+", " ", text).strip()
    expected = [
        scrambled(ord(plain[i]) * 2**42 + ord(plain[i + 1]) * 2**21 + ord(plain[i + 2])) % 4096
        for i in range(len(plain) - 2)
    ]
    (ids,) = hashed_trigrams([text])
    assert ids.dtype == np.int32 and ids.tolist() == expected


def test_trigrams_spread_over_the_buckets():
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = "".join(a + b + c for a in letters for b in letters for c in letters)
    (ids,) = hashed_trigrams([text], buckets=64)
    distinct = {text[i : i + 3]: int(bucket) for i, bucket in enumerate(ids)}
    counts = np.bincount(list(distinct.values()), minlength=64)
    # Poisson-like: mean 275, standard deviation 16
    assert abs(counts.mean() - len(distinct) / 64) < 1e-9 and counts.std() < 25
    with pytest.raises(ValueError, match="buckets is 0"):
        hashed_trigrams(["abc"], buckets=0)
