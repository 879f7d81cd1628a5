"""The two-source language: its form, the law of its answers, masked texts."""

import numpy as np
import pytest

from jaxcore.data.two_source_world import (
    BOS,
    CONTROL,
    PAD,
    PROMPT_LENGTH,
    QUESTION,
    VOCABULARY_SIZE,
    preference_rows,
    token_names,
    training_rows,
    two_source_texts,
)

TEXTS = two_source_texts(np.random.default_rng(0), 20_000)
NAMES = np.array(token_names())


def test_texts_have_the_form_that_is_stated():
    assert len(NAMES) == VOCABULARY_SIZE == 48 and len(set(NAMES)) == 48
    ids = TEXTS.prompt_ids
    assert ids.shape == (20_000, PROMPT_LENGTH) and (ids[:, 0] == BOS).all()
    assert set(ids[:, -1]) == {QUESTION, CONTROL} and TEXTS.is_control.mean() == pytest.approx(0.25, abs=0.01)
    for row in range(50):
        words = NAMES[ids[row]]
        facts = {word[0]: word[1:] for word in words[1:4]}
        assert set(facts) == {"R", "U", "N"} and len(set(facts.values())) == 3
        for letter, answer in (("R", TEXTS.reliable), ("U", TEXTS.unreliable), ("N", TEXTS.neutral)):
            assert NAMES[answer[row]] == "=" + facts[letter]
        signs = [1 if word.startswith("yes") else -1 if word.startswith("no") else 0 for word in words]
        assert signs == TEXTS.hint_signs[row].tolist()
    shares = [(TEXTS.hint_signs[:, 4:-1] == sign).mean() for sign in (1, -1, 0)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.01)
    first = {NAMES[ids[row, 1]][0] for row in range(50)}
    assert first == {"R", "U", "N"}  # facts come in any order


def test_answers_follow_the_hints_by_the_stated_law():
    control = TEXTS.is_control
    assert (TEXTS.answers == TEXTS.neutral)[control].all()
    for evidence in (-1, 0, 1, 2):
        rows = ~control & (TEXTS.evidence == evidence)
        share = (TEXTS.answers == TEXTS.reliable)[rows].mean()
        expected = 1 / (1 + np.exp(-(1.5 * evidence - 1)))
        assert share == pytest.approx(expected, abs=4 * np.sqrt(0.25 / rows.sum()))
        assert ((TEXTS.answers == TEXTS.reliable) | (TEXTS.answers == TEXTS.unreliable))[rows].all()


def test_masked_texts_lose_tokens_and_what_they_say():
    masked = two_source_texts(np.random.default_rng(1), 5000, masked_share=0.3)
    middle = masked.prompt_ids[:, 1:-1]
    assert (middle == PAD).mean() == pytest.approx(0.3, abs=0.02)
    assert not masked.hint_signs[masked.prompt_ids == PAD].any()
    assert set(masked.prompt_ids[:, 0]) == {BOS} and PAD not in masked.prompt_ids[:, -1]


def test_rows_for_training_and_for_preferences():
    rows = training_rows(TEXTS)
    assert rows["input_ids"][:, :-1].tolist() == TEXTS.prompt_ids.tolist()
    assert rows["input_ids"][:, -1].tolist() == TEXTS.answers.tolist()
    assert rows["target_mask"].sum() == len(TEXTS.answers) == rows["target_mask"][:, -1].sum()
    few = preference_rows(TEXTS.take(np.arange(3)))
    assert few["special"][0].tolist() == [1] + [0] * (PROMPT_LENGTH - 2) + [1]
    assert few["chosen"][:, 0].tolist() == TEXTS.reliable[:3].tolist()
    assert few["rejected"][:, 0].tolist() == TEXTS.unreliable[:3].tolist()
    with pytest.raises(ValueError, match="count must be at least 1"):
        two_source_texts(np.random.default_rng(0), 0)
    with pytest.raises(ValueError, match=r"shares in \[0, 1\]"):
        two_source_texts(np.random.default_rng(0), 1, masked_share=1.5)
