"""What a decoder is steered on and judged by: preference pairs of a file, or the generated two-source language."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcore.data.preference_pairs import (
    encode_pairs,
    is_truthfulqa,
    read_preference_pairs,
    read_truthfulqa,
    split_pairs,
)
from jaxcore.data.two_source_world import PAD, preference_rows, token_names, training_rows, two_source_texts

Rows = dict[str, np.ndarray]
"""As `jaxcore.data.preference_pairs.encode_pairs` gives them."""
_TASK = 303  # what the random stream is for: part of its key


@dataclasses.dataclass(frozen=True)
class PreferenceDataConfig:
    """Preference pairs, and how many of them serve what."""

    path: str = ""
    """A file of preference pairs or TruthfulQA.csv; empty: the generated language."""
    num_steer: int = 50
    """Pairs that directions are found on."""
    num_validation: int = 200
    """Pairs that settings are chosen on."""
    num_test: int = 600
    """Pairs that are reported; of a file 0 = all that remain."""
    prompt_length: int = 96
    """Tokens that prompts of a file are padded to."""
    response_length: int = 48
    """The same for responses."""
    num_texts: int = 30_000
    """Texts of the generated language to train a decoder on."""
    masked_share: float = 0.05
    """Of their tokens replaced by PAD, so that masking is nothing new to the decoder."""

    def __post_init__(self) -> None:
        sizes = (self.num_steer, self.num_validation, self.prompt_length, self.response_length, self.num_texts)
        if min(sizes) < 1 or self.num_test < (0 if self.path else 1):
            raise ValueError(
                "num_steer, num_validation, prompt_length, response_length, num_texts and num_test (of a file 0 = all "
                f"that remain) must be at least 1: got {(*sizes, self.num_test)}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class PreferenceTask:
    """Prompts with two responses each, in three disjoint parts, and what is known of them."""

    steer: Rows
    validation: Rows
    test: Rows
    fill: int
    """Id that masks a token."""
    names: Callable[[np.ndarray], list[str]]
    """How tokens read."""
    control: Mapping[str, tuple[Rows, Int[np.ndarray, " prompts"]]] = dataclasses.field(default_factory=dict)
    """By "validation" and "test": prompts that steering must leave alone, and the ids of their answers."""
    training: Rows | None = None
    """Rows of `jaxcore.training.language_modelling` that a decoder is trained on."""
    hint_signs: Int[np.ndarray, "steer width"] | None = None
    """+1 and -1 at the tokens of `steer` that are hints."""
    classes: tuple[Rows, Int[np.ndarray, " prompts"]] | None = None
    """Prompts with the sign of their evidence."""


def open_preference_task(config: PreferenceDataConfig, *, seed: int, tokenizer: Any = None) -> PreferenceTask:
    """The task of a configuration.

    Args:
        seed: of the language, or of the split and of TruthfulQA's incorrect answers.
        tokenizer: of transformers; needed for pairs of a file.

    Raises:
        ValueError: files that are missing or damaged, too few or too long pairs.
    """
    if not config.path:
        return _two_source_task(config, seed)
    read = read_truthfulqa(config.path, seed=seed) if is_truthfulqa(config.path) else read_preference_pairs(config.path)
    sizes = {"num_steer": config.num_steer, "num_validation": config.num_validation}
    parts = split_pairs(read, **sizes, num_test=config.num_test or None, seed=seed)
    lengths = {"prompt_length": config.prompt_length, "response_length": config.response_length}
    return PreferenceTask(
        steer=encode_pairs(parts.steer, tokenizer, **lengths),
        validation=encode_pairs(parts.validation, tokenizer, **lengths),
        test=encode_pairs(parts.test, tokenizer, **lengths),
        fill=mask_token(tokenizer),
        names=lambda ids: tokenizer.convert_ids_to_tokens(ids.tolist()),
    )


def _two_source_task(config: PreferenceDataConfig, seed: int) -> PreferenceTask:
    """Questions to steer on as they come; validation and test are balanced: as many positive as negative hints."""
    rng = np.random.default_rng([seed, _TASK])
    training = training_rows(two_source_texts(rng, config.num_texts, masked_share=config.masked_share))
    steer = two_source_texts(rng, config.num_steer, control_share=0.0)
    needed = config.num_validation + config.num_test
    pool = two_source_texts(rng, 8 * needed + 400, control_share=0.0)  # about a quarter of them is balanced
    balanced = pool.take(np.flatnonzero(pool.evidence == 0)[:needed])
    control = two_source_texts(rng, needed, control_share=1.0)
    parts = {"validation": np.arange(config.num_validation), "test": np.arange(config.num_validation, needed)}
    names = token_names()
    return PreferenceTask(
        steer=preference_rows(steer),
        validation=preference_rows(balanced.take(parts["validation"])),
        test=preference_rows(balanced.take(parts["test"])),
        fill=PAD,
        names=lambda ids: [names[token] for token in ids],
        control={name: (preference_rows(control.take(rows)), control.answers[rows]) for name, rows in parts.items()},
        training=training,
        hint_signs=steer.hint_signs,
        classes=(preference_rows(pool), np.sign(pool.evidence)),
    )


def mask_token(tokenizer: Any) -> int:
    """The id that takes the place of a masked token: the pad token, or the end where there is none.

    Raises:
        ValueError: a tokenizer that has neither, nor an unknown token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has no pad, end or unknown token to mask others with")


def preferred_rows(rows: Rows) -> Rows:
    """Prompts with their preferred responses as rows to train on; only the responses are targets."""
    ids = np.concatenate([rows["prompt_ids"], rows["chosen"]], axis=1)
    mask = np.concatenate([rows["prompt_mask"], rows["chosen_mask"]], axis=1)
    targets = np.concatenate([np.zeros_like(rows["prompt_mask"]), rows["chosen_mask"]], axis=1)
    return {"input_ids": ids, "attention_mask": mask, "target_mask": targets}
