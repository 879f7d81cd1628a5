"""Keys and values of the tokens a decoder has seen, as an explicit pytree of fixed shape.

A cache has `capacity` slots per row. `Decoder` calls with a cache write the keys of their T tokens to slots length,
..., length + T - 1 and attend to every valid slot up to their own. Slots of padding tokens are filled but not valid,
so rows of different length share one `length`.

A cache may continue another, its `prefix`, which has fewer rows: with R rows in the prefix and R * n here, row r
continues row r // n of the prefix. The prefix is read where it lies, once for all n, and never written. Prefixes nest:
a prompt (1 row), its samples, each sample's candidates.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxcore.models.decoder_config import DecoderConfig


@flax.struct.dataclass
class KeyValueCache:
    """Keys (rotated, where positions are rotary) and values per block, and which slots hold real tokens.

    `keys` and `values` are arrays with a leading axis of blocks, or tuples of one array per block
    (`unstack_layers`): all functions here count axes from the end and take both.
    """

    keys: Any
    """Float (layers, rows, key_value_heads, capacity, head_size)."""
    values: Any
    """As `keys`."""
    valid: Bool[Array, "rows capacity"]
    """True on slots that hold a real token."""
    length: Int[Array, ""]
    """Slots filled so far, padding included; the same in every row."""
    prefix: "KeyValueCache | None" = None
    """The cache that this one continues."""

    @classmethod
    def empty(
        cls,
        config: DecoderConfig,
        rows: int,
        capacity: int,
        dtype: DTypeLike | None = None,
        *,
        prefix: "KeyValueCache | None" = None,
    ) -> "KeyValueCache":
        """A cache with nothing in it.

        Args:
            config: of the decoder.
            rows: texts; a multiple of the prefix's rows, if there is one.
            capacity: slots per row, 1 or more.
            dtype: of keys and values; None = the config's compute dtype.
            prefix: the cache that this one continues.

        Raises:
            ValueError: rows or capacity below 1, or rows that the prefix's do not divide.
        """
        if rows < 1 or capacity < 1:
            raise ValueError(f"a cache needs 1 or more rows and slots, got rows={rows}, capacity={capacity}")
        if prefix is not None and rows % prefix.rows:
            raise ValueError(f"rows must be a multiple of the prefix's {prefix.rows} rows, got {rows}")
        shape = (config.num_layers, rows, config.num_key_value_heads, capacity, config.head_size)
        return cls(
            keys=jnp.zeros(shape, dtype or config.dtype),
            values=jnp.zeros(shape, dtype or config.dtype),
            valid=jnp.zeros((rows, capacity), bool),
            length=jnp.zeros((), jnp.int32),
            prefix=prefix,
        )

    @property
    def rows(self) -> int:
        """Number of texts."""
        return self.valid.shape[0]

    @property
    def capacity(self) -> int:
        """Slots per row, the prefix's not counted."""
        return self.valid.shape[1]


def fork(cache: KeyValueCache, samples: int, capacity: int) -> KeyValueCache:
    """An empty cache of `samples` continuations of each row of `cache`, which becomes their prefix, uncopied.

    Raises:
        ValueError: samples or capacity below 1.
    """
    if samples < 1 or capacity < 1:
        raise ValueError(f"fork needs 1 or more samples and slots, got samples={samples}, capacity={capacity}")
    rows = cache.rows * samples

    def fresh(array: Array) -> Array:
        return jnp.zeros((*array.shape[:-4], rows, array.shape[-3], capacity, array.shape[-1]), array.dtype)

    return KeyValueCache(
        keys=jax.tree.map(fresh, cache.keys),
        values=jax.tree.map(fresh, cache.values),
        valid=jnp.zeros((rows, capacity), bool),
        length=jnp.zeros((), jnp.int32),
        prefix=cache,
    )


def adopt(cache: KeyValueCache, choice: Int[Array, "prefix_rows"]) -> KeyValueCache:
    """The prefix of a forked `cache`, each of its rows continued by one of the row's n samples.

    Row r of the result is row r of the prefix followed by all filled slots of its sample `choice[r]` (0 to n - 1),
    written from the prefix's length on.

    Raises:
        ValueError: a cache without prefix, a choice that is not one per row, a prefix with fewer slots than the cache.
    """
    parent = cache.prefix
    if parent is None:
        raise ValueError("adopt needs a cache with a prefix: make it with fork")
    if choice.shape != (parent.rows,):
        raise ValueError(f"choice must hold one sample for each of the {parent.rows} rows, got shape {choice.shape}")
    if cache.capacity > parent.capacity:
        raise ValueError(f"a prefix of {parent.capacity} slots cannot take the {cache.capacity} of its continuation")
    rows = jnp.arange(parent.rows) * (cache.rows // parent.rows) + choice

    def written(old: Array, new: Array) -> Array:
        return write_slots(old, jnp.take(new, rows, axis=-4), parent.length)

    valid = cache.valid[rows]
    return dataclasses.replace(
        parent,
        keys=jax.tree.map(written, parent.keys, cache.keys),
        values=jax.tree.map(written, parent.values, cache.values),
        valid=jax.lax.dynamic_update_slice(parent.valid, valid, (0, parent.length)),
        length=parent.length + cache.length,
    )


def repeat_rows(cache: KeyValueCache, samples: int) -> KeyValueCache:
    """Every row `samples` times in a row, copied: row r of the result is row r // samples. The prefix is shared on."""
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    return _map_rows(cache, lambda array, axis: jnp.repeat(array, samples, axis=axis))


def take_rows(cache: KeyValueCache, rows: Int[Array, "new_rows"]) -> KeyValueCache:
    """The chosen rows, in that order (beams after reordering, rows that go on).

    With a prefix, new row r continues row r // n of the prefix, as ever: choose each from those that do.

    Raises:
        ValueError: a number of rows that the prefix's rows do not divide.
    """
    if cache.prefix is not None and rows.shape[0] % cache.prefix.rows:
        raise ValueError(f"rows must be a multiple of the prefix's {cache.prefix.rows} rows, got {rows.shape[0]}")
    return _map_rows(cache, lambda array, axis: jnp.take(array, rows, axis=axis))


def _map_rows(cache: KeyValueCache, change: Any) -> KeyValueCache:
    return dataclasses.replace(
        cache,
        keys=jax.tree.map(lambda array: change(array, -4), cache.keys),
        values=jax.tree.map(lambda array: change(array, -4), cache.values),
        valid=change(cache.valid, 0),
    )


def rewind(cache: KeyValueCache, length: Int[Array, ""] | int) -> KeyValueCache:
    """Forget all slots from `length` on (draft tokens that were refused); the prefix stays."""
    length = jnp.minimum(cache.length, length)
    kept = cache.valid & (jnp.arange(cache.capacity) < length)
    return dataclasses.replace(cache, valid=kept, length=length)


def resize(cache: KeyValueCache, capacity: int) -> KeyValueCache:
    """The same contents with `capacity` slots: new ones are empty, dropped ones must not be in use.

    Raises:
        ValueError: capacity below 1, or (where the length is known while tracing) below the length.
    """
    if capacity < 1:
        raise ValueError(f"capacity must be positive, got {capacity}")
    if not isinstance(cache.length, jax.core.Tracer) and capacity < int(cache.length):
        raise ValueError(f"{int(cache.length)} slots are in use, more than the new capacity {capacity}")
    extra = capacity - cache.capacity

    def resized(array: Array, axis: int) -> Array:
        if extra <= 0:
            return jax.lax.slice_in_dim(array, 0, capacity, axis=axis)
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, extra)
        return jnp.pad(array, widths)

    return dataclasses.replace(
        cache,
        keys=jax.tree.map(lambda array: resized(array, -2), cache.keys),
        values=jax.tree.map(lambda array: resized(array, -2), cache.values),
        valid=resized(cache.valid, 1),
    )


def write_slots(
    old: Float[Array, "... rows heads capacity size"],
    new: Float[Array, "... rows heads count size"],
    start: Int[Array, ""],
) -> Float[Array, "... rows heads capacity size"]:
    """`old` with its slots start, ..., start + count - 1 replaced."""
    if old.shape == new.shape:
        return new.astype(old.dtype)
    return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (*(0,) * (old.ndim - 2), start, 0))


def token_counts(cache: KeyValueCache) -> Int[Array, "rows"]:
    """Real tokens per row, the prefix's included: the position of the next token."""
    own = cache.valid.sum(1, dtype=jnp.int32)
    if cache.prefix is None:
        return own
    return own + jnp.repeat(token_counts(cache.prefix), cache.rows // cache.prefix.rows)


def lineage(cache: KeyValueCache) -> list[KeyValueCache]:
    """The cache and all its prefixes, the outermost prefix first."""
    return [*(lineage(cache.prefix) if cache.prefix is not None else []), cache]


def total_capacity(cache: KeyValueCache) -> int:
    """Slots per row with those of all prefixes: the source axis of attention scores and weights."""
    return sum(part.capacity for part in lineage(cache))


def unstack_cache(cache: KeyValueCache) -> KeyValueCache:
    """Keys and values as tuples of one array per block, for a `Decoder` with unstacked parameters."""
    if isinstance(cache.keys, tuple):
        return cache
    return dataclasses.replace(
        cache,
        keys=tuple(cache.keys),
        values=tuple(cache.values),
        prefix=None if cache.prefix is None else unstack_cache(cache.prefix),
    )
