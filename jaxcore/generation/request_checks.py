"""What `generate` asks of prompts, lengths, tokens and the assistant: checked before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcore.generation.option_checks import check_count
from jaxcore.generation.strategy import Strategy
from jaxcore.generation.vocabularies import check_tables


def check_prompts(config: Any, input_ids: Any, attention_mask: Any, embeddings: Any) -> Any:
    """The mask of the prompts, all ones for None; ValueError for prompts that no model could read."""
    if (input_ids is None) == (embeddings is None):
        raise ValueError("give the prompts either as input_ids or as embeddings (with input_ids=None)")
    given = input_ids if embeddings is None else embeddings
    if jnp.ndim(given) != (2 if embeddings is None else 3):
        axes = "(batch, width)" if embeddings is None else "(batch, width, hidden)"
        raise ValueError(f"prompts must be an array {axes}, got shape {jnp.shape(given)}")
    shape = jnp.shape(given)[:2]
    if 0 in shape:
        raise ValueError(f"empty prompt: expected at least one prompt of at least one token, got shape {shape}")
    mask = np.ones(shape, np.int32) if attention_mask is None else attention_mask
    if jnp.shape(mask) != shape:
        raise ValueError(f"attention_mask must have the shape of the prompts {shape}, got {jnp.shape(mask)}")
    if input_ids is not None and _is_known(input_ids) and _is_known(mask):
        ids = np.asarray(input_ids)
        wrong = np.argwhere(((ids < 0) | (ids >= config.vocab_size)) & (np.asarray(mask) != 0))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"prompt {row} has token {ids[row, column]} at {column}, but the model's vocabulary has ids 0 to "
                f"{config.vocab_size - 1}: use the tokenizer that belongs to the model"
            )
    if _is_known(mask):
        _check_left_padding(np.asarray(mask) != 0)
    return mask


def _check_left_padding(real: np.ndarray) -> None:
    empty = np.flatnonzero(~real.any(1))
    if len(empty):
        raise ValueError(f"empty prompt: row {empty[0]} has no token; begin it with the model's first token (bos)")
    broken = np.flatnonzero((np.diff(real.astype(int), axis=1) < 0).any(1) | ~real[:, -1])
    if len(broken):
        raise ValueError(f"prompts must be padded on the left: row {broken[0]} has padding behind a token")


def check_request(
    config: Any,
    mask: Any,
    strategy: Strategy,
    max_new_tokens: int,
    num_samples: int,
    stop_tokens: Sequence[int],
    key: Any,
) -> None:
    """ValueError for a request that does not fit the model, or a strategy that does not fit the request."""
    check_count("max_new_tokens", max_new_tokens)
    check_count("num_samples", num_samples)
    if not hasattr(strategy, "advance"):
        raise ValueError(
            f"strategy must be a strategy such as Greedy(), got {strategy!r}: strategy_from_name makes one of a name"
        )
    strategy.check(config.vocab_size, max_new_tokens, num_samples)
    if strategy.is_random and key is None:
        raise ValueError(f"{type(strategy).__name__} draws tokens and needs a key: key=jax.random.key(0), say")
    outside = [token for token in stop_tokens if not 0 <= token < config.vocab_size]
    if outside:
        raise ValueError(f"stop token {outside[0]} is outside the model's vocabulary, 0 to {config.vocab_size - 1}")
    check_context(config, mask, max_new_tokens, strategy)


def check_context(config: Any, mask: Any, max_new_tokens: int, strategy: Strategy, owner: str = "model") -> None:
    """ValueError if prompt and new tokens are longer than the context."""
    room = config.context_length - max_new_tokens - strategy.num_extra_positions
    longest = int(np.asarray(mask).astype(bool).sum(1).max()) if _is_known(mask) else 1
    if longest > room:
        extra = f" and {strategy.num_extra_positions} for drafts" if strategy.num_extra_positions else ""
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones{extra} do not fit the {owner}'s context of "
            f"{config.context_length} tokens: cut the prompt, or ask for fewer new tokens"
        )
    if mask.shape[1] > config.context_length:
        raise ValueError(
            f"prompts are padded to {mask.shape[1]} tokens, but the {owner}'s context is {config.context_length}"
        )


def check_assistant(
    config: Any, strategy: Strategy, assistant: Any, mask: Any, max_new_tokens: int, *, given_embeddings: bool
) -> None:
    """ValueError for an assistant that is missing, superfluous or does not fit the model."""
    name = type(strategy).__name__
    if not strategy.needs_assistant:
        if assistant is not None:
            raise ValueError(f"{name} has no use for an assistant: leave it out")
        return
    if assistant is None:
        raise ValueError(f"{name} needs a second model: assistant=(model, params)")
    if given_embeddings:
        raise ValueError(f"{name} needs prompts as token ids: the assistant's embeddings are others than the model's")
    other = assistant[0].config
    check_tables(config.vocab_size, other.vocab_size)
    check_context(other, mask, max_new_tokens, strategy, owner="assistant")


def _is_known(array: Any) -> bool:
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)
