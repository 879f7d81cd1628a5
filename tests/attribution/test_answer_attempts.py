"""Prompts are asked together, and only those without a readable answer again."""

import pytest

from jaxcore.attribution.answer_attempts import ask_until_read


def test_only_unread_prompts_are_asked_again_with_the_next_seed():
    calls = []

    def generate(prompts, seed):
        calls.append((list(prompts), seed))
        return ["7" if prompt == "a" or seed == 6 else "?" for prompt in prompts]

    found = ask_until_read(["a", "b"], lambda number, answer: (number, int(answer)), generate, seed=5)
    assert calls == [(["a", "b"], 5), (["b"], 6)]
    assert [tuple(one) for one in found] == [((0, 7), 1, "7"), ((1, 7), 2, "7")]


def test_what_is_never_read_has_no_value_and_says_how_often_it_was_asked():
    [found] = ask_until_read(["a"], lambda _, answer: int(answer), lambda prompts, seed: ["no"], attempts=3)
    assert (found.value, found.attempts, found.answer) == (None, 3, "")
    assert ask_until_read([], lambda _, answer: answer, lambda prompts, seed: [], attempts=3) == []


def test_generators_of_another_number_of_answers_are_refused():
    with pytest.raises(ValueError, match="gave 1 answers to 2 prompts"):
        ask_until_read(["a", "b"], lambda _, answer: answer, lambda prompts, seed: ["x"])
    with pytest.raises(ValueError, match="attempts must be at least 1: got 0"):
        ask_until_read(["a"], lambda _, answer: answer, lambda prompts, seed: ["x"], attempts=0)
