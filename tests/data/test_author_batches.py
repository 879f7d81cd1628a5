"""Author batches: pure in (seed, step), equal on any number of processes, restorable, without repeats."""

import numpy as np
import pytest

from jaxcore.data import (
    AuthorBatches,
    AuthorCorpus,
    AuthorWorld,
    AuthorWorldConfig,
    author_batches,
    world_author_batches,
)

WORLD = AuthorWorld(AuthorWorldConfig(num_training_authors=30, num_test_authors=5, document_length=16), seed=0)


def corpus_of(num_authors: int, works: int = 3, chunks_per_work: int = 4, first: int = 0) -> AuthorCorpus:
    """Chunk c holds the ids (c, author, work, 7), of which the last is padding in every other chunk."""
    author = np.repeat(np.arange(num_authors, dtype=np.int32), works * chunks_per_work)
    work = np.tile(np.repeat(np.arange(works, dtype=np.int32), chunks_per_work), num_authors)
    chunks = np.arange(len(author), dtype=np.int32)
    ids = np.stack([chunks + first, author, work, np.full_like(author, 7)], axis=1)
    names = tuple(f"a{first}-{i}" for i in range(num_authors))
    return AuthorCorpus(ids, 4 - chunks % 2, author, work, names, tuple(f"w{i}" for i in range(works)), 0, 999)


def from_corpus(seed: int = 5, **options) -> AuthorBatches:
    return author_batches(corpus_of(11), num_authors=4, num_views=6, seed=seed, **options)


def from_world(seed: int = 5, **options) -> AuthorBatches:
    return world_author_batches(WORLD, num_authors=8, num_views=70, seed=seed, **options)  # 560 rows: two blocks


def from_mixture(seed: int = 5, **options) -> AuthorBatches:
    corpora = [corpus_of(11), corpus_of(5, works=6, chunks_per_work=1, first=500)]
    return author_batches(corpora, num_authors=4, num_views=6, seed=seed, **options)


KINDS = pytest.mark.parametrize("make", [from_corpus, from_world, from_mixture])


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype == np.int32
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@KINDS
def test_same_seed_same_batches_other_seed_other_batches(make):
    one, two = list(make(num_steps=6)), list(make(num_steps=6, prefetch=0))
    assert len(one) == len(two) == 6
    for step, (first, second) in enumerate(zip(one, two, strict=True)):
        assert_equal(first, second)
        assert_equal(first, make().global_batch(step))
    assert not np.array_equal(one[0]["input_ids"], one[1]["input_ids"])
    other = make(seed=6).global_batch(0)
    assert not np.array_equal(other["labels"], one[0]["labels"])
    assert not np.array_equal(other["input_ids"], one[0]["input_ids"])


@KINDS
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_slices_of_all_processes_are_the_global_batch(make, processes):
    whole = make(num_steps=3)
    parts = [make(num_steps=3, process_index=index, process_count=processes) for index in range(processes)]
    for batches in zip(whole, *parts, strict=True):
        joined = {name: np.concatenate([part[name] for part in batches[1:]]) for name in batches[0]}
        assert_equal(batches[0], joined)


@KINDS
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_restored_in_the_middle_of_an_epoch(make, prefetch):
    expected = list(make(num_steps=9))
    batches = make(num_steps=9, prefetch=prefetch)
    for _ in range(4):
        next(batches)
    state = batches.get_state()
    assert state == {"step": 4}  # what was handed out, however much was prefetched
    rest = make(num_steps=9, prefetch=prefetch)
    rest.set_state(state)
    for step, batch in enumerate(rest, start=4):
        assert_equal(batch, expected[step])
    assert rest.get_state() == {"step": 9}
    batches.set_state({"step": 1})  # back, on an iterator that is running
    assert_equal(next(batches), expected[1])
    again = make(num_steps=9, start_step=7)
    assert [len(list(again)), again.get_state()["step"]] == [2, 9]


@KINDS
def test_state_of_one_process_restores_another_number_of_processes(make):
    two = make(process_index=1, process_count=2, num_steps=5)
    for _ in range(3):
        next(two)
    parts = [make(process_index=index, process_count=4, num_steps=5) for index in range(4)]
    for part in parts:
        part.set_state(two.get_state())
    joined = np.concatenate([next(part)["input_ids"] for part in parts])
    np.testing.assert_array_equal(joined, make().global_batch(3)["input_ids"])
    for iterator in (two, *parts):
        iterator.close()


def test_rows_are_author_by_author_and_true_to_the_corpus():
    corpus = corpus_of(11)
    for batch in from_corpus(num_steps=5):
        assert batch["input_ids"].shape == (24, 4)
        np.testing.assert_array_equal(batch["input_ids"][:, 0], batch["example_ids"])
        np.testing.assert_array_equal(batch["input_ids"][:, 1], batch["labels"])
        np.testing.assert_array_equal(batch["labels"], np.repeat(batch["labels"][::6], 6))
        assert len(set(batch["labels"])) == 4
        assert len(set(batch["example_ids"])) == 24  # no view twice
        np.testing.assert_array_equal(batch["attention_mask"].sum(1), corpus.lengths[batch["example_ids"]])


@pytest.mark.parametrize("make", [from_corpus, from_world])
def test_no_author_twice_in_an_epoch_and_other_orders_later(make):
    size, total = (4, 11) if make is from_corpus else (8, 30)
    per_epoch = total // size
    seen = [make().global_batch(step)["labels"] for step in range(40 * per_epoch)]
    epochs = [
        np.concatenate([np.unique(labels) for labels in seen[e * per_epoch : (e + 1) * per_epoch]]) for e in range(40)
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch.tolist())) == per_epoch * size
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 30
    assert set(np.concatenate(epochs).tolist()) == set(range(total))  # the authors left over change


def test_views_are_spread_over_works():
    for step in range(10):
        works = from_corpus().global_batch(step)["input_ids"][:, 2].reshape(4, 6)
        for author in works:
            assert np.bincount(author, minlength=3).tolist() == [2, 2, 2]
        anything = from_corpus(cross_work=False).global_batch(step)["input_ids"][:, 2].reshape(4, 6)
        if any(np.bincount(author, minlength=3).tolist() != [2, 2, 2] for author in anything):
            return
    pytest.fail("cross_work=False spreads views over works as well: the option does nothing")


def test_every_chunk_and_work_gets_its_share():
    uneven = AuthorCorpus(
        np.zeros((22, 1), np.int32),
        np.ones(22, np.int32),
        np.repeat(np.arange(2), 11),
        np.tile([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2),  # works of one and of ten chunks
        ("a", "b"),
        ("v", "w"),
    )
    drawn = {True: np.zeros(22), False: np.zeros(22)}
    for cross_work, counts in drawn.items():
        batches = author_batches(uneven, num_authors=2, num_views=2, seed=0, cross_work=cross_work)
        for step in range(600):
            counts += np.bincount(batches.global_batch(step)["example_ids"], minlength=22)
    assert (drawn[True][[0, 11]] == 600).all()  # across works: always the short one, and one of the long one
    # standard deviation 7.3 around 60, and 9.4 around 109
    assert np.abs(np.delete(drawn[True], [0, 11]) - 60).max() < 30
    assert np.abs(drawn[False] - 600 * 2 / 11).max() < 40


def test_views_of_one_work():
    works = set()
    for step in range(20):
        batches = author_batches(corpus_of(11), num_authors=4, num_views=4, seed=0, same_topic_views=True)
        rows = batches.global_batch(step)["input_ids"][:, 2].reshape(4, 4)
        assert (rows == rows[:, :1]).all()
        works |= set(rows[:, 0].tolist())
    assert works == {0, 1, 2}
    # No work has six chunks: the largest fills four views, other works the rest.
    rows = from_corpus(same_topic_views=True).global_batch(0)["input_ids"][:, 2].reshape(4, 6)
    assert all(np.bincount(row).max() == 4 for row in rows)


def test_mixture_takes_as_many_authors_from_each_corpus():
    seen: dict[bool, set[int]] = {False: set(), True: set()}
    for step in range(12):
        batch = from_mixture().global_batch(step)
        second = batch["labels"] >= 11
        assert second.reshape(4, 6).all(axis=1).tolist() == [False, True, False, True]
        np.testing.assert_array_equal(batch["input_ids"][:, 0], batch["example_ids"] + np.where(second, 500 - 132, 0))
        np.testing.assert_array_equal(batch["input_ids"][:, 1], batch["labels"] - 11 * second)
        for kind, labels in seen.items():
            labels |= set(batch["labels"][second == kind].tolist())
    assert seen == {False: set(range(11)), True: set(range(11, 16))}
    # The small corpus has two steps an epoch: without repeats inside each, whatever the big one does.
    for epoch in range(5):
        labels = [np.unique(from_mixture().global_batch(2 * epoch + k)["labels"]) for k in range(2)]
        assert len(set(np.concatenate(labels)[np.concatenate(labels) >= 11].tolist())) == 4


@KINDS
def test_shuffled_labels_keep_texts_and_label_counts(make):
    plain, shuffled = make().global_batch(2), make(shuffled_labels=True).global_batch(2)
    np.testing.assert_array_equal(plain["input_ids"], shuffled["input_ids"])
    assert (plain["labels"] != shuffled["labels"]).mean() > 0.4
    np.testing.assert_array_equal(np.sort(plain["labels"]), np.sort(shuffled["labels"]))
    part = make(shuffled_labels=True, process_index=1, process_count=2).local_batch(2)
    np.testing.assert_array_equal(part["labels"], shuffled["labels"][len(plain["labels"]) // 2 :])


def test_world_documents_are_fresh_and_by_their_labels():
    batches = [from_world().global_batch(step) for step in range(3)]
    rows = np.concatenate([batch["input_ids"] for batch in batches])
    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * 560
    assert len(np.unique(np.concatenate([batch["example_ids"] for batch in batches]))) == len(rows)
    assert (batches[0]["attention_mask"] == 1).all() and batches[0]["labels"].max() < 30
    with_start = from_world(start_token=True).global_batch(0)["input_ids"]
    assert (with_start[:, 0] == 2).all()
    np.testing.assert_array_equal(with_start[:, 1:], batches[0]["input_ids"])
    # Rows are made in blocks of 512: the second block must not repeat the random numbers of the first.
    num_function_words = (batches[0]["input_ids"] < 5 + 40).sum(axis=1)
    assert not np.array_equal(num_function_words[:48], num_function_words[512:])
    # The texts are the label's: its summed log-odds beat those of the next author on average.
    words = batches[0]["input_ids"] - 5
    own = np.mean(
        [WORLD.style_log_odds(label)[row].sum() for label, row in zip(batches[0]["labels"], words, strict=True)]
    )
    other = np.mean(
        [
            WORLD.style_log_odds((label + 1) % 30)[row].sum()
            for label, row in zip(batches[0]["labels"], words, strict=True)
        ]
    )
    assert own > 0.3 > 0 > other


def test_world_topics_and_authors_can_be_chosen():
    world = AuthorWorld(AuthorWorldConfig(document_length=64), seed=0)
    batch = world_author_batches(
        world, num_authors=4, num_views=5, seed=0, authors=world.test_authors, topics=np.array([3])
    ).global_batch(0)
    assert batch["labels"].min() >= 400
    content = batch["input_ids"] - 5 - 88
    assert (world.content_probabilities[3][content[content >= 0]] > 0).all()
    batch = world_author_batches(world, num_authors=8, num_views=6, seed=0, same_topic_views=True).global_batch(1)
    # Content words of one author's views come from one topic; of different authors mostly not.
    counts = world.counts(batch["input_ids"] - 5)[:, 88:].reshape(8, 6, 160).astype(float)
    likelihood = counts @ np.log(np.maximum(world.content_probabilities, 1e-30)).T
    topics = likelihood.argmax(axis=-1)
    assert (topics == topics[:, :1]).all() and len(set(topics[:, 0].tolist())) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": corpus_of(1)}, r"one author only \('a0-0'\)"),
        ({"num_authors": 12}, "has 11 authors, fewer than the 12"),
        (
            {"num_views": 13},
            r"11 of 11 authors have fewer documents than the 13 views .*with_chunks_per_author\(13\)",
        ),
        ({"num_authors": 1}, "at least 2 authors"),
        ({"num_views": 1}, "at least 2 views"),
        ({"process_count": 7}, "24 rows does not divide over 7 processes"),
        ({"process_index": 3, "process_count": 2}, "process_index 3"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"start_step": 6, "num_steps": 5}, r"\{'step': 6\} is not"),
        ({"corpus": []}, "no corpus"),
        ({"corpus": [corpus_of(9)] * 3}, "4 authors per batch do not divide over 3 corpora"),
        ({"corpus": [corpus_of(9), WORLD]}, None),
    ],
)
def test_errors_are_one_line_and_come_at_once(change, message):
    if message is None:  # corpora of different lengths
        longer = AuthorCorpus(np.zeros((8, 5), int), *(np.arange(8) % 2 for _ in range(3)), ("a", "b"), ("v", "w"))
        change, message = (
            {"corpus": [corpus_of(9), longer]},
            r"corpora differ in \(max_length, pad_id, vocab_size\)",
        )
    options = {"corpus": corpus_of(11), "num_authors": 4, "num_views": 6, "seed": 0, **change}
    with pytest.raises(ValueError, match=message) as caught:
        author_batches(options.pop("corpus"), **options)
    assert "\n" not in str(caught.value)


def test_world_with_too_few_authors_and_bad_states():
    with pytest.raises(ValueError, match="has 30 authors to draw from, fewer than the 31"):
        world_author_batches(WORLD, num_authors=31, num_views=2, seed=0)
    batches = from_corpus(num_steps=3)
    for state in ({}, {"step": -1}, {"step": 4}, {"step": "1"}):
        with pytest.raises(ValueError, match="iterator state"):
            batches.set_state(state)
