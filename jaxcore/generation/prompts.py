"""Prompts of any length as left-padded arrays of few widths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

SHORTEST_WIDTH = 16


def prompt_width(longest: int, *, limit: int) -> int:
    """Tokens that prompts are padded to: 16, 24, 32, 48, 64, 96, ... (each second a power of two), at most `limit`.

    A program is compiled for each width, and padding stays below half of the longest prompt.

    Raises:
        ValueError: prompts longer than the limit.
    """
    if longest > limit:
        raise ValueError(f"a prompt has {longest} tokens, but only {limit} fit: cut it, or ask for fewer new tokens")
    width = SHORTEST_WIDTH
    while width < longest:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, limit)


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
        ValueError: a tokenizer without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template: give the prompt as the model expects it")
    turns = [{"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has them
