"""Published weights: reading HuggingFace directories into (sharded) parameters, and writing them back."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import DTypeLike

from jaxcore.models import decoder_directory, encoder_directory
from jaxcore.models.checkpoint_files import read_json
from jaxcore.models.decoder import Decoder
from jaxcore.models.decoder_config import DecoderConfig
from jaxcore.models.decoder_layout import DECODER_TYPES
from jaxcore.models.encoder import Encoder
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.huggingface_layout import MODEL_TYPES
from jaxcore.models.model_directories import resolve_directory
from jaxcore.models.stored_parameters import Shardings


def load_pretrained(
    path_or_id: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
    key: jax.Array | None = None,
    revision: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Build the Encoder or Decoder that a HuggingFace directory describes and read its weights.

    `model, params = load_pretrained(...)`, then `model.apply({"params": params}, input_ids, attention_mask)`.
    Weights are read slice by slice from memory-mapped files, each device's part by itself, so that host
    memory never holds more than one parameter beside the result, and a model larger than one device's memory
    goes straight to its shards on a mesh.

    A decoder's `bos_token_id`, `eos_token_ids` and `pad_token_id`: as `config_overrides` says; else those of
    generation_config.json, which chat models have several ends in; else those of config.json. Nothing else is read of
    generation_config.json: how tokens are drawn is said where they are (`jaxcore.generation`).

    An encoder's pooler: as `config_overrides` says; else, for sentence-transformers directories, the masked mean
    (and linear layer) they describe; else "cls_tanh" where the file has pooler tensors and "none" where it has not
    (models trained without one). A pooler asked for but not stored is an error, unless `key` is given to draw
    it afresh.

    Args:
        path_or_id: a directory (BERT, RoBERTa, DistilBERT, MiniLM, with or without a task head, which is left
            out; GPT-2, Llama, Mistral, Qwen 2, Qwen 3), or a hub id such as "AIDA-UPM/star", which is downloaded.
        config_overrides: `EncoderConfig` or `DecoderConfig` fields to change, such as
            `{"dtype": "bfloat16", "dropout": 0.0}`.
        sharding: where parameters go: a mesh, one `jax.sharding.Sharding`, a function from the parameter's path to
            one, or a tree of them (see `read_config` for how to get it beforehand). None = the default
            device.
        dtype: dtype of the parameters; the compute dtype is `config_overrides["dtype"]`.
        key: draws an encoder's pooler where the checkpoint has none.
        revision: commit, tag or branch of the hub repository.

    Raises:
        ValueError: unknown architecture, missing or unexpected tensor, wrong shape, pickled weights, damaged
            files, unknown override, directory or hub id that cannot be found.
    """
    directory = resolve_directory(path_or_id, revision)
    if not _holds_decoder(directory):
        return encoder_directory.load_encoder(
            directory, config_overrides=config_overrides, sharding=sharding, dtype=dtype, key=key
        )
    if key is not None:
        raise ValueError("key draws an encoder's pooler, but this is a decoder: leave it out")
    return decoder_directory.load_decoder(directory, config_overrides=config_overrides, sharding=sharding, dtype=dtype)


def read_config(
    path_or_id: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Any:
    """The `EncoderConfig` or `DecoderConfig` that `load_pretrained` would build, without reading weights.

    With it, shardings can be worked out first: `Encoder(config)`, `jax.eval_shape` of its `init`, the logical
    axis names of the boxes, a tree of shardings, and then `load_pretrained(..., sharding=tree)`. Raises as
    that does.
    """
    directory = resolve_directory(path_or_id, revision)
    if _holds_decoder(directory):
        return decoder_directory.read_decoder_config(directory, config_overrides)
    return encoder_directory.read_encoder_config(directory, config_overrides)


def save_pretrained(
    path: str | os.PathLike[str],
    model_or_config: Encoder | EncoderConfig | Decoder | DecoderConfig,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write `config.json` and safetensors weights that transformers' auto classes load.

    Those are `AutoModel` for encoders and `AutoModelForCausalLM` for decoders. Mean poolers are written as
    sentence-transformers modules (`modules.json`, `1_Pooling`, `2_Dense`), which `load_pretrained` and
    sentence-transformers read back. DistilBERT has no pooler in transformers: ours is
    stored as an extra tensor that transformers reports and leaves out. Each file appears under its name only
    when complete, `config.json` last: a directory that has it is whole. Other files in the directory (a
    tokenizer) stay, but for the generation_config.json of the decoder that is replaced.

    Args:
        path: directory, made if missing.
        model_or_config: the model or its config.
        params: the "params" collection, boxed or not, on any devices of this process; kept in its dtype.
        overwrite: replace a model that is already there.
        max_shard_bytes: weights beyond this size are split over several files with an index.

    Raises:
        ValueError: a model is already there, or `params` does not belong to the config (names the parameter).
    """
    config = model_or_config.config if isinstance(model_or_config, Encoder | Decoder) else model_or_config
    save = decoder_directory.save_decoder if isinstance(config, DecoderConfig) else encoder_directory.save_encoder
    save(pathlib.Path(path), config, params, overwrite=overwrite, max_shard_bytes=max_shard_bytes)  # type: ignore


def _holds_decoder(directory: pathlib.Path) -> bool:
    """Whether `config.json` describes a decoder. Raises ValueError for a model type that is neither."""
    file = directory / "config.json"
    if not file.is_file():
        return False  # sentence-transformers modules may keep it in a folder
    model_type = read_json(file).get("model_type")
    if model_type in DECODER_TYPES:
        return True
    if model_type in MODEL_TYPES or (directory / "modules.json").is_file():
        return False
    known = ", ".join((*MODEL_TYPES, *DECODER_TYPES))
    raise ValueError(f"{file}: unknown model_type {model_type!r}, expected one of {known}")
