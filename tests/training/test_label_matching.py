"""Text-label matching: what the samplers put into a batch, and that the same network learns from either kind."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcore.data.titled_task import TitledDataConfig, TitledRows, TitledTask
from jaxcore.training.label_matching import (
    LabelMatchingConfig,
    init_matcher,
    match_scores,
    pseudo_label_batches,
    title_batches,
    train_matcher,
)

CONFIG = LabelMatchingConfig(
    num_steps=60, batch_size=16, num_labels=3, embedding_size=16, num_filters=16, hidden_sizes=(16,), learning_rate=1e-2
)
LEARNING = dataclasses.replace(CONFIG, num_steps=480)  # words go together after some hundred steps
TOPICS, WORDS, LENGTH = 6, 8, 12


def toy_task(seed=0):
    """Texts of six topics with eight words each; a topic's title is its first word."""
    rng = np.random.default_rng(seed)

    def rows(count):
        topics = rng.integers(0, TOPICS, count)
        words = 5 + topics[:, None] * WORDS + rng.integers(0, WORDS, (count, LENGTH))
        return TitledRows(words.astype(np.int32), np.ones((count, LENGTH), np.int32), topics, topics)

    titles = (5 + np.arange(TOPICS) * WORDS)[:, None].astype(np.int32)
    return TitledTask(
        training=rows(120),
        test=rows(60),
        title_ids=titles,
        title_mask=np.ones_like(titles),
        vocab_size=5 + TOPICS * WORDS,
        special_ids=(0, 1, 2, 3, 4),
        config=TitledDataConfig(max_length=LENGTH, title_length=1),
        description="toy",
    )


TASK = toy_task()


def accuracy(params):
    rows = TASK.test
    titles = np.broadcast_to(TASK.title_ids, (len(rows), TOPICS, 1))
    scores = match_scores(CONFIG, params, rows.input_ids, rows.attention_mask, titles, np.ones_like(titles))
    return float(np.mean(np.argmax(scores, axis=1) == rows.titles))


def trained(batches, start=None):
    params = init_matcher(CONFIG, TASK.vocab_size, jax.random.key(0)) if start is None else start
    config = dataclasses.replace(CONFIG, num_steps=len(batches.rows))
    return train_matcher(config, params, TASK.training.input_ids, TASK.training.attention_mask, batches)


def test_pseudo_labels_are_words_of_the_text_and_of_another():
    batches = pseudo_label_batches(CONFIG, TASK, np.random.default_rng(0), num_labels=2)
    assert batches.rows.shape == (60, 16) and batches.label_ids.shape == (60, 16, 6, 1)
    assert batches.counted[:, :, [0, 1]].all() and not batches.counted[:, :, [2, 5]].any()
    np.testing.assert_array_equal(batches.label_mask[..., 0], batches.counted)
    for step in (0, 33):
        for row, labels, counted in zip(
            batches.rows[step], batches.label_ids[step, ..., 0], batches.counted[step], strict=True
        ):
            own = set(TASK.training.input_ids[row].tolist())
            assert set(labels[:2].tolist()) <= own and not set(labels[3:][counted[3:]].tolist()) & own
    seen = np.bincount(batches.rows.ravel(), minlength=120)
    assert seen.min() == seen.max() == 8


def test_shuffled_pseudo_labels_are_those_of_one_other_text_throughout():
    batches = pseudo_label_batches(CONFIG, TASK, np.random.default_rng(0), num_labels=3, shuffled=True)
    own = [
        np.isin(batches.label_ids[step, place, :3, 0], TASK.training.input_ids[row]).all()
        for step in range(60)
        for place, row in enumerate(batches.rows[step])
    ]
    assert np.mean(own) < 0.4  # texts of one topic share words
    words = {}
    for step in range(60):
        for place, row in enumerate(batches.rows[step]):
            words.setdefault(int(row), set()).update(batches.label_ids[step, place, :3, 0].tolist())
    texts = [set(ids.tolist()) for ids in TASK.training.input_ids]
    assert all(any(found <= text for text in texts) for found in words.values())


def test_titles_of_other_texts_are_negatives_unless_they_are_the_same():
    batches = title_batches(CONFIG, TASK, np.random.default_rng(0), share=0.1)
    assert len(np.unique(batches.rows)) <= 12
    titles = TASK.training.titles[batches.rows]
    np.testing.assert_array_equal(batches.label_ids[:, :, 0, 0], TASK.title_ids[titles, 0])
    assert batches.counted[:, :, 0].all() and not batches.counted[:, :, 1:3].any()
    same = batches.label_ids[:, :, 3:, 0] == batches.label_ids[:, :, :1, 0]
    np.testing.assert_array_equal(batches.counted[:, :, 3:], ~same)
    assert same.any() and not same.all()


def test_pseudo_labels_teach_titles_that_were_never_labels_and_shuffled_ones_do_not():
    """One title in six is right by chance. Words of a topic go together, and the title is one of them."""
    fresh = init_matcher(CONFIG, TASK.vocab_size, jax.random.key(0))
    rng = np.random.default_rng(0)
    learnt = accuracy(trained(pseudo_label_batches(LEARNING, TASK, rng, num_labels=3)))
    shuffled = accuracy(trained(pseudo_label_batches(LEARNING, TASK, rng, num_labels=3, shuffled=True)))
    assert learnt > 0.8
    assert max(accuracy(fresh), shuffled) < 0.5
    assert accuracy(trained(title_batches(LEARNING, TASK, rng, share=1.0))) > 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: pseudo_label_batches(CONFIG, TASK, rng, num_labels=4), r"num_labels must be in 1\.\.3: got 4"),
        (lambda rng: title_batches(CONFIG, TASK, rng, share=0.0), r"share must be in \(0, 1\]"),
        (
            lambda rng: title_batches(dataclasses.replace(CONFIG, batch_size=3), TASK, rng, share=1.0),
            "batch_size above num_labels",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
