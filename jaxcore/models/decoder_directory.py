"""Decoders in HuggingFace directories."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import DTypeLike

from jaxcore.models.checkpoint_files import StoredTensor, TensorReader, read_json
from jaxcore.models.decoder import Decoder
from jaxcore.models.decoder_config import DecoderConfig
from jaxcore.models.decoder_layout import (
    HEAD,
    decoder_fields_from_huggingface,
    decoder_layouts,
    decoder_prefix,
    decoder_to_huggingface,
    token_fields_from_huggingface,
    unexpected_decoder_tensors,
)
from jaxcore.models.model_directories import (
    GENERATION_CONFIG,
    check_vacant,
    checked_overrides,
    clear_directory,
    write_json,
    write_weights,
)
from jaxcore.models.stored_parameters import (
    Shardings,
    check_tensors,
    nest_paths,
    read_parameter,
    sharding_of,
    stored_tensors,
)


def load_decoder(
    directory: pathlib.Path,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
) -> tuple[Decoder, dict[str, Any]]:
    """`load_pretrained` for a local directory that holds a decoder."""
    config = read_decoder_config(directory, config_overrides)
    model, layouts = Decoder(config), decoder_layouts(config)
    with TensorReader() as reader:
        tensors = _open_tensors(reader, config, directory)
        check_tensors(
            layouts,
            tensors,
            unexpected_decoder_tensors(tensors, config),
            directory=directory,
            described=f"{config.architecture} model of {config.num_layers} layers, width {config.hidden_size}",
            hint=lambda name: "; if the word table serves as head, set tied_head=True" if name == HEAD else "",
        )
        place = sharding_of(sharding, layouts, model)
        leaves = {
            path: read_parameter(reader, layout, tensors, np.dtype(dtype), place(path))
            for path, layout in layouts.items()
        }
    return model, nest_paths(leaves)


def read_decoder_config(directory: pathlib.Path, config_overrides: Mapping[str, Any] | None = None) -> DecoderConfig:
    """`read_config` for a local directory that holds a decoder."""
    overrides = checked_overrides(DecoderConfig, config_overrides)
    fields = decoder_fields_from_huggingface(read_json(directory / "config.json"))
    if (directory / GENERATION_CONFIG).is_file():
        fields |= token_fields_from_huggingface(read_json(directory / GENERATION_CONFIG))
    return DecoderConfig(**{**fields, **overrides})


def save_decoder(
    directory: pathlib.Path, config: DecoderConfig, params: Mapping[str, Any], *, overwrite: bool, max_shard_bytes: int
) -> None:
    """`save_pretrained` for a decoder, from stacked parameters."""
    check_vacant(directory, overwrite=overwrite)
    prefix = decoder_prefix(config)
    tensors = {
        name if name == HEAD else prefix + name: value
        for name, value in stored_tensors(nn.meta.unbox(params), decoder_layouts(config)).items()
    }
    clear_directory(directory)
    (directory / GENERATION_CONFIG).unlink(missing_ok=True)  # its ends would precede those of the model's config
    write_weights(directory, tensors, max_shard_bytes=max_shard_bytes)
    stored_dtype = str(next(iter(tensors.values())).dtype)
    write_json(directory / "config.json", decoder_to_huggingface(config, dtype=stored_dtype))


def _open_tensors(reader: TensorReader, config: DecoderConfig, directory: pathlib.Path) -> dict[str, StoredTensor]:
    """All stored tensors by canonical name."""
    tensors: dict[str, StoredTensor] = {}
    for tensor in reader.open_directory(directory):
        name = tensor.name.removeprefix(decoder_prefix(config))
        if name in tensors:
            raise ValueError(f"{tensor.file}: tensors {tensors[name].name} and {tensor.name} are the same parameter")
        tensors[name] = tensor
    return tensors
