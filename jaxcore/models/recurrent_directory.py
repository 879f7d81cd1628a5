"""`RecurrentClassifier`s in directories of their own: config.json, model.safetensors, and the tokenizer beside them.

    config.json         architectures ["RecurrentClassifier"], the fields of `RecurrentConfig`, id2label, label2id
    model.safetensors   the parameters by their paths: word, layer_0.kernel, attention.vector, output.bias, ...

transformers has no such model; its tokenizers (tokenizer.json) lie beside it as beside any other.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from jaxcore.distributed import tree_shardings
from jaxcore.models.checkpoint_files import WEIGHTS, TensorReader, read_json
from jaxcore.models.class_labels import checked_labels, stored_labels
from jaxcore.models.model_directories import (
    check_vacant,
    checked_overrides,
    clear_directory,
    write_json,
    write_tensors,
)
from jaxcore.models.parameter_layout import ParameterLayout, whole
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig
from jaxcore.models.stored_parameters import (
    Shardings,
    check_tensors,
    flatten_paths,
    nest_paths,
    read_parameter,
    sharding_of,
    stored_tensors,
)

ARCHITECTURE = RecurrentClassifier.__name__


def holds_recurrent(path: str | os.PathLike[str]) -> bool:
    """Whether this is a local directory whose config.json describes a `RecurrentClassifier`."""
    file = pathlib.Path(path).expanduser() / "config.json"
    return file.is_file() and _describes_recurrent(read_json(file))


def _describes_recurrent(settings: Any) -> bool:
    # No model_type: transformers, which reads this file beside a tokenizer, would warn of one that it does not know.
    return isinstance(settings, dict) and settings.get("architectures") == [ARCHITECTURE]


def load_recurrent(
    path: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
) -> tuple[RecurrentClassifier, dict[str, Any], tuple[str, ...]]:
    """The classifier in a directory that `save_recurrent` wrote: model, parameters, labels.

    Args:
        path: the directory.
        config_overrides: `RecurrentConfig` fields to change, such as ``{"dtype": "bfloat16"}``.
        sharding, dtype: of the parameters, as of `load_pretrained`.

    Raises:
        ValueError: no such directory or another model's, a field that is missing or wrong, a tensor that is missing,
            unexpected, of another shape or not floating point, labels that do not fit, an unknown override.
    """
    directory = pathlib.Path(path).expanduser()
    overrides = checked_overrides(RecurrentConfig, config_overrides)
    settings = read_json(directory / "config.json")
    config = RecurrentConfig(**{**_stored_fields(directory, settings), **overrides})
    model, boxed = RecurrentClassifier(config), _abstract_params(config)
    layouts = _layouts(boxed)
    with TensorReader() as reader:
        tensors = {tensor.name: tensor for tensor in reader.open_directory(directory)}
        known = {piece.tensor for layout in layouts.values() for piece in layout.pieces}
        described = (
            f"{config.inputs} recurrent classifier of {config.num_layers} layers, width {config.hidden_size}, with "
            f"{config.attention} attention"
        )
        check_tensors(
            layouts, tensors, [name for name in tensors if name not in known], directory=directory, described=described
        )
        place = sharding_of(tree_shardings(boxed, sharding) if isinstance(sharding, Mesh) else sharding, layouts, model)
        leaves = {
            path: read_parameter(reader, layout, tensors, np.dtype(dtype), place(path))
            for path, layout in layouts.items()
        }
    return model, nest_paths(leaves), stored_labels(directory, settings, config.num_classes)


def save_recurrent(
    path: str | os.PathLike[str],
    model_or_config: RecurrentClassifier | RecurrentConfig,
    params: Mapping[str, Any],
    labels: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a directory that `load_recurrent` and ``jaxcore attribute --model`` read.

    Args:
        path: directory, made if missing; other files in it (a tokenizer) stay.
        model_or_config: the classifier or its config.
        params: the "params" collection, boxed or not; kept in its dtype.
        labels: one distinct name per class; None = "LABEL_0", "LABEL_1", ...
        overwrite: replace a model that is already there.

    Raises:
        ValueError: a model is already there, labels that do not fit, or `params` that do not belong to the config.
    """
    config = model_or_config.config if isinstance(model_or_config, RecurrentClassifier) else model_or_config
    names, directory = checked_labels(labels, config.num_classes), pathlib.Path(path)
    check_vacant(directory, overwrite=overwrite)
    tensors = stored_tensors(nn.meta.unbox(params), _layouts(_abstract_params(config)))
    clear_directory(directory)
    write_tensors(directory / WEIGHTS, tensors)
    settings = {
        "architectures": [ARCHITECTURE],
        **dataclasses.asdict(config),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    write_json(directory / "config.json", settings)


def _abstract_params(config: RecurrentConfig) -> Any:
    """Shapes of the parameters, in boxes with their logical axes."""
    text = jnp.zeros((1, 1), jnp.int32)
    second = (text, text) if config.inputs == "pair" else ()
    return jax.eval_shape(RecurrentClassifier(config).init, jax.random.key(0), text, text, *second)["params"]


def _layouts(boxed: Any) -> dict[str, ParameterLayout]:
    shapes = {path: leaf.shape for path, leaf in flatten_paths(nn.meta.unbox(boxed)).items()}
    return {path: whole(path.replace("/", "."), shape) for path, shape in shapes.items()}


def _stored_fields(directory: pathlib.Path, settings: Any) -> dict[str, Any]:
    """The configuration's fields; ValueError for another model's file, or a field missing or of another type."""
    file = directory / "config.json"
    if not _describes_recurrent(settings):
        raise ValueError(
            f"{file}: architectures is not [{ARCHITECTURE!r}] (load_classifier reads transformers' models)"
        )
    found = {}
    for field in dataclasses.fields(RecurrentConfig):
        if field.name not in settings:
            raise ValueError(f"{file}: no {field.name}, which a {ARCHITECTURE} has")
        value, kind = settings[field.name], type(field.default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{file}: {field.name} must be a {kind.__name__}, got {value!r}")
        found[field.name] = value
    return found
