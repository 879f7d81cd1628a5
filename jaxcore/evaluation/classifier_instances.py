"""Instances of a classifier as attribution sees them: embeddings, the function that classifies them, and baselines.

For the two kinds of model and their layouts (`jaxcore.data.classification_task`): a `RecurrentClassifier` reads each
text of a pair by itself, an `EncoderClassifier` one row of both.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.data.classification_task import PAD, Layout
from jaxcore.models.classifier import EncoderClassifier
from jaxcore.models.recurrent import RecurrentClassifier
from jaxcore.transforms import capture, intervene

Model: TypeAlias = RecurrentClassifier | EncoderClassifier


def layout_of(model: Model) -> Layout:
    """The layout of the rows that a model reads."""
    return "sequence" if isinstance(model, EncoderClassifier) else "texts"


def apply_model(model: Model, params: Any, batch: Mapping[str, Array], **options: Any) -> Any:
    """The model's output for a batch of rows."""
    if isinstance(model, EncoderClassifier):
        return model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], **options)
    sides = [side for side in ("first", "second") if f"{side}_ids" in batch]
    arrays = [batch[f"{side}_{kind}"] for side in sides for kind in ("ids", "mask")]
    return model.apply({"params": params}, *arrays, **options)


class Instances(NamedTuple):
    """A batch of instances as attribution sees it; every field but the first and the key is a tuple, one per text.

    Attributes:
        predict: embeddings -> logits; the original masks stay, whatever the embeddings.
        embeddings: [batch, time, dim]: word vectors of the BiLSTM; the transformer's whole embedding layer, position
            and normalisation included.
        masks: True at tokens, special ones included.
        baseline: [1, time, dim], the embedding of padding at every position.
        baselines: [baselines, time, dim], training texts.
        key: of random numbers; every method must have a stream of its own (`jaxcore.training.random_streams`).
    """

    predict: Callable[[Any], Float[Array, "batch classes"]]
    embeddings: tuple[Float[Array, "batch time dim"], ...]
    masks: tuple[Bool[Array, "batch time"], ...]
    baseline: tuple[Float[Array, "1 time dim"], ...]
    baselines: tuple[Float[Array, "baselines time dim"], ...]
    key: Array


class Given(NamedTuple):
    """What explanation programs take beside the rows: parameters, the rows of Deep-SHAP's baselines, and the seed."""

    params: Any
    reference: Mapping[str, Any]
    seed: Any


def instances_of(model: Model, given: Given, batch: Mapping[str, Array]) -> Instances:
    """The instances of a batch; ``number`` of its first row decides what random methods draw."""
    params, reference = given.params, given.reference
    key = jax.random.fold_in(jax.random.key(given.seed), batch["number"][0])
    if isinstance(model, RecurrentClassifier):
        sides = [side for side in ("first", "second") if f"{side}_ids" in batch]
        masks = tuple(batch[f"{side}_mask"] for side in sides)

        def embed(ids: Array) -> Array:
            return model.apply({"params": params}, ids, method="embed")  # type: ignore[return-value]

        def classify(embeddings: Any) -> Array:
            arrays = itertools.chain.from_iterable(zip(embeddings, masks, strict=True))
            return model.apply({"params": params}, *arrays, method="classify").logits  # type: ignore[union-attr]

        ids = [batch[f"{side}_ids"] for side in sides]
        return Instances(
            classify,
            tuple(map(embed, ids)),
            tuple(mask != 0 for mask in masks),
            tuple(embed(jnp.full_like(array[:1], PAD)) for array in ids),
            tuple(embed(reference[f"{side}_ids"]) for side in sides),
            key,
        )

    def embedding_layer(ids: Array) -> Any:
        return capture(lambda: model.apply({"params": params}, ids), "embeddings")()[1]["embeddings"]

    def predict(embeddings: Any) -> Array:
        return intervene(lambda: apply_model(model, params, batch), {"embeddings": embeddings[0]})().logits

    padding = jnp.full_like(batch["input_ids"][:1], model.config.encoder.pad_token_id)
    return Instances(
        predict,
        (embedding_layer(batch["input_ids"]),),
        (batch["attention_mask"] != 0,),
        (embedding_layer(padding),),
        (embedding_layer(reference["input_ids"]),),
        key,
    )
