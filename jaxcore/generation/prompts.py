"""Prompts of any length as left-padded arrays of few widths."""

from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

SHORTEST_WIDTH = 16


def prompt_width(longest: int, *, limit: int, step: int | None = None) -> int:
    """Tokens that prompts are padded to: 16, 24, 32, 48, 64, 96, ... (each second a power of two), at most `limit`.

    A program is compiled for each width, and padding stays below half of the longest prompt.

    Args:
        step: take multiples of it in place of larger widths: more programs for long prompts, and less padding. It pays
            where a program runs much longer than it compiles.

    Raises:
        ValueError: prompts longer than the limit.
    """
    if longest > limit:
        raise ValueError(f"a prompt has {longest} tokens, but only {limit} fit: cut it, or ask for fewer new tokens")
    width = SHORTEST_WIDTH
    while width < longest:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, limit, limit if step is None else -(-longest // step) * step)


def pad_left(prompts: Sequence[Any], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts (token ids, or vectors) as one array of `width` columns, zeros on the left, and its mask.

    Raises:
        ValueError: an empty prompt or one longer than the width.
    """
    rows = [np.asarray(prompt) for prompt in prompts]
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= width:
            raise ValueError(f"prompt {index} has {len(row)} tokens, expected 1 to {width}")
    padded = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    mask = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        padded[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return padded, mask


def chat_prompt(tokenizer: Any, message: str) -> list[int]:
    """Token ids of a user's message by the tokenizer's chat template, up to where the model's answer begins.

    Raises:
        ValueError: a tokenizer without a chat template, or whose template fails.
    """
    return tokenizer(_in_template(tokenizer, message), add_special_tokens=False)["input_ids"]  # the template has them


def chat_parts(tokenizer: Any, message: str) -> tuple[str, str, str]:
    """What the chat template puts before a user's message, the message as it stands there, and what follows it.

    Templates may strip the message, no more.

    Raises:
        ValueError: a tokenizer without a chat template, or whose template fails or changes the message.
    """
    whole = _in_template(tokenizer, message)
    before, mark, after = _in_template(tokenizer, _MARK).partition(_MARK)
    written = whole[len(before) : len(whole) - len(after)]
    if not mark or before + written + after != whole or written.strip() != message.strip():
        raise ValueError(f"the chat template changes the message {message!r:.60}: got {whole!r:.200}")
    return before, written, after


_MARK = "\ue000"


def _in_template(tokenizer: Any, message: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template: give the prompt as the model expects it")
    turns = [{"role": "user", "content": message}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:  # templates refuse what they do not expect
        raise ValueError(f"the chat template fails on one message of a user: {error}") from error
