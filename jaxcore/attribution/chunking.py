"""One mechanism for every expansion (path steps, noise samples, masks): chunks that fit a memory budget.

A method is a sum (or a stack) of terms, one per step, sample or mask, each a pass over the whole batch. Terms of one
chunk are evaluated together (`jax.vmap`), chunks one after the other (`jax.lax.scan`), so that memory grows with the
chunk and neither the program nor its compile time grows with the number of terms. A last, smaller chunk is evaluated on
its own: nothing is padded. The result does not depend on the chunk, up to the order of float additions.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

Items = TypeVar("Items")
Terms = TypeVar("Terms")

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of temporary memory one chunk may take when the device does not say how much it has."""


def chunked_sum(
    term: Callable[[Items], Terms],
    items: Items,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Terms:
    """``sum_i term(items[i])`` over the leading axis of `items`, `chunk_size` terms at a time.

    Args:
        chunk_size: terms evaluated together; by default as many as `fitting_chunk_size` finds for the budget.
        memory_budget: see `fitting_chunk_size`.
    """
    length, chunk_size = _sizes(term, items, chunk_size, memory_budget)
    whole = length - length % chunk_size

    def chunk_total(chunk: Any) -> Any:
        return jax.tree.map(lambda terms: jnp.sum(terms, axis=0), jax.vmap(term)(chunk))

    def add_chunk(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_total(chunk)), None

    def run(items: Any) -> Any:
        chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk_size, *x.shape[1:]), items)
        shapes = jax.eval_shape(chunk_total, jax.tree.map(lambda x: x[0], chunks))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add_chunk, zeros, chunks)
        if whole < length:
            total, _ = add_chunk(total, jax.tree.map(lambda x: x[whole:], items))
        return total

    return jax.jit(run)(items)


def chunked_map(
    term: Callable[[Items], Terms],
    items: Items,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Terms:
    """``stack_i term(items[i])`` over the leading axis of `items`, `chunk_size` terms at a time; see `chunked_sum`."""
    _, chunk_size = _sizes(term, items, chunk_size, memory_budget)
    return jax.jit(lambda items: jax.lax.map(term, items, batch_size=chunk_size))(items)


def _sizes(term: Any, items: Any, chunk_size: int | None, memory_budget: int | None) -> tuple[int, int]:
    length = jax.tree.leaves(items)[0].shape[0]
    if chunk_size is None:
        chunk_size = fitting_chunk_size(term, items, memory_budget=memory_budget)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1: got {chunk_size}")
    return length, min(chunk_size, length)


def fitting_chunk_size(term: Callable[[Items], Any], items: Items, *, memory_budget: int | None = None) -> int:
    """The largest chunk whose temporary memory fits the budget, by the compiler's own analysis.

    The program of a single term is compiled and its temporaries read with ``memory_analysis()``; temporaries of a
    chunk grow linearly in its size. This holds inside an enclosing `jax.jit` too: there the program is compiled on the
    side, for the shapes of what `term` closes over.

    Args:
        memory_budget: bytes; by default half of what the device reports as free, else `DEFAULT_MEMORY_BUDGET`.

    Raises:
        ValueError: memory_budget < 1.
    """
    if memory_budget is not None and memory_budget < 1:
        raise ValueError(f"memory_budget must be a positive number of bytes: got {memory_budget}")
    length = jax.tree.leaves(items)[0].shape[0]
    bytes_per_term = _bytes_of_one(term, items)
    return max(1, min(length, (memory_budget or _free_memory() // 2) // bytes_per_term))


def _bytes_of_one(term: Callable[[Any], Any], items: Any) -> int:
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), items)
    closed: Any = jax.make_jaxpr(term)(one)
    held = [_described(value) for value in closed.consts]

    def program(held: list[Any], *leaves: Any) -> list[Any]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(getattr(closed, "jaxpr", closed), held))(*leaves)

    analysis = jax.jit(program).lower(held, *jax.tree.leaves(one)).compile().memory_analysis()
    return max(analysis.temp_size_in_bytes + analysis.output_size_in_bytes, 1) if analysis is not None else 2**62


def _described(value: Any) -> Any:
    """What compilation needs to know of a value that the term closes over: its shape, dtype and, if known, layout."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, jax.Array):
        return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))
    return value


def _free_memory() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return 2 * DEFAULT_MEMORY_BUDGET
