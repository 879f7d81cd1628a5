"""The library's methods reduced to one number per token, where that takes more than a sum over dimensions.

Each takes a `TokenTask` and returns [batch, time]; `jaxcore.attribution.method_names` has them by name. All are
independent of how far a text is padded.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.attribution.ablation import leave_one_span_out
from jaxcore.attribution.attention import attention_weights, raw_attention
from jaxcore.attribution.discretised_path import discretised_integrated_gradients
from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.gradients import saliency
from jaxcore.attribution.guided_path import guided_integrated_gradients
from jaxcore.attribution.interactions import value_zeroing
from jaxcore.attribution.layers import layer_conductance
from jaxcore.attribution.token_aggregation import mean_over_dims, sum_over_dims
from jaxcore.attribution.token_task import TokenTask
from jaxcore.transforms import activation_names, capture

NOISE_SHARE = 0.15
"""Noise of SmoothGrad and VarGrad over the range of a text's embeddings; Smilkov et al. 2017 take 0.1 to 0.2."""

SPAN_WIDTH = 3
"""Tokens left out together by leave-one-span-out: a phrase."""

RESIDUAL_STREAMS = ("layer_output", "text_states", "hidden_states")
"""Names of what a model hands on between layers, through which everything flows: the first that occurs is taken."""

_EVERY_COORDINATE_ALONE = 1e-12  # a share of the features that is less than one of them


def noise_scale(task: TokenTask) -> Float[Array, "batch 1 1"]:
    """Standard deviation of SmoothGrad's and VarGrad's noise: a share of the range of a text's embeddings."""
    inside = task.mask[:, :, None]
    highest = jnp.max(task.embeddings, axis=(1, 2), keepdims=True, where=inside, initial=-jnp.inf)
    lowest = jnp.min(task.embeddings, axis=(1, 2), keepdims=True, where=inside, initial=jnp.inf)
    return NOISE_SHARE * jnp.maximum(highest - lowest, 0)


def under_noise(combinator: Callable[..., Any], task: TokenTask) -> Float[Array, "batch time dim"]:
    """The gradient through a combinator over noise."""
    method = combinator(saliency, noise_scale=noise_scale(task), **task.samples(25))
    return method(task.score, task.embeddings, task.key)


def by_token(method: Callable[..., Array], task: TokenTask, *key: Array, **options: Any) -> Float[Array, "batch time"]:
    """A method that replaces whole tokens: one feature per token, whose value all its coordinates carry."""
    groups = token_groups(task.mask)
    values = method(task.score, task.embeddings, *key, baseline=task.baseline, groups=groups, **options)
    return mean_over_dims(values)


def by_span(task: TokenTask, width: int = SPAN_WIDTH) -> Float[Array, "batch time"]:
    """A token's mean fall of the score over the `width` spans of `width` tokens that hold it.

    Spans begin before the text and end behind it, cut at its ends, so that every token lies in equally many.
    """
    groups = token_groups(task.mask)
    starts = jnp.arange(1 - width, groups.count)
    spans = jnp.stack([jnp.maximum(starts, 0), jnp.minimum(starts + width, groups.count)], axis=1)
    falls = leave_one_span_out(task.score, task.embeddings, spans, groups=groups, baseline=task.baseline, **task.chunks)
    # Span number f + k begins at token f + k + 1 - width: those that hold token f are f, ..., f + width - 1.
    of_feature = jnp.mean(jnp.stack([falls[:, k : k + groups.count] for k in range(width)]), axis=0)
    number = jnp.maximum(jnp.cumsum(task.mask, axis=1) - 1, 0)
    return jnp.take_along_axis(of_feature, number, axis=1)


def guided(task: TokenTask) -> Float[Array, "batch time"]:
    """Guided integrated gradients, one coordinate after the other; padding stays where it is."""
    baseline = jnp.broadcast_to(task.baseline, task.embeddings.shape).astype(task.embeddings.dtype)
    start = jnp.where(task.mask[:, :, None], baseline, task.embeddings)
    # A group of coordinates is a share of all of them, those of padding too: only groups of one do not change with it.
    return sum_over_dims(
        guided_integrated_gradients(
            task.score,
            task.embeddings,
            baseline=start,
            num_steps=task.num_steps or 50,
            fraction=_EVERY_COORDINATE_ALONE,
        )
    )


def along_words(task: TokenTask) -> Float[Array, "batch time"]:
    """Discretised integrated gradients; as many anchors as steps (30), fewer where the vocabulary is small."""
    if task.vocabulary is None:
        raise ValueError(
            "discretised_integrated_gradients goes along the model's word vectors: give `vocabulary` [words, dim]"
        )
    words = task.vocabulary
    anchors = task.num_steps or min(30, max(len(words) - 2, 1))
    values = discretised_integrated_gradients(
        task.score,
        task.embeddings,
        vocabulary=words,
        baseline=task.baseline,
        num_anchors=anchors,
        num_neighbours=min(500, len(words)),
        **task.chunks,
    )
    return sum_over_dims(values)


def conductance(task: TokenTask) -> Float[Array, "batch time"]:
    """How much of the score's change flows through a token's vector in the residual stream, mean over layers."""
    names = activation_names(task.score, task.embeddings)
    name = next((name for name in RESIDUAL_STREAMS if name in names), None)
    if name is None:
        listed = ", ".join(map(repr, names)) or "none"
        raise ValueError(
            f"layer_conductance needs one of the activations {', '.join(map(repr, RESIDUAL_STREAMS))}: names that "
            f"occur are {listed}"
        )
    flows = sum_over_dims(
        layer_conductance(task.score, task.embeddings, name, baseline=task.baseline, **task.steps(50))
    )
    batch, time = task.mask.shape
    if name != "text_states":
        return jnp.mean(flows.reshape(-1, batch, time), axis=0)
    return jnp.sum(flows.reshape(-1, batch, time), axis=0)  # both texts of a pair: a token is in one of them


def owed_to_values(task: TokenTask) -> Float[Array, "batch time"]:
    """Value zeroing: what the first token's vector owes to each token's value in a layer, mean over layers."""
    maps = value_zeroing(lambda: task.score(task.embeddings), task.mask, **task.chunks)
    return jnp.mean(maps, axis=0)[:, 0]


def attention_maps(task: TokenTask) -> Float[Array, "batch layers heads time source"]:
    """The model's attention weights; ValueError for weights that lead from tokens to the text, not to one another."""
    _check_maps(task)
    return attention_weights(task.score)(task.embeddings)


def looked_at(task: TokenTask) -> Float[Array, "batch time"]:
    """What the first token attends to in the last layer, mean over heads; of attention that pools tokens, its weights.

    Both texts of a pair have weights of their own, 0 at the other's tokens, which add up.
    """
    if not _pooling_shapes(task):
        return raw_attention(attention_maps(task))
    weights: Any = capture(task.score, "attention_weights")(task.embeddings)[1]["attention_weights"]
    return sum(jax.tree.leaves(weights), jnp.zeros((), jnp.float32))


def over_queries(
    method: Callable[..., Float[Array, "batch layers heads time source"]], task: TokenTask
) -> Float[Array, "batch time"]:
    """A map of the attention weights' shape, summed over layers, heads and tokens that attend (padding does not)."""
    _check_maps(task)
    maps = method(task.score, task.embeddings)
    return jnp.sum(jnp.where(task.mask[:, None, None, :, None], maps, 0), axis=(1, 2, 3))


def _check_maps(task: TokenTask) -> None:
    if _pooling_shapes(task):
        raise ValueError(
            "the model pools its tokens by attention, [batch, time], and no token attends to another: of the attention "
            "methods it has 'attention' alone"
        )


def _pooling_shapes(task: TokenTask) -> bool:
    """Whether the model's attention weights are one per token, [batch, time]."""
    found = jax.tree.leaves(activation_names(task.score, task.embeddings).get("attention_weights", ()))
    return bool(found) and all(value.shape == task.mask.shape for value in found)
