"""The decoder a command is given, checked before any weights are read."""

from typing import Any

from jaxcore.generation.prompts import chat_prompt
from jaxcore.models import DecoderConfig, read_config


def read_decoder_config(name: str) -> DecoderConfig:
    """The configuration of the decoder in this folder or under this hub id; ValueError for another kind of model."""
    config = read_config(name)
    if not isinstance(config, DecoderConfig):
        raise ValueError(
            f"{name} is no decoder but an encoder ({config.architecture}), which cannot continue a text: give a GPT-2, "
            "Llama, Mistral, Qwen 2 or Qwen 3 model"
        )
    return config


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """ValueError for a tokenizer with more tokens than the model's vocabulary."""
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary {vocab_size}: use the tokenizer "
            "that belongs to the model"
        )


def ending_tokens(tokenizer: Any, config: DecoderConfig) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's, and all that the model's configuration lists (chat models: several)."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(dict.fromkeys([*own, *config.eos_token_ids]))


def prompt_ids(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """Token ids of a prompt as it is, or as a user's message in the chat template."""
    return chat_prompt(tokenizer, text) if chat else tokenizer(text, verbose=False)["input_ids"]
