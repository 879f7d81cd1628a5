"""Published weights: reading HuggingFace directories into (sharded) parameters, and writing them back."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike
from safetensors.numpy import save_file

from jaxcore.models import sentence_transformers_layout as sentence_layout
from jaxcore.models.checkpoint_files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    StoredTensor,
    TensorReader,
    check_floating,
    read_json,
)
from jaxcore.models.encoder import Encoder, Pooler
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.huggingface_layout import (
    SENTENCE_DENSE,
    ParameterLayout,
    canonical_tensor_name,
    config_to_huggingface,
    fields_from_huggingface,
    parameter_layouts,
    pooler_layouts,
    unexpected_tensors,
)

Shardings = Any
"""One Sharding for all, a function from path ("layers/mlp_in/kernel") to Sharding, or a tree of them."""


def load_pretrained(
    path_or_id: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
    key: jax.Array | None = None,
    revision: str | None = None,
) -> tuple[Encoder, dict[str, Any]]:
    """Build the Encoder that a HuggingFace directory describes and read its weights.

    `model, params = load_pretrained(...)`, then `model.apply({"params": params}, input_ids, attention_mask)`.
    Weights are read slice by slice from memory-mapped files, each device's part by itself, so that host
    memory never holds more than one parameter beside the result.

    The pooler: as `config_overrides` says; else, for sentence-transformers directories, the masked mean (and
    linear layer) they describe; else "cls_tanh" where the file has pooler tensors and "none" where it has not
    (models trained without one). A pooler asked for but not stored is an error, unless `key` is given to draw
    it afresh.

    Args:
        path_or_id: a directory (BERT, RoBERTa, DistilBERT, MiniLM; with or without a task head, which is left
            out), or a hub id such as "AIDA-UPM/star", which is downloaded.
        config_overrides: `EncoderConfig` fields to change, such as `{"dtype": "bfloat16", "dropout": 0.0}`.
        sharding: where parameters go: one `jax.sharding.Sharding`, a function from the parameter's path to
            one, or a tree of them (see `read_config` for how to get it beforehand). None = the default
            device.
        dtype: dtype of the parameters; the compute dtype is `config_overrides["dtype"]`.
        key: draws the pooler's parameters where the checkpoint has none.
        revision: commit, tag or branch of the hub repository.

    Raises:
        ValueError: unknown architecture, missing or unexpected tensor, wrong shape, pickled weights, damaged
            files, unknown override, directory or hub id that cannot be found.
    """
    directory = resolve_directory(path_or_id, revision)
    with TensorReader() as reader:
        config, modules = _read_config(directory, reader, config_overrides)
        tensors = _open_tensors(reader, config, modules, directory)
        layouts = parameter_layouts(config)
        fresh = _fresh_pooler(config, tensors, key)
        stored = {path: layout for path, layout in layouts.items() if path not in fresh}
        _check_tensors(stored, tensors, config, directory)
        place = sharding_of(sharding, layouts)
        leaves = {
            path: read_parameter(reader, layout, tensors, np.dtype(dtype), place(path))
            for path, layout in stored.items()
        }
        for path, value in fresh.items():
            leaves[path] = jax.device_put(value.astype(dtype), place(path))
    return Encoder(config), nest_paths(leaves)


def read_config(
    path_or_id: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> EncoderConfig:
    """The config that `load_pretrained` would build, without reading weights.

    With it, shardings can be worked out first: `Encoder(config)`, `jax.eval_shape` of its `init`, the logical
    axis names of the boxes, a tree of shardings, and then `load_pretrained(..., sharding=tree)`. Raises as
    that does.
    """
    directory = resolve_directory(path_or_id, revision)
    with TensorReader() as reader:
        return _read_config(directory, reader, config_overrides)[0]


def save_pretrained(
    path: str | os.PathLike[str],
    model_or_config: Encoder | EncoderConfig,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write `config.json` and `model.safetensors` that `transformers.AutoModel.from_pretrained` loads.

    Mean poolers are written as sentence-transformers modules (`modules.json`, `1_Pooling`, `2_Dense`), which
    `load_pretrained` and sentence-transformers read back. DistilBERT has no pooler in transformers: ours is
    stored as an extra tensor that transformers reports and leaves out. Each file appears under its name only
    when complete, `config.json` last: a directory that has it is whole. Other files in the directory (a
    tokenizer) stay.

    Args:
        path: directory, made if missing.
        model_or_config: the Encoder or its config.
        params: the "params" collection, boxed or not, on any devices of this process; kept in its dtype.
        overwrite: replace a model that is already there.

    Raises:
        ValueError: a model is already there, or `params` does not belong to the config (names the parameter).
    """
    config = model_or_config.config if isinstance(model_or_config, Encoder) else model_or_config
    directory = pathlib.Path(path)
    check_vacant(directory, overwrite=overwrite)
    tensors = stored_tensors(nn.meta.unbox(params), parameter_layouts(config))
    dense = {name.removeprefix(SENTENCE_DENSE): tensors.pop(name) for name in list(tensors) if SENTENCE_DENSE in name}
    clear_directory(directory)
    write_tensors(directory / WEIGHTS, tensors)
    if dense:
        write_tensors(directory / sentence_layout.DENSE / WEIGHTS, dense)
    for name, contents in sentence_layout.module_files(config).items():
        write_json(directory / name, contents)
    stored_dtype = str(next(iter(tensors.values())).dtype)
    write_json(directory / "config.json", config_to_huggingface(config, dtype=stored_dtype))


def _owned(directory: pathlib.Path) -> tuple[pathlib.Path, ...]:
    return (directory / "config.json", directory / sentence_layout.MODULES, directory / WEIGHTS_INDEX)


def check_vacant(directory: pathlib.Path, *, overwrite: bool) -> None:
    """Raise ValueError if a model is in `directory` already, unless it may be replaced."""
    present = [file for file in (*_owned(directory), directory / WEIGHTS) if file.exists()]
    if present and not overwrite:
        raise ValueError(f"{present[0]} exists: choose another directory, or pass overwrite=True")


def clear_directory(directory: pathlib.Path) -> None:
    """Make `directory`; remove the files without which a half-written model passes for neither the old nor the new."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in _owned(directory):
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

    wanted = ["config.json", "modules.json", "*/config.json", "*.safetensors", WEIGHTS_INDEX]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no repository, no permission
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name}: no such directory here, and it could not be fetched from the HuggingFace hub "
            f"({reason}); check the name and the network, or pass the path of a downloaded copy"
        ) from error


def _read_config(
    directory: pathlib.Path, reader: TensorReader, overrides: Mapping[str, Any] | None
) -> tuple[EncoderConfig, sentence_layout.SentenceModules | None]:
    overrides = dict(overrides or {})
    known = EncoderConfig.__dataclass_fields__
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"config_overrides: unknown field {unknown[0]!r}, expected one of {', '.join(known)}")
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
    """Raise ValueError unless every expected tensor is stored, with its shape, and nothing else is."""
    expected = {
        piece.tensor: piece.tensor_shape(layout.shape) for layout in layouts.values() for piece in layout.pieces
    }
    described = f"{config.architecture} model of {config.num_layers} layers, width {config.hidden_size}"
    if missing := [name for name in expected if name not in tensors]:
        hint = "; pass key= to draw a new pooler" if missing[0].startswith(("pooler.", SENTENCE_DENSE)) else ""
        raise ValueError(
            f"{directory}: missing tensor {missing[0]} of shape {expected[missing[0]]} "
            f"({len(missing)} missing of the {len(expected)} that a {described} has: {_some(missing)}){hint}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{tensors[name].file}: tensor {tensors[name].name} has shape {tensors[name].shape}, "
                f"expected {shape} for a {described}"
            )
        check_floating(tensors[name])
    if extra := unexpected_tensors(tensors, config):
        raise ValueError(
            f"{tensors[extra[0]].file}: unexpected tensor {tensors[extra[0]].name} "
            f"({len(extra)} in all: {_some(extra)}); a {described} has {len(expected)} "
            f"tensors: {_some(list(expected))}"
        )


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def sharding_of(sharding: Shardings | None, layouts: Mapping[str, Any]) -> Callable[[str], Any]:
    """A function from parameter path to sharding (None = default device), whatever form the caller gave."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return lambda path: sharding
    if callable(sharding):
        return sharding
    by_path = flatten_paths(sharding)
    if wrong := sorted(set(layouts) ^ set(by_path)):
        raise ValueError(f"sharding must have the parameters' tree: {wrong[0]} is in only one of the two")
    return by_path.__getitem__


def read_parameter(reader: TensorReader, layout: ParameterLayout, tensors, dtype: np.dtype, sharding) -> jax.Array:
    """Assemble one parameter, each device's part straight from the file."""

    def read(index: Any) -> np.ndarray:
        bounds = [at.indices(size)[:2] for at, size in zip(index, layout.shape, strict=True)]
        part = np.empty([stop - start for start, stop in bounds], dtype)
        for piece in layout.pieces:
            inside = [
                not isinstance(at, int) or start <= at < stop
                for at, (start, stop) in zip(piece.place, bounds, strict=True)
            ]
            if all(inside):
                target = tuple(
                    at - start if isinstance(at, int) else at
                    for at, (start, _) in zip(piece.place, bounds, strict=True)
                )
                read_tensor = functools.partial(reader.read, tensors[piece.tensor])
                part[target] = piece.read(read_tensor, layout.shape, bounds)
        return part

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(layout.shape)))
    return jax.make_array_from_callback(layout.shape, sharding, read)


def stored_tensors(params: Mapping[str, Any], layouts: Mapping[str, ParameterLayout]) -> dict[str, np.ndarray]:
    """Parameters as stored tensors. ValueError, naming the parameter, when they do not fit the layouts."""
    leaves = flatten_paths(params)
    if wrong := sorted(set(layouts) ^ set(leaves)):
        where = "missing from" if wrong[0] in layouts else "unexpected in"
        raise ValueError(f"{wrong[0]} is {where} params (pass variables['params'] of the config's own model)")
    tensors = {}
    for path, layout in layouts.items():
        leaf = leaves[path]
        if leaf.shape != layout.shape:
            raise ValueError(f"parameter {path} has shape {leaf.shape}, expected {layout.shape}")
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"parameter {path} is spread over processes: gather it (replicate) before saving")
        values = np.asarray(leaf)
        for piece in layout.pieces:
            tensors[piece.tensor] = piece.to_tensor(values)
    return tensors


def write_tensors(file: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers insists on this mark
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: pathlib.Path, contents: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Leaves by path, "layers/mlp_in/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionary that `flatten_paths` flattens."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
