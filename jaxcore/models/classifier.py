"""Sequence classifiers on the transformer encoder, and reading and writing them as transformers does."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from jaxcore.models.affine import Linear
from jaxcore.models.checkpoint_files import WEIGHTS, StoredTensor, TensorReader, check_floating, read_json
from jaxcore.models.class_labels import checked_labels, stored_labels
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import Encoder
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.huggingface_layout import (
    CLASSIFIER_POOLERS,
    canonical_tensor_name,
    classifier_dropout,
    classifier_layouts,
    classifier_to_huggingface,
    parameter_layouts,
)
from jaxcore.models.model_directories import (
    check_vacant,
    clear_directory,
    resolve_directory,
    write_json,
    write_tensors,
)
from jaxcore.models.parameter_layout import ParameterLayout
from jaxcore.models.pretrained import load_pretrained, read_config
from jaxcore.models.stored_parameters import (
    Shardings,
    flatten_paths,
    nest_paths,
    read_parameter,
    sharding_of,
    stored_tensors,
)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An encoder and its head; the defaults are BERT-base with two classes."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    """Its architecture decides the head; the pooler must be "cls_tanh" for BERT and "none" for the others."""
    num_classes: int = 2
    """Number of logits, C."""
    head_dropout: float = 0.1
    """Dropout on what the head reads (RoBERTa: before and after its dense layer), in training."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {self.num_classes}")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout must be in [0, 1), got {self.head_dropout}")
        pooler = CLASSIFIER_POOLERS[self.encoder.architecture]
        if self.encoder.pooler != pooler:
            raise ValueError(
                f"a {self.encoder.architecture} classifier reads pooler={pooler!r}, got {self.encoder.pooler!r}: set it"
            )


@flax.struct.dataclass
class ClassifierOutput:
    """Class scores (float32), and the encoder's vector per token (of the first one, if its config says so)."""

    logits: Float[Array, "batch classes"]
    last_hidden_state: Float[Array, "batch time hidden"]


class EncoderClassifier(nn.Module):
    """The encoder and the head that transformers' `...ForSequenceClassification` puts on the first token h_0.

        BERT         W drop(tanh(P h_0 + p)) + b                  (P, p: the encoder's own pooler)
        RoBERTa      W drop(tanh(D drop(h_0) + d)) + b
        DistilBERT   W drop(relu(D h_0 + d)) + b

    Named activations: those of the `Encoder`; `pooled` (batch, hidden), what W multiplies, whatever the family; and
    `logits` (batch, classes). Parameters: `encoder`, `dense` (absent for BERT), `output`.
    """

    config: ClassifierConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        attention_mask: Int[Array, "batch time"] | None = None,
        token_type_ids: Int[Array, "batch time"] | None = None,
        position_ids: Int[Array, "batch time"] | None = None,
        *,
        deterministic: bool = True,
    ) -> ClassifierOutput:
        """Classify token ids. Arguments and errors as of `Encoder`; the first token must be [CLS] or <s>."""
        config = self.config.encoder
        output = Encoder(config, name="encoder")(
            input_ids, attention_mask, token_type_ids, position_ids, deterministic=deterministic
        )
        hidden: Any = output.last_hidden_state
        features: Any = output.pooled
        if config.architecture != "bert":
            features = hidden[:, 0]
            if config.architecture == "roberta":
                features = self._drop(features, deterministic)
            features = self._linear(config.hidden_size, "dense", config.dtype)(features)
            features = jnp.tanh(features) if config.architecture == "roberta" else jax.nn.relu(features)
            features = checkpoint_name(features, "pooled")
        features = self._drop(features, deterministic)
        logits = self._linear(self.config.num_classes, "output", jnp.promote_types(config.dtype, jnp.float32))(features)
        return ClassifierOutput(checkpoint_name(logits, "logits"), hidden)

    def _linear(self, features: int, name: str, dtype: Any) -> Linear:
        init = nn.initializers.normal(self.config.encoder.initializer_range)
        return Linear(features, ("embed", None), dtype, init, name=name)

    def _drop(self, x: Array, deterministic: bool) -> Array:
        if deterministic or self.config.head_dropout == 0:
            return x
        return dropout(x, rate=self.config.head_dropout, key=self.make_rng("dropout"))


def load_classifier(
    path_or_id: str | os.PathLike[str],
    *,
    config_overrides: Mapping[str, Any] | None = None,
    sharding: Shardings | None = None,
    dtype: DTypeLike = "float32",
    revision: str | None = None,
) -> tuple[EncoderClassifier, dict[str, Any], tuple[str, ...]]:
    """Build the classifier that a HuggingFace directory describes and read its weights and labels.

    ``model, params, labels = load_classifier(...)``; ``model.apply({"params": params}, ids, mask).logits[:, c]`` is the
    score of ``labels[c]``. Weights are read as `load_pretrained` reads them.

    Args:
        path_or_id: a directory that a BERT, RoBERTa (XLM-R, CamemBERT) or DistilBERT `ForSequenceClassification` model
            was saved in, or a hub id.
        config_overrides: `EncoderConfig` fields to change, such as `{"attention_implementation": "explicit"}`.
        sharding, dtype, revision: as of `load_pretrained`; paths begin with "encoder/", "dense/" or "output/".

    Returns:
        The model, its parameters, and one label per class, from `id2label` ("LABEL_0", ... where it is silent).

    Raises:
        ValueError: as `load_pretrained`; a model with another task's head or none; labels that do not fit the head.
    """
    directory = resolve_directory(path_or_id, revision)
    settings = read_json(directory / "config.json")
    _check_task(directory, settings)
    if "pooler" in (config_overrides or {}):
        raise ValueError("config_overrides: a classifier's pooler is part of its head and cannot be changed")
    chosen = read_config(directory, config_overrides={**(config_overrides or {}), "pooler": "none"})
    overrides = {**(config_overrides or {}), "pooler": CLASSIFIER_POOLERS[chosen.architecture]}
    with TensorReader() as reader:
        tensors = {canonical_tensor_name(t.name, chosen.architecture): t for t in reader.open_directory(directory)}
        config = _read_classifier_config(directory, settings, dataclasses.replace(chosen, **overrides), tensors)
        layouts = classifier_layouts(config.encoder, config.num_classes)
        _check_head(directory, layouts, tensors)
        place = sharding_of(sharding, _all_layouts(config), EncoderClassifier(config))
        leaves = {
            path: read_parameter(reader, layout, tensors, np.dtype(dtype), place(path))
            for path, layout in layouts.items()
        }
    _, encoder_params = load_pretrained(
        directory, config_overrides=overrides, sharding=lambda path: place(f"encoder/{path}"), dtype=dtype
    )
    labels = stored_labels(directory, settings, config.num_classes)
    return EncoderClassifier(config), {"encoder": encoder_params, **nest_paths(leaves)}, labels


def save_classifier(
    path: str | os.PathLike[str],
    model_or_config: EncoderClassifier | ClassifierConfig,
    params: Mapping[str, Any],
    labels: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a directory that `load_classifier` and transformers' `AutoModelForSequenceClassification` load.

    Args:
        path: directory, made if missing; other files in it (a tokenizer) stay.
        model_or_config: the classifier or its config.
        params: the "params" collection, boxed or not; kept in its dtype.
        labels: one distinct name per class; None = "LABEL_0", "LABEL_1", ...
        overwrite: replace a model that is already there.

    Raises:
        ValueError: a model is already there, labels that do not fit, or `params` that do not belong to the config.
    """
    config = model_or_config.config if isinstance(model_or_config, EncoderClassifier) else model_or_config
    names = checked_labels(labels, config.num_classes)
    directory = pathlib.Path(path)
    check_vacant(directory, overwrite=overwrite)
    tensors = stored_tensors(nn.meta.unbox(params), _all_layouts(config))
    clear_directory(directory)
    encoder = {
        piece.tensor for layout in parameter_layouts(config.encoder).values() for piece in layout.pieces
    }  # transformers stores these under the family's name, and the head's as they are
    prefix = f"{config.encoder.architecture}."
    write_tensors(directory / WEIGHTS, {prefix * (name in encoder) + name: value for name, value in tensors.items()})
    stored_dtype = str(next(iter(tensors.values())).dtype)
    settings = classifier_to_huggingface(
        config.encoder, labels=names, head_dropout=config.head_dropout, dtype=stored_dtype
    )
    write_json(directory / "config.json", settings)


def with_encoder(params: Mapping[str, Any], encoder_params: Mapping[str, Any]) -> dict[str, Any]:
    """A classifier's parameters on an encoder trained before: ``with_encoder(init params, load_pretrained(...)[1])``.

    Raises:
        ValueError: an encoder of another shape, or with another pooler (names the parameter).
    """
    unboxed = nn.meta.unbox(dict(params))
    wanted, given = (flatten_paths(nn.meta.unbox(tree)) for tree in (unboxed["encoder"], encoder_params))
    for path in sorted(set(wanted) | set(given)):
        shapes = [tree[path].shape if path in tree else "absent" for tree in (wanted, given)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"encoder parameter {path} is {shapes[1]}, expected {shapes[0]}: load it with this config")
    return {**unboxed, "encoder": nest_paths(given)}


def _all_layouts(config: ClassifierConfig) -> dict[str, ParameterLayout]:
    encoder = {f"encoder/{path}": layout for path, layout in parameter_layouts(config.encoder).items()}
    return encoder | classifier_layouts(config.encoder, config.num_classes)


def _check_task(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """A token classifier has tensors of the same names: only `architectures` tells them apart."""
    for name in settings.get("architectures") or ():
        if not name.endswith("ForSequenceClassification"):
            raise ValueError(
                f"{directory / 'config.json'}: architectures has {name}, expected one of "
                "...ForSequenceClassification; load_pretrained reads the encoder of other models"
            )


def _read_classifier_config(
    directory: pathlib.Path, settings: Mapping[str, Any], encoder: EncoderConfig, tensors: Mapping[str, StoredTensor]
) -> ClassifierConfig:
    name = classifier_layouts(encoder, 1)["output/bias"].pieces[0].tensor
    if name not in tensors or len(tensors[name].shape) != 1:
        raise ValueError(
            f"{directory}: no classification head (missing tensor {name}): fine-tune one, "
            "or read the encoder alone with load_pretrained"
        )
    return ClassifierConfig(encoder, tensors[name].shape[0], classifier_dropout(settings, encoder))


def _check_head(
    directory: pathlib.Path, layouts: Mapping[str, ParameterLayout], tensors: Mapping[str, StoredTensor]
) -> None:
    for layout in layouts.values():
        for piece in layout.pieces:
            expected = piece.tensor_shape(layout.shape)
            if piece.tensor not in tensors:
                raise ValueError(f"{directory}: missing tensor {piece.tensor} of shape {expected} of the head")
            stored = tensors[piece.tensor]
            if stored.shape != expected:
                raise ValueError(f"{stored.file}: tensor {stored.name} has shape {stored.shape}, expected {expected}")
            check_floating(stored)
