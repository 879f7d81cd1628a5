"""Tasks from the world and from files: rows, sub-words, roles, confusable labels, shots, attack."""

import dataclasses

import numpy as np
import pytest

from jaxcore.data.confusable_world import CLASS, GROUP
from jaxcore.data.intent_task import IntentDataConfig, open_intent_task

WORLD = IntentDataConfig(shots=3, test_per_class=4)
COMMON = ["please", "help", "me", "now", "with", "this", "thing"]
OWN = {"card_lost": ["card", "lost"], "card_new": ["card", "order"], "rate": ["euro", "exchange"]}


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for split, per_label in (("train", 30), ("test", 5)):
        (tmp_path / split).mkdir()
        rows = [
            (" ".join([*rng.choice(COMMON, 5), own[0].title() + "?", own[1]]), name)
            for name, own in OWN.items()
            for _ in range(per_label)
        ]
        for file, column in (("seq.in", 0), ("label", 1)):
            (tmp_path / split / file).write_text("\n".join(row[column] for row in rows) + "\n")
    return IntentDataConfig(
        path=str(tmp_path), shots=4, num_classes=3, max_words=10, min_keyword_count=5, lexicon_size=3, attack_pool=2
    )


def test_the_world_gives_rows_that_say_what_its_words_are():
    task = open_intent_task(WORLD, seed=0)
    rows = task.rows(task.training)
    assert rows["input_ids"].shape == (36, 14) and rows["present"].sum(axis=1).tolist() == [12] * 36
    assert ((rows["roles"] == CLASS).sum(axis=1) == 1).all()
    assert (rows["labels"] // 3 == rows["confusable"] // 3).all() and (rows["labels"] != rows["confusable"]).all()
    words = [("", "", *task.vocabulary)[i] for i in rows["input_ids"][0][:12]]
    assert tuple(words) == task.training.words[0]
    np.testing.assert_array_equal(rows["word_ids"][0], [*range(12), -1, -1])
    started = task.rows(task.training, start_token=True)
    np.testing.assert_array_equal(started["input_ids"][:, 1:], rows["input_ids"])
    assert (started["input_ids"][:, 0] == 1).all() and (started["word_ids"][:, 0] == -1).all()


def test_texts_depend_on_the_seed_and_attacked_ones_answer_to_clean_ones():
    first, again, other = (open_intent_task(WORLD, seed=seed) for seed in (0, 0, 1))
    assert first.training.words == again.training.words != other.training.words
    assert not set(first.training.words) & set(first.test.words)
    np.testing.assert_array_equal(first.test.labels, first.attacked.labels)
    for clean, attacked, roles in zip(first.test.words, first.attacked.words, first.attacked.roles, strict=True):
        assert {w for w in clean if w.startswith("intent")} == {w for w in attacked if w.startswith("intent")}
        assert not (roles == GROUP).any(), "inserted words belong to another group"


def test_files_give_roles_by_lexicons_and_the_best_wrong_label(files):
    task = open_intent_task(files, seed=0)
    assert task.names == ("card lost", "card new", "rate")
    assert np.bincount(task.training.labels).tolist() == [4, 4, 4]
    for words, label, other, roles in zip(*task.test, strict=True):
        if label < 2:
            assert other == 1 - label
        for word, role in zip(words, roles, strict=False):
            if word == "card":
                assert label == 2 or role == GROUP
            if word in ("lost", "order"):
                assert role == CLASS
    rows = task.rows(task.test)
    assert rows["input_ids"].max() < files.vocab_size and (rows["input_ids"][rows["present"]] > 0).mean() > 0.8


def test_files_are_attacked_with_keywords_of_the_best_wrong_label(files):
    task = open_intent_task(files, seed=0)
    teacher = np.exp(task.teacher.label_confidence(task.test.joined()))
    attacked = np.exp(task.teacher.label_confidence(task.attacked.joined()))
    rows = np.arange(len(teacher))
    assert (attacked[rows, task.test.confusable] > teacher[rows, task.test.confusable]).mean() > 0.8
    assert all(len(a) == len(c) + 2 or len(a) == 10 for a, c in zip(task.attacked.words, task.test.words, strict=True))


def test_sub_words_belong_to_their_words(files):
    pytest.importorskip("tokenizers")
    from jaxcore.data.tokenization import train_tokenizer

    task = open_intent_task(files, seed=0)
    tokenizer = train_tokenizer(["c a r d", "please me now"], vocab_size=200)
    task = dataclasses.replace(task, config=dataclasses.replace(files, max_tokens=24))
    rows = task.rows(task.training, tokenizer=tokenizer)
    assert rows["input_ids"].shape == (12, 24)
    for words, ids, present in zip(task.training.words, rows["word_ids"], rows["present"], strict=True):
        assert ids[0] == -1 and present.sum() == ids.max() + 1 <= len(words)
        assert (np.diff(ids[ids >= 0]) >= 0).all()
    assert (rows["word_ids"] >= 0).sum() > rows["present"].sum(), "some words have several tokens"


def test_bad_input_is_named(files):
    with pytest.raises(ValueError, match=r"has 3 intents: set --data.num-classes 3"):
        open_intent_task(dataclasses.replace(files, num_classes=77), seed=0)
    with pytest.raises(ValueError, match=r"'card_lost' has 30 training texts, fewer than data.shots 31"):
        open_intent_task(dataclasses.replace(files, shots=31), seed=0)
    with pytest.raises(ValueError, match=r"data.tokenizer belongs to texts of files"):
        IntentDataConfig(tokenizer="roberta-base")
    with pytest.raises(ValueError, match="the world has no end of texts"):
        IntentDataConfig(shots=0)
