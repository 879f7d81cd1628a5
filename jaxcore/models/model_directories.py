"""Directories that hold a model: finding them, and writing them so that each is whole or not a model at all."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxcore.models.checkpoint_files import WEIGHTS, WEIGHTS_INDEX
from jaxcore.models.sentence_transformers_layout import MODULES

GENERATION_CONFIG = "generation_config.json"
"""Of decoders; beside defaults of sampling it has the tokens that end texts, which precede those of config.json."""


def _owned(directory: pathlib.Path) -> tuple[pathlib.Path, ...]:
    return (directory / "config.json", directory / MODULES, directory / WEIGHTS_INDEX)


def check_vacant(directory: pathlib.Path, *, overwrite: bool) -> None:
    """Raise ValueError if a model is in `directory` already, unless it may be replaced."""
    present = [file for file in (*_owned(directory), directory / WEIGHTS) if file.exists()]
    if present and not overwrite:
        raise ValueError(f"{present[0]} exists: choose another directory, or pass overwrite=True")


def clear_directory(directory: pathlib.Path) -> None:
    """Make `directory`; remove the files without which a half-written model passes for neither the old nor the new."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in (*_owned(directory), *directory.glob("model-*-of-*.safetensors")):
        file.unlink(missing_ok=True)


def resolve_directory(path_or_id: str | os.PathLike[str], revision: str | None) -> pathlib.Path:
    """The local directory of a model, downloaded first if it is a hub id."""
    directory = pathlib.Path(path_or_id).expanduser()
    if directory.is_dir():
        return directory
    name = os.fspath(path_or_id)
    if directory.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ValueError(f"{name}: no such directory (nor is it a hub id, which looks like 'owner/name')")
    import huggingface_hub  # imported late: only downloads need it

    wanted = ["config.json", GENERATION_CONFIG, "modules.json", "*/config.json", "*.safetensors", WEIGHTS_INDEX]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no repository, no permission
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name}: no such directory here, and it could not be fetched from the HuggingFace hub "
            f"({reason}); check the name and the network, or pass the path of a downloaded copy"
        ) from error


def checked_overrides(config: type, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """`config_overrides` as a dictionary. Raises ValueError for a name that is no field of the config class."""
    known = getattr(config, "__dataclass_fields__", {})
    if unknown := sorted(set(overrides or {}) - set(known)):
        raise ValueError(f"config_overrides: unknown field {unknown[0]!r}, expected one of {', '.join(known)}")
    return dict(overrides or {})


def write_weights(directory: pathlib.Path, tensors: Mapping[str, np.ndarray], *, max_shard_bytes: int) -> None:
    """`model.safetensors`, or several files with an index where one would exceed `max_shard_bytes`.

    Tensors keep their order; one that exceeds the limit by itself has a file of its own.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_tensors(directory / WEIGHTS, shards[0])
        return
    (directory / WEIGHTS).unlink(missing_ok=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(directory / WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tensors(file: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file, under its name only when complete."""
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers insists on this mark
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: pathlib.Path, contents: Any) -> None:
    """One JSON file, under its name only when complete."""
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
