"""Which tokens make a text's embedding similar to a target: integrated gradients of a similarity, per token."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxcore.attribution.integrated_gradients import completeness_error, integrated_gradients
from jaxcore.losses import unit_vectors
from jaxcore.models import BagOfWordsEncoder, Encoder, count_tokens
from jaxcore.transforms import intervene


@struct.dataclass
class TokenAttributions:
    """Attributions [batch, time] of each token (0 at padding), and the completeness error [batch] of each text."""

    attributions: Float[Array, "batch time"]
    completeness_error: Float[Array, " batch"]


def attribute_similarity(
    model: Encoder | BagOfWordsEncoder,
    params: Any,
    input_ids: Int[Array, "batch time"],
    attention_mask: Int[Array, "batch time"],
    target: Float[Array, "batch dim"],
    *,
    num_steps: int = 32,
    chunk_size: int = 1,
) -> TokenAttributions:
    """Integrated gradients of ``<u, target>`` with ``u`` the text's unit embedding, summed per token.

    The target decides the question. The centroid of an author's texts: what makes this text similar to that author?
    The *difference* of two centroids: why this author rather than the other? (Both scores are linear in the target,
    so the contrast's attributions are the difference of the two attributions.)

    What is varied is the model's first activation, by `jaxcore.transforms.intervene`: an encoder's token embeddings,
    from those of the average word; a bag of words' features ``sqrt(counts)``, from the empty text, each word's share
    then divided over its occurrences.

    Args:
        target: one vector per text, of the embedding's width.
        num_steps, chunk_size: as in `integrated_gradients`.

    Returns:
        `TokenAttributions`; rows of `attributions` plus the error add up to score(text) - score(baseline).
    """
    if target.ndim != 2 or target.shape[0] != input_ids.shape[0]:
        raise ValueError(f"target must be [{input_ids.shape[0]}, dim], one per text: got {target.shape}")

    def score_with(name: str) -> Callable[[Array], Array]:
        def score(activation: Array) -> Array:
            run = intervene(lambda: model.apply({"params": params}, input_ids, attention_mask), {name: activation})
            return jnp.sum(unit_vectors(run().pooled) * target, axis=-1)

        return score

    arguments = (params, input_ids, attention_mask, score_with, num_steps, chunk_size)
    if isinstance(model, BagOfWordsEncoder):
        return _of_bag_of_words(model, *arguments)
    return _of_encoder(model, *arguments)


def _of_encoder(
    model: Encoder, params: Any, ids: Array, mask: Array, score_with: Any, steps: int, chunk: int
) -> TokenAttributions:
    words = params["embeddings"]["word"].astype(model.config.dtype)
    score, inputs, baseline = score_with("token_embeddings"), words[ids], jnp.mean(words, axis=0)
    values = integrated_gradients(score, inputs, baseline=baseline, num_steps=steps, chunk_size=chunk)
    error = completeness_error(score, inputs, values, baseline=baseline)
    return TokenAttributions(jnp.sum(values, axis=-1) * mask, error)


def _of_bag_of_words(
    model: BagOfWordsEncoder, params: Any, ids: Array, mask: Array, score_with: Any, steps: int, chunk: int
) -> TokenAttributions:
    counts = count_tokens(ids, mask.astype(bool), vocab_size=model.config.vocab_size)
    score, inputs = score_with("token_features"), jnp.sqrt(counts)
    values = integrated_gradients(score, inputs, num_steps=steps, chunk_size=chunk)
    error = completeness_error(score, inputs, values)
    per_occurrence = jnp.take_along_axis(values / jnp.maximum(counts, 1), ids, axis=1)
    return TokenAttributions(per_occurrence * mask, error)
