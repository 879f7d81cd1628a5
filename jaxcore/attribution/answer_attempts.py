"""Asking a language model until its answer can be read: many prompts together, the unread ones again."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")
AnswerPrompts = Callable[[Sequence[str], int], Sequence[str]]
"""Prompts and a seed to one answer each, in order: `jaxcore.generation.TextGenerator`."""


class Answered(NamedTuple, Generic[Value]):
    """What came of a prompt."""

    value: Value | None
    """As read; None where no answer could be."""
    attempts: int
    """Answers that were asked for."""
    answer: str
    """The one that was read; empty without one."""


def ask_until_read(
    prompts: Sequence[str],
    read: Callable[[int, str], Value],
    generate: AnswerPrompts,
    *,
    seed: int = 0,
    attempts: int = 5,
) -> list[Answered[Value]]:
    """Each prompt's answer as read; attempt a = 0, 1, ... asks once for all prompts still unread, with seed + a.

    Args:
        read: prompt's number and answer to a value; ValueError for an answer to be asked for again.

    Raises:
        ValueError: fewer than one attempt, a generator that gives another number of answers.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1: got {attempts}")
    found: list[Answered[Value]] = [Answered(None, 0, "")] * len(prompts)
    unread = list(range(len(prompts)))
    for attempt in range(attempts):
        if not unread:
            break
        answers = generate([prompts[number] for number in unread], seed + attempt)
        if len(answers) != len(unread):
            raise ValueError(f"the generator gave {len(answers)} answers to {len(unread)} prompts")
        for number, answer in zip(unread, answers, strict=True):
            try:
                found[number] = Answered(read(number, answer), attempt + 1, answer)
            except ValueError:
                found[number] = Answered(None, attempt + 1, "")
        unread = [number for number in unread if found[number].value is None]
    return found
