"""Author corpora: what building keeps and drops, the cache, selections and splits, and three real novels."""

import numpy as np
import pytest

from jaxcore.data import (
    AuthorCorpus,
    ListSource,
    TextFolderSource,
    TokenChunker,
    TrigramChunker,
    author_disjoint_split,
    build_author_corpus,
    train_tokenizer,
    work_disjoint_split,
)

WORDS = [f"w{i}" for i in range(400)]
TOKENIZER = train_tokenizer([" ".join(WORDS)], vocab_size=500, kind="word")


def words(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


def source() -> ListSource:
    return ListSource(
        [
            {"text": words(0, 24), "author": "bo", "work": "B1"},  # three chunks of 8
            {"text": words(100, 16), "author": "al", "work": "A1"},
            {"text": words(40, 11), "author": "bo", "work": "B2"},  # 8 + 3
            {"text": words(200, 8), "author": "cy", "work": "C1"},  # one chunk only
            {"text": words(300, 8), "author": "al", "work": "A2"},  # occurs again at dy
            {"text": words(300, 8) + " " + words(320, 16), "author": "dy", "work": "D1"},
        ]
    )


def build(**options) -> AuthorCorpus:
    return build_author_corpus(source(), TOKENIZER, max_length=10, **options)


def test_chunks_duplicates_and_single_chunk_authors():
    corpus = build()
    assert corpus.author_names == ("al", "bo", "dy")
    assert corpus.work_names == ("A1", "B1", "B2", "D1")  # A2 was a duplicate and goes with its copy
    assert corpus.chunks_per_author.tolist() == [2, 5, 2]
    assert corpus.dropped == {
        "duplicate_chunks": 2,
        "authors_with_one_chunk_or_none": 1,
        "texts_without_tokens": 0,
    }
    assert corpus.input_ids.shape == (9, 10) and corpus.input_ids.dtype == np.int32
    places = {300: ("dy", "D1"), 100: ("al", "A1"), 40: ("bo", "B2"), 0: ("bo", "B1")}  # by first word
    for chunk in range(corpus.num_chunks):
        length = corpus.lengths[chunk]
        assert (corpus.input_ids[chunk, length:] == corpus.pad_id).all()
        text = TOKENIZER.decode(corpus.input_ids[chunk, 1 : length - 1])
        first = int(text.split()[0][1:])
        expected = next(names for start, names in places.items() if first >= start)
        author, work = corpus.author_index[chunk], corpus.work_index[chunk]
        assert (corpus.author_names[author], corpus.work_names[work]) == expected
    np.testing.assert_array_equal(corpus.attention_mask().sum(axis=1), corpus.lengths)
    kept = build(drop_duplicates=False)
    assert kept.chunks_per_author.tolist() == [3, 5, 3] and kept.dropped["duplicate_chunks"] == 0


def test_a_record_without_a_work_is_its_own():
    records = [{"text": words(20 * i, 8), "author": "ab"[i % 2]} for i in range(6)]
    corpus = build_author_corpus(ListSource(records), TOKENIZER, max_length=10)
    assert len(corpus.work_names) == 6 and len(corpus.works_of(0)) == 3


def test_cache_hit_does_not_chunk(tmp_path):
    class Counting(TokenChunker):
        calls = 0

        def __call__(self, texts):
            Counting.calls += 1
            return super().__call__(texts)

    first = build_author_corpus(source(), Counting(TOKENIZER, max_length=10), cache_dir=tmp_path)
    second = build_author_corpus(source(), Counting(TOKENIZER, max_length=10), cache_dir=tmp_path)
    assert Counting.calls == 1
    assert isinstance(second.input_ids, np.memmap)
    for name in ("input_ids", "lengths", "author_index", "work_index"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.author_names, first.work_names, first.dropped) == (
        second.author_names,
        second.work_names,
        second.dropped,
    )
    build_author_corpus(source(), Counting(TOKENIZER, max_length=9), cache_dir=tmp_path)
    build_author_corpus(
        ListSource([source()[i] for i in range(5)]), Counting(TOKENIZER, max_length=10), cache_dir=tmp_path
    )
    assert Counting.calls == 3


def test_long_corpora_are_tokenised_in_groups(monkeypatch):
    whole = build()
    monkeypatch.setattr("jaxcore.data.authors._CHARACTERS_PER_CALL", 50)
    grouped = build()
    np.testing.assert_array_equal(whole.input_ids, grouped.input_ids)
    np.testing.assert_array_equal(whole.work_index, grouped.work_index)


def test_select_by_name_and_index():
    corpus = build()
    some = corpus.select(authors=["dy", "al"])
    assert some.author_names == ("al", "dy") and some.work_names == ("A1", "D1")
    np.testing.assert_array_equal(some.input_ids, corpus.input_ids[np.isin(corpus.author_index, [0, 2])])
    book = corpus.select(authors=[1], works=["B2"])
    assert book.author_names == ("bo",) and book.work_names == ("B2",) and book.num_chunks == 2
    assert corpus.with_chunks_per_author(3).author_names == ("bo",)
    for call, message in [
        (lambda: corpus.select(authors=["zz"]), "no author 'zz' among 3"),
        (lambda: corpus.select(works=[4]), r"no work 4; the corpus has works 0\.\.3"),
        (lambda: corpus.select(authors=["al"], works=["B1"]), "no chunks are left"),
        (lambda: corpus.with_chunks_per_author(9), r"no author has 9 chunks \(the most is 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def many_authors(count: int) -> AuthorCorpus:
    """`count` authors with works u and v, two chunks of each; works share their names over authors."""
    author = np.repeat(np.arange(count, dtype=np.int32), 4)
    work = np.tile(np.array([0, 0, 1, 1], np.int32), count)
    ids = np.arange(4 * count * 3, dtype=np.int32).reshape(-1, 3)
    names = tuple(f"a{i:02d}" for i in range(count))
    return AuthorCorpus(ids, np.full(len(ids), 3, np.int32), author, work, names, ("u", "v"), 0, 10_000)


def test_split_by_author():
    corpus = many_authors(20)
    train, test = author_disjoint_split(corpus, test_fraction=0.25, seed=0)
    assert (train.num_authors, test.num_authors) == (15, 5)
    assert set(train.author_names) | set(test.author_names) == set(corpus.author_names)
    rows = np.concatenate([train.input_ids, test.input_ids])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], corpus.input_ids)
    assert author_disjoint_split(corpus, test_fraction=0.25, seed=0)[1].author_names == test.author_names
    assert author_disjoint_split(corpus, test_fraction=0.25, seed=1)[1].author_names != test.author_names
    assert author_disjoint_split(corpus, test_fraction=0.001, seed=0)[1].num_authors == 1
    with pytest.raises(ValueError, match="one author only"):
        author_disjoint_split(corpus.select(authors=[0]), test_fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="test_fraction is 1"):
        author_disjoint_split(corpus, test_fraction=1, seed=0)


def test_split_by_work_is_per_author():
    corpus = many_authors(3)
    # The first author has written v only: it stays in training although v is test for the others.
    corpus = corpus.take(np.flatnonzero((corpus.author_index > 0) | (corpus.work_index == 1)))
    train, test = work_disjoint_split(corpus)
    assert train.author_names == ("a00", "a01", "a02") and test.author_names == ("a01", "a02")
    assert test.work_names == ("v",)
    assert not set(map(tuple, train.input_ids)) & set(map(tuple, test.input_ids))
    assert train.num_chunks + test.num_chunks == corpus.num_chunks
    with pytest.raises(ValueError, match="more than 2 works"):
        work_disjoint_split(corpus, works_per_author=2)


def test_errors_of_building():
    with pytest.raises(ValueError, match="max_length is missing"):
        build_author_corpus(source(), TOKENIZER)
    with pytest.raises(ValueError, match="max_length 5 against the chunker's 10"):
        build_author_corpus(source(), TokenChunker(TOKENIZER, max_length=10), max_length=5)
    single = ListSource([{"text": words(9 * i, 8), "author": f"a{i}"} for i in range(4)])
    with pytest.raises(ValueError, match=r"none of 4 authors has two different chunks.*lower max_length"):
        build_author_corpus(single, TOKENIZER, max_length=10)
    with pytest.raises(ValueError, match="no text of the source has a token"):
        build_author_corpus(ListSource([{"text": "ab", "author": "a"}]), TrigramChunker())
    with pytest.raises(ValueError, match="do not fit"):
        AuthorCorpus(np.zeros((2, 3)), np.zeros(3), np.zeros(2), np.zeros(2), ("a",), ("w",))
    with pytest.raises(ValueError, match="has no chunk"):
        AuthorCorpus(np.zeros((2, 3)), *(np.zeros(2, int) for _ in range(3)), ("a", "b"), ("w",))


def test_three_real_novels(shared_data, tmp_path):
    novels = shared_data / "authorship" / "novels"
    if not novels.is_dir():
        pytest.skip(f"no novels at {novels}")
    for name in ("Barclay_Ladies_1917", "Barclay_Postern_1911", "Burnett_Garden_1911"):
        (tmp_path / f"{name}.txt.gz").symlink_to(novels / f"{name}.txt.gz")
    texts = TextFolderSource(tmp_path)
    assert len(texts) == 3 and texts.malformed == []
    assert texts[0]["text"].startswith("The White Ladies of Worcester\n")  # no byte-order mark, no carriage return
    tokenizer = train_tokenizer([texts[2]["text"]], vocab_size=2000)
    corpus = build_author_corpus(texts, tokenizer, max_length=128, cache_dir=tmp_path / "cache")
    assert corpus.author_names == ("Barclay", "Burnett")
    assert corpus.work_names == ("Garden_1911", "Ladies_1917", "Postern_1911")
    first = tokenizer.decode(corpus.input_ids[0, : corpus.lengths[0]], skip_special_tokens=True)
    assert first.startswith("the white ladies of worcester chapter i the subterranean way")
    train, test = work_disjoint_split(corpus)
    assert test.work_names == ("Postern_1911",) and set(train.work_names) == {"Garden_1911", "Ladies_1917"}
