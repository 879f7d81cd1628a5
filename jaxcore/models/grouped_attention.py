"""Causal attention with grouped queries, over the tokens of a call and those that caches hold."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.models.attention import LARGE_NEGATIVE, AttentionImplementation, fused_attention
from jaxcore.models.dropout import dropout


@dataclasses.dataclass(frozen=True)
class Source:
    """Keys and values to attend to, (rows, key_value_heads, slots, head_size) each.

    With fewer rows than the queries, query row r attends to row r // (rows of queries / rows).
    """

    keys: Float[Array, "rows groups slots head_dim"]
    values: Float[Array, "rows groups slots head_dim"]


def attend_grouped(
    queries: Float[Array, "batch time heads head_dim"],
    keys: Float[Array, "batch groups time head_dim"],
    values: Float[Array, "batch groups time head_dim"],
    mask: Bool[Array, "batch 1 time source"],
    *,
    sources: Sequence[Source] = (),
    start: Int[Array, ""] | None = None,
    implementation: AttentionImplementation = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """`softmax(Q K' / sqrt(d) + mask) V` per head; heads g * G, ..., g * G + G - 1 share keys and values g.

    The softmax runs over all sources and the call's own tokens together. Sources stay where and as they are: nothing
    is copied to join them or to give each query row its own.

    Names (B rows, H heads, T tokens, S the slots of all sources, then those of the call unless they lie inside the
    last source), for capture and intervene:
        attention_scores   (B, H, T, S)  float32, `Q K' / sqrt(d)` before the mask: whatever an edit puts there, masked
                                         slots stay masked. Put a large negative number where nothing is to be seen.
        attention_weights  (B, H, T, S)  after softmax, before dropout

    Args:
        queries, keys, values: of the call's T tokens.
        mask: True where a token may look; the last axis as S above.
        sources: what came before, outermost first.
        start: slot of the last source in which the call's tokens belong (its contents there are not looked at). None =
            they follow the sources.
        implementation: "explicit" names scores and weights. "fused" does not, and calls `jax.nn.dot_product_attention`
            where there are no sources. "auto" is "explicit" on CPU and "fused" elsewhere. So an edit of scores holds
            with and without a cache, or is refused in both.
        dropout_rate, dropout_key: as of `attend`.

    Raises:
        ValueError: unknown implementation; "fused" with weight dropout in force.
    """
    drops = dropout_key is not None and dropout_rate > 0
    if implementation == "auto":
        implementation = "explicit" if drops or jax.default_backend() == "cpu" else "fused"
    if implementation not in ("explicit", "fused"):
        raise ValueError(f"unknown attention implementation {implementation!r}: use 'auto', 'explicit' or 'fused'")
    if implementation == "fused":
        if drops:
            raise ValueError(
                f"fused attention has no weight dropout, but attention_dropout={dropout_rate}: "
                "set it to 0, or use the implementation 'auto' or 'explicit'"
            )
        if not sources:
            return fused_attention(queries, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask)
    label = checkpoint_name if implementation == "explicit" else _unnamed
    queries = queries * (1 / math.sqrt(queries.shape[-1]))
    scores = label(_all_scores(queries, keys, sources, start), "attention_scores")
    weights = jax.nn.softmax(jnp.where(mask, scores, LARGE_NEGATIVE), axis=-1).astype(values.dtype)
    weights = label(weights, "attention_weights")
    if dropout_key is not None and drops:
        weights = dropout(weights, rate=dropout_rate, key=dropout_key)
    return _weighted_sum(weights, values, sources, start).astype(values.dtype)


def _unnamed(value: Array, name: str) -> Array:
    return value


def _all_scores(queries, keys, sources, start) -> Float[Array, "batch heads time source"]:
    parts = [_scores(queries, source.keys) for source in sources]
    own = _scores(queries, keys)
    if start is None:
        parts.append(own)
    else:
        parts[-1] = jax.lax.dynamic_update_slice(parts[-1], own, (0, 0, 0, start))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _weighted_sum(weights, values, sources, start) -> Float[Array, "batch time heads head_dim"]:
    sizes = [source.values.shape[2] for source in sources]
    if start is None:
        *parts, own = _split(weights, [*sizes, values.shape[2]])
    else:
        parts = _split(weights, sizes)
        own = jax.lax.dynamic_slice_in_dim(parts[-1], start, values.shape[2], axis=-1)
        parts[-1] = jax.lax.dynamic_update_slice(parts[-1], jnp.zeros_like(own), (0, 0, 0, start))
    total = _values(own, values)
    for part, source in zip(parts, sources, strict=True):
        total = total + _values(part, source.values)
    return total


def _split(weights: Array, sizes: Sequence[int]) -> list[Array]:
    return [weights] if len(sizes) == 1 else list(jax.lax.split(weights, sizes, axis=weights.ndim - 1))


def _scores(queries: Any, keys: Any) -> Float[Array, "batch heads time slots"]:
    """Products of every query with the keys of its row and group, as matrix products of (queries of a row, slots).

    Query rows that share a row of keys, heads that share a group and tokens are all rows of one product.
    """
    batch, time, heads, size = queries.shape
    rows, groups, slots, _ = keys.shape
    samples, members = batch // rows, heads // groups
    grouped = queries.reshape(rows, samples, time, groups, members, size).transpose(0, 3, 1, 4, 2, 5)
    product = jnp.einsum(
        "rgqd,rgsd->rgqs",
        grouped.reshape(rows, groups, samples * members * time, size),
        keys,
        preferred_element_type=jnp.float32,
    )
    apart = product.reshape(rows, groups, samples, members, time, slots).swapaxes(1, 2)
    return apart.reshape(batch, heads, time, slots)


def _values(weights: Any, values: Any) -> Float[Array, "batch time heads head_dim"]:
    """Sums of values by the weights, float32; the mirror image of `_scores`."""
    batch, heads, time, slots = weights.shape
    rows, groups, _, size = values.shape
    samples, members = batch // rows, heads // groups
    grouped = weights.reshape(rows, samples, groups, members, time, slots).swapaxes(1, 2)
    product = jnp.einsum(
        "rgqs,rgsd->rgqd",
        grouped.reshape(rows, groups, samples * members * time, slots),
        values,
        preferred_element_type=jnp.float32,
    )
    apart = product.reshape(rows, groups, samples, members, time, size).transpose(0, 2, 4, 1, 3, 5)
    return apart.reshape(batch, time, heads, size)
