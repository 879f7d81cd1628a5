"""Encoders in HuggingFace directories: transformers' BERT families and sentence-transformers' modules."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from jaxcore.models import sentence_transformers_layout as sentence_layout
from jaxcore.models.checkpoint_files import WEIGHTS, StoredTensor, TensorReader, read_json
from jaxcore.models.encoder import Encoder, Pooler
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.huggingface_layout import (
    SENTENCE_DENSE,
    canonical_tensor_name,
    config_to_huggingface,
    fields_from_huggingface,
    parameter_layouts,
    pooler_layouts,
    unexpected_tensors,
)
from jaxcore.models.model_directories import (
    check_vacant,
    checked_overrides,
    clear_directory,
    write_json,
    write_tensors,
    write_weights,
)
from jaxcore.models.stored_parameters import (
    Shardings,
    check_tensors,
    flatten_paths,
    nest_paths,
    read_parameter,
    sharding_of,
    stored_tensors,
)


def load_encoder(
    directory: pathlib.Path,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
    key: jax.Array | None = None,
) -> tuple[Encoder, dict[str, Any]]:
    """`load_pretrained` for a local directory that holds an encoder."""
    with TensorReader() as reader:
        config, modules = _read_config(directory, reader, config_overrides)
        tensors = _open_tensors(reader, config, modules, directory)
        layouts = parameter_layouts(config)
        fresh = _fresh_pooler(config, tensors, key)
        stored = {path: layout for path, layout in layouts.items() if path not in fresh}
        _check_tensors(stored, tensors, config, directory)
        place = sharding_of(sharding, layouts, Encoder(config))
        leaves = {
            path: read_parameter(reader, layout, tensors, np.dtype(dtype), place(path))
            for path, layout in stored.items()
        }
        for path, value in fresh.items():
            leaves[path] = jax.device_put(value.astype(dtype), place(path))
    return Encoder(config), nest_paths(leaves)


def read_encoder_config(directory: pathlib.Path, config_overrides: Mapping[str, Any] | None = None) -> EncoderConfig:
    """`read_config` for a local directory that holds an encoder."""
    with TensorReader() as reader:
        return _read_config(directory, reader, config_overrides)[0]


def save_encoder(
    directory: pathlib.Path, config: EncoderConfig, params: Mapping[str, Any], *, overwrite: bool, max_shard_bytes: int
) -> None:
    """`save_pretrained` for an encoder."""
    check_vacant(directory, overwrite=overwrite)
    tensors = stored_tensors(nn.meta.unbox(params), parameter_layouts(config))
    dense = {name.removeprefix(SENTENCE_DENSE): tensors.pop(name) for name in list(tensors) if SENTENCE_DENSE in name}
    clear_directory(directory)
    write_weights(directory, tensors, max_shard_bytes=max_shard_bytes)
    if dense:
        write_tensors(directory / sentence_layout.DENSE / WEIGHTS, dense)
    for name, contents in sentence_layout.module_files(config).items():
        write_json(directory / name, contents)
    stored_dtype = str(next(iter(tensors.values())).dtype)
    write_json(directory / "config.json", config_to_huggingface(config, dtype=stored_dtype))


def _read_config(
    directory: pathlib.Path, reader: TensorReader, overrides: Mapping[str, Any] | None
) -> tuple[EncoderConfig, sentence_layout.SentenceModules | None]:
    overrides = checked_overrides(EncoderConfig, overrides)
    modules = sentence_layout.read_modules(directory)
    transformer = modules.transformer if modules else directory
    fields = fields_from_huggingface(read_json(transformer / "config.json"))
    if "pooler" not in overrides:
        fields["pooler"] = _stored_pooler(directory, modules, reader, fields["architecture"])
    return EncoderConfig(**{**fields, **overrides}), modules


def _stored_pooler(directory, modules, reader, architecture) -> str:
    """The pooler that a directory describes or, in a plain transformers one, has tensors for."""
    if modules is not None:
        if modules.pooler is None:
            raise ValueError(
                f"{directory / sentence_layout.MODULES}: the Encoder has no such pooler "
                f"({modules.unsupported}); pass "
                "config_overrides={'pooler': 'none'} and pool last_hidden_state yourself"
            )
        return modules.pooler
    names = {canonical_tensor_name(tensor.name, architecture) for tensor in reader.open_directory(directory)}
    return "cls_tanh" if "pooler.dense.weight" in names else "none"


def _open_tensors(reader, config, modules, directory) -> dict[str, StoredTensor]:
    """All stored tensors by canonical name."""
    tensors: dict[str, StoredTensor] = {}
    for tensor in reader.open_directory(modules.transformer if modules else directory):
        name = canonical_tensor_name(tensor.name, config.architecture)
        if name in tensors:
            raise ValueError(f"{tensor.file}: tensors {tensors[name].name} and {tensor.name} are the same parameter")
        tensors[name] = tensor
    if modules is not None and modules.dense is not None:
        for tensor in reader.open_directory(modules.dense):
            tensors[SENTENCE_DENSE + tensor.name] = tensor
    return tensors


def _fresh_pooler(config: EncoderConfig, tensors: Mapping[str, StoredTensor], key: jax.Array | None) -> dict[str, Any]:
    """Newly drawn pooler parameters by path, if there is a key and the checkpoint lacks them; else empty."""
    needed = [piece.tensor for layout in pooler_layouts(config).values() for piece in layout.pieces]
    if key is None or all(name in tensors for name in needed):
        return {}
    variables = Pooler(config).init(key, jnp.zeros((1, 1, config.hidden_size)), None)
    return {f"pooler/{path}": value for path, value in flatten_paths(nn.meta.unbox(variables["params"])).items()}


def _check_tensors(layouts, tensors, config, directory) -> None:
    check_tensors(
        layouts,
        tensors,
        unexpected_tensors(tensors, config),
        directory=directory,
        described=f"{config.architecture} model of {config.num_layers} layers, width {config.hidden_size}",
        hint=lambda name: "; pass key= to draw a new pooler" if name.startswith(("pooler.", SENTENCE_DENSE)) else "",
    )
