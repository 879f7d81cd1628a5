"""The decoder a command is given, and its tokenizer: checked before any weights are read."""

from typing import Any

from jax.sharding import Mesh

from jaxcore.commands.text_runs import has_tokenizer, load_model_tokenizer
from jaxcore.generation.prompts import chat_prompt
from jaxcore.generation.vocabularies import check_same_tokens, check_tokenizer, ending_tokens
from jaxcore.models import DecoderConfig, load_pretrained, read_config, unstack_layers

__all__ = ["ending_tokens", "load_decoder_tokenizer", "load_for_decoding", "prompt_ids", "read_decoder_config"]


def read_decoder_config(name: str) -> DecoderConfig:
    """The configuration of the decoder in this folder or under this hub id; ValueError for another kind of model."""
    config = read_config(name)
    if not isinstance(config, DecoderConfig):
        raise ValueError(
            f"{name} is no decoder but an encoder ({config.architecture}), which cannot continue a text: give a GPT-2, "
            "Llama, Mistral, Qwen 2 or Qwen 3 model"
        )
    return config


def load_decoder_tokenizer(model: str, config: DecoderConfig, *, tokenizer: str = "", assistant: str = "") -> Any:
    """The tokenizer of the model, or the one named in its place; checked against the model.

    Args:
        assistant: folder or hub id of a second model, whose tokenizer must be the same; a folder without one passes.

    Raises:
        ValueError: no tokenizer, or one of another vocabulary than the model's or the assistant's.
    """
    found = load_model_tokenizer(tokenizer or model)
    check_tokenizer(found, config)
    if assistant and has_tokenizer(assistant):
        check_same_tokens(found, load_model_tokenizer(assistant))
    return found


def load_for_decoding(name: str, dtype: str, mesh: Mesh) -> tuple[Any, Any]:
    """A decoder and its parameters, each part straight to its device, in the form that decodes fastest."""
    model, params = load_pretrained(name, config_overrides={"dtype": dtype}, dtype=dtype, sharding=mesh)
    return model, unstack_layers(params, consume=True)


def prompt_ids(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """Token ids of a prompt as it is, or as a user's message in the chat template."""
    return chat_prompt(tokenizer, text) if chat else tokenizer(text, verbose=False)["input_ids"]
