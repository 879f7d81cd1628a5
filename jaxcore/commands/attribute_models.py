"""What ``jaxcore attribute`` explains: a classifier (transformer or recurrent), or an encoder beside another text."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from jaxcore.commands.attribute_options import AttributeOptions
from jaxcore.commands.text_runs import load_model_tokenizer
from jaxcore.evaluation.text_embedding import Pooling, embed_texts
from jaxcore.evaluation.text_model import TextModel, check_pairs, text_limit
from jaxcore.models import load_pretrained
from jaxcore.models.classifier import load_classifier
from jaxcore.models.recurrent_directory import holds_recurrent, load_recurrent


def load_text_model(options: AttributeOptions, mesh: Mesh) -> TextModel:
    """The model on the mesh, with explicit attention: attention methods read its weights.

    Raises:
        ValueError: a model that is no classifier (with --similar-to: no encoder), or does not read what is given; a
            tokenizer that is missing; --similar-to with more tokens than the model reads.
    """
    overrides: dict[str, Any] = {"dtype": options.dtype, "attention_implementation": "explicit"}
    labels: tuple[str, ...] = ()
    model: Any
    if holds_recurrent(options.model):
        if options.similar_to:
            raise ValueError(
                f"--similar-to is for encoders: {options.model} is a recurrent classifier, without embeddings"
            )
        model, params, labels = load_recurrent(options.model, config_overrides={"dtype": options.dtype}, sharding=mesh)
    elif options.similar_to:
        model, params = load_pretrained(options.model, config_overrides=overrides, sharding=mesh)
    else:
        model, params, labels = _load_classifier(options, overrides, mesh)
    tokenizer = load_model_tokenizer(options.tokenizer or options.model)
    explained = TextModel(model, params, tokenizer, labels)
    check_pairs(explained, are_pairs=options.are_pairs)
    if not options.similar_to:
        return explained
    tokens = len(tokenizer(options.similar_to, verbose=False)["input_ids"])
    if tokens > text_limit(explained) and not options.truncate:
        raise ValueError(
            f"--similar-to has {tokens} tokens, but the model reads {text_limit(explained)}: shorten it, or give "
            "--truncate"
        )
    pooling: Pooling = "mean" if model.config.pooler == "none" else "model"
    reference = embed_texts(model, params, tokenizer, [options.similar_to], pooling=pooling, mesh=mesh)[0]
    return dataclasses.replace(explained, reference=reference)


def _load_classifier(
    options: AttributeOptions, overrides: dict[str, Any], mesh: Mesh
) -> tuple[Any, Any, tuple[str, ...]]:
    try:
        return load_classifier(options.model, config_overrides=overrides, sharding=mesh)
    except ValueError as error:
        if "no classification head" in str(error) or "ForSequenceClassification" in str(error):
            raise ValueError(
                f"{options.model} is no sequence classifier ({str(error).split(';')[0]}); to explain a similarity "
                "of its embeddings give --similar-to TEXT"
            ) from error
        raise
