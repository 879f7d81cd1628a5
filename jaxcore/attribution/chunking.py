"""One mechanism for every expansion (path steps, noise samples, masks): sums in chunks that fit a memory budget."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Items = TypeVar("Items")
Terms = TypeVar("Terms")

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of temporary memory one chunk may take when the device does not say how much it has."""


def chunked_sum(term: Callable[[Items], Terms], items: Items, *, chunk_size: int) -> Terms:
    """``sum_i term(items[i])`` over the leading axis of `items`, `chunk_size` terms at a time.

    Terms of one chunk are evaluated together (`jax.vmap`), chunks one after the other (`jax.lax.scan`), so that
    memory grows with `chunk_size` and neither the program nor its compile time grows with the number of items.
    A last, smaller chunk is evaluated on its own: nothing is padded.
    """
    length = jax.tree.leaves(items)[0].shape[0]
    chunk_size = max(1, min(chunk_size, length))
    whole = length - length % chunk_size

    def chunk_total(chunk: Any) -> Any:
        return jax.tree.map(lambda terms: jnp.sum(terms, axis=0), jax.vmap(term)(chunk))

    def add_chunk(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_total(chunk)), None

    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk_size, *x.shape[1:]), items)
    first = chunk_total(jax.tree.map(lambda x: x[0], chunks))
    total, _ = jax.lax.scan(add_chunk, first, jax.tree.map(lambda x: x[1:], chunks))
    if whole < length:
        total, _ = add_chunk(total, jax.tree.map(lambda x: x[whole:], items))
    return total


def fitting_chunk_size(term: Callable[[Items], Any], items: Items, *, memory_budget: int | None = None) -> int:
    """The largest chunk of `chunked_sum` whose temporary memory fits the budget, by the compiler's own analysis.

    The program of a single term is compiled and its temporaries read with ``memory_analysis()``; temporaries of a
    chunk grow linearly in its size. Inside another `jax.jit` (where nothing can be compiled on the side) the
    answer is 1: slow, and never out of memory.

    Args:
        memory_budget: bytes; by default half of what the device reports as free, else `DEFAULT_MEMORY_BUDGET`.
    """
    length = jax.tree.leaves(items)[0].shape[0]
    if isinstance(jnp.zeros(()), jax.core.Tracer):  # inside an enclosing jit every new array is traced
        return 1
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), items)
    analysis = jax.jit(term).lower(one).compile().memory_analysis()
    if analysis is None:
        return 1
    bytes_per_term = max(analysis.temp_size_in_bytes + analysis.output_size_in_bytes, 1)
    return max(1, min(length, (memory_budget or _free_memory() // 2) // bytes_per_term))


def _free_memory() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return 2 * DEFAULT_MEMORY_BUDGET
