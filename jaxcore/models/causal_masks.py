"""Which tokens each token of a call may look at: those before it, in its caches and in the call, padding left out."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxcore.models.key_value_cache import KeyValueCache, lineage, token_counts


@flax.struct.dataclass
class Visibility:
    """Masks over the source axis of `attend_grouped`, and where the call's tokens stand in their texts."""

    everything: Bool[Array, "batch 1 time source"]
    """True on real tokens up to and including the token itself."""
    window: Bool[Array, "batch 1 time source"] | None
    """The same within the latest `sliding_window` real tokens; None without a window."""
    ranks: Int[Array, "batch time"]
    """Real tokens before each token; -1 on padding at the left end of a text."""


def call_visibility(
    real: Bool[Array, "batch time"],
    cache: KeyValueCache | None,
    *,
    sliding_window: int | None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Visibility:
    """What the tokens of a call see. `real` is False on padding.

    With `segment_ids` (and no cache) a token sees those of its own segment only, and is counted from its beginning;
    the tokens of a segment stand together.

    The source axis holds the slots of every prefix, then the cache's own slots, in which the call's tokens take their
    place; a call as long as the cache (which is then empty) and one without a cache have just their own T there.
    """
    batch, time = real.shape
    before = jnp.zeros(batch, jnp.int32) if cache is None else token_counts(cache)
    ranks = before[:, None] + jnp.cumsum(real, 1, dtype=jnp.int32) - 1
    visible, source_ranks = [], []
    for prefix in lineage(cache)[:-1] if cache is not None else []:
        copies = batch // prefix.rows
        earlier = jnp.repeat(prefix.valid, copies, axis=0)
        visible.append(jnp.broadcast_to(earlier[:, None], (batch, time, prefix.capacity)))
        source_ranks.append(jnp.repeat(_ranks(prefix), copies, axis=0))
    start: Any = 0
    if cache is None or cache.capacity == time:
        slots, filled, own_ranks = jnp.arange(time), real, ranks
    else:
        slots, start = jnp.arange(cache.capacity), cache.length
        filled = jax.lax.dynamic_update_slice(cache.valid, real, (0, start))
        own_ranks = _ranks(dataclasses.replace(cache, valid=filled))
    visible.append(filled[:, None] & (slots <= start + jnp.arange(time)[:, None]))
    source_ranks.append(own_ranks)
    everything = jnp.concatenate(visible, axis=-1)[:, None]
    if segment_ids is not None:
        everything &= (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
        ranks = _ranks_in_segments(real, segment_ids)
        source_ranks = [ranks]
    if sliding_window is None:
        return Visibility(everything, None, ranks)
    distance = ranks[:, :, None] - jnp.concatenate(source_ranks, axis=-1)[:, None]
    return Visibility(everything, everything & (distance < sliding_window)[:, None], ranks)


def _ranks_in_segments(real: Bool[Array, "batch time"], segment_ids: Int[Array, "batch time"]) -> Array:
    """Real tokens of the same segment before each token."""
    counts = jnp.cumsum(real, 1, dtype=jnp.int32)
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    before = jax.lax.cummax(jnp.where(begins, counts - real, 0), axis=1)
    return counts - before - 1


def _ranks(cache: KeyValueCache) -> Int[Array, "rows capacity"]:
    """Real tokens before each slot's, prefixes included."""
    own = jnp.cumsum(cache.valid, 1, dtype=jnp.int32) - 1
    if cache.prefix is None:
        return own
    return own + jnp.repeat(token_counts(cache.prefix), cache.rows // cache.prefix.rows)[:, None]
