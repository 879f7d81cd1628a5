"""Authorship tasks from the world and from files: who is held out, and that topics and works never leak."""

import dataclasses

import numpy as np
import pytest

from jaxcore.data import AuthorBatchConfig, AuthorshipDataConfig, AuthorWorldConfig, open_authorship_task

WORLD = AuthorshipDataConfig(
    world=AuthorWorldConfig(num_training_authors=12, num_test_authors=6),
    texts_per_author=8,
    batches=AuthorBatchConfig(authors_per_batch=4, views_per_author=2),
)
WORDS = [
    "time", "year", "way", "day", "man", "thing", "life", "child", "world", "school", "state", "family",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight authors, four works each; every author has words of their own, every work a marker word."""
    path = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for author in range(8):
        (path / f"author{author}").mkdir()
        for work in range(4):
            words = rng.choice([*WORDS, f"own{author}"], 400).tolist() + [f"work{work}"] * 20
            (path / f"author{author}" / f"title{work}.txt").write_text(" ".join(rng.permutation(words)))
    return path


def config_of(folder, **changes):
    data = AuthorshipDataConfig(
        path=str(folder),
        vocab_size=300,
        max_length=24,
        texts_per_author=8,
        batches=AuthorBatchConfig(authors_per_batch=4, views_per_author=4),
    )
    return dataclasses.replace(data, **changes)


def test_the_world_keeps_test_authors_and_query_topics_apart():
    task = open_authorship_task(WORLD, seed=0)
    trained_on = {int(label) for step in range(9) for label in task.batches(num_steps=9).global_batch(step)["labels"]}
    assert trained_on == set(range(12))  # the world's numbers; test authors are 12..17
    support, query = (set(task.test.topics[task.test.is_query == side]) for side in (False, True))
    assert support and query and max(support) < 10 <= min(query)
    assert task.test.num_authors == 6 and task.test_author_names[0] == "author 12"
    markers = task.markers(0, task.test.input_ids[0])
    assert 0 < markers.sum() < len(markers)
    assert not np.any(markers & task.topic_words(int(task.test.topics[0]), task.test.input_ids[0]))


def test_held_out_works_are_never_trained_on(folder):
    task = open_authorship_task(config_of(folder), seed=0)
    seen = {row.tobytes() for s in range(20) for row in task.batches(num_steps=20).global_batch(s)["input_ids"]}
    queries = {row.tobytes() for row in task.test.input_ids[task.test.is_query]}
    supports = {row.tobytes() for row in task.test.input_ids[~task.test.is_query]}
    assert not seen & queries
    assert seen & supports
    works = [set(task.test.topics[task.test.is_query == side]) for side in (False, True)]
    assert not works[0] & works[1]


def test_held_out_authors_are_never_trained_on_and_folds_cover_all(folder):
    names = set()
    for fold in range(3):
        task = open_authorship_task(config_of(folder, held_out="authors", fold=fold), seed=0)
        assert task.sampler.num_rows == 16
        own = {name[-1] for name in task.test_author_names}
        texts = " ".join(
            task.tokenizer.decode(r) for s in range(9) for r in task.batches(num_steps=9).global_batch(s)["input_ids"]
        )
        assert not any(f"own{number}" in texts for number in own)
        names |= own
    assert names == set("01234567")


def test_support_and_query_come_from_different_works_in_the_training_pool_too(folder):
    task = open_authorship_task(config_of(folder, representation="trigrams", words_per_chunk=40), seed=0)
    assert task.tokenizer is None and task.vocab_size == 300
    assert set(task.training.authors) == set(range(8))
    assert task.training.is_query.any() and not task.training.is_query.all()


def test_small_corpora_get_smaller_batches_and_say_so(folder):
    large = AuthorBatchConfig(authors_per_batch=64, views_per_author=4)
    task = open_authorship_task(config_of(folder, batches=large), seed=0)
    assert task.sampler.num_rows == 8 * 4
    assert "batches of 8 authors x 4 texts" in task.description


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 3}, r"data\.fold must be in 0\.\.2: got 3"),
        ({"max_length": 4}, r"data\.max_length must be at least 8"),
        ({"path": "/does/not/exist"}, "no file or folder at /does/not/exist"),
    ],
)
def test_bad_settings_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        open_authorship_task(config_of(folder, **changes), seed=0)


def test_one_work_per_author_cannot_be_split(tmp_path):
    for author in "AB":
        (tmp_path / f"{author}_only.txt").write_text(" ".join(WORDS * 40) + f" {author} " * 30)
    with pytest.raises(ValueError, match="no author has two works"):
        open_authorship_task(config_of(tmp_path), seed=0)


def test_too_few_authors_for_folds_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for author in "ABC":
        for work in range(2):
            (tmp_path / f"{author}_{work}.txt").write_text(" ".join(rng.choice(WORDS, 300)))
    with pytest.raises(ValueError, match="held_out=authors needs at least 6"):
        open_authorship_task(config_of(tmp_path, held_out="authors"), seed=0)
