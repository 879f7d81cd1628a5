"""One mechanism for every expansion (path steps, noise samples, masks): chunks that fit a memory budget.

A method is a sum (or a stack) of terms, one per step, sample or mask, each a pass over the whole batch. Terms of one
chunk are evaluated together (`jax.vmap`), chunks one after the other (`jax.lax.scan`), so that memory grows with the
chunk and neither the program nor its compile time grows with the number of terms. A last, smaller chunk is evaluated on
its own: nothing is padded. The result does not depend on the chunk, up to the order of float additions.

Called outside `jax.jit`, sums and stacks keep their compiled programs: a repeated call of a method traces its score
and compiles nothing, see `jaxcore.attribution.compiled_programs`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxcore.attribution.compiled_programs import kept_executable, run_compiled, trace_call
from jaxcore.attribution.input_checks import check_positive

Items = TypeVar("Items")
Terms = TypeVar("Terms")

DEFAULT_MEMORY_BUDGET = 2**29
"""Bytes of temporary memory one chunk may take when the device does not say how much it has: a CPU, where larger chunks
leave the caches and run slower (a forward pass of 4,096 tokens takes 1.25 times as long per token as one of 2,048)."""


def chunked_sum(
    term: Callable[[Items], Terms],
    items: Items,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Terms:
    """``sum_i term(items[i])`` over the leading axis of `items`, `chunk_size` terms at a time.

    Args:
        chunk_size: terms evaluated together; by default about as many as `fitting_chunk_size` finds for the budget.
        memory_budget: see `fitting_chunk_size`.
    """
    term = jax.jit(term)  # traced once, for the analysis, the chunks and what is left over
    length, chunk_size = _sizes(term, items, chunk_size, memory_budget)
    whole = length - length % chunk_size

    def chunk_total(chunk: Any) -> Any:
        return jax.tree.map(lambda terms: jnp.sum(terms, axis=0), jax.vmap(term)(chunk))

    def add_chunk(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_total(chunk)), None

    def run(items: Any) -> Any:
        if chunk_size == length:
            return chunk_total(items)
        chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk_size, *x.shape[1:]), items)
        shapes = jax.eval_shape(chunk_total, jax.tree.map(lambda x: x[0], chunks))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add_chunk, zeros, chunks)
        if whole < length:
            total, _ = add_chunk(total, jax.tree.map(lambda x: x[whole:], items))
        return total

    return run_compiled(run, items)


def chunked_map(
    term: Callable[[Items], Terms],
    items: Items,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Terms:
    """``stack_i term(items[i])`` over the leading axis of `items`, `chunk_size` terms at a time; see `chunked_sum`."""
    term = jax.jit(term)
    _, chunk_size = _sizes(term, items, chunk_size, memory_budget)
    return run_compiled(lambda items: jax.lax.map(term, items, batch_size=chunk_size), items)


def _sizes(term: Any, items: Any, chunk_size: int | None, memory_budget: int | None) -> tuple[int, int]:
    length = jax.tree.leaves(items)[0].shape[0]
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1: got {chunk_size}")
    if chunk_size is None and length > 1:
        chunk_size = _even_chunk(length, fitting_chunk_size(term, items, memory_budget=memory_budget))
    return length, min(chunk_size or 1, length)


def _even_chunk(length: int, largest: int) -> int:
    """A chunk of at most `largest` terms whose last, smaller chunk fits beside it (the compiler overlaps the two).

    One without a smaller chunk if that costs at most half the size: there is a program less to compile.
    """
    sizes = range(largest, 0, -1)
    even = next(size for size in sizes if length % size == 0)
    return even if 2 * even >= largest else next(size for size in sizes if size + length % size <= largest)


def fitting_chunk_size(term: Callable[[Items], Any], items: Items, *, memory_budget: int | None = None) -> int:
    """The largest chunk whose temporary memory fits the budget, by the compiler's own analysis.

    The program of a single term is compiled and its temporaries read with ``memory_analysis()``; temporaries of a
    chunk grow linearly in its size. This holds inside an enclosing `jax.jit` too: there the program is compiled on the
    side, for the shapes of what `term` closes over.

    Args:
        memory_budget: bytes; by default half of what the device reports as free, else `DEFAULT_MEMORY_BUDGET`.

    Raises:
        ValueError: a memory_budget that is not a whole number of at least 1.
    """
    check_positive(memory_budget=memory_budget)
    length = jax.tree.leaves(items)[0].shape[0]
    bytes_per_term = _bytes_of_one(term, items)
    return max(1, min(length, (memory_budget or _default_budget()) // bytes_per_term))


def _bytes_of_one(term: Callable[[Any], Any], items: Any) -> int:
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), items)
    call = trace_call(term, one).with_arrays_as_operands()
    # It is never run: on CPU, what the compiler would do for its speed is left out, which changes no buffer.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    described = [_described(operand) for operand in call.operands]
    analysis = kept_executable(call, described, **options).memory_analysis()
    return max(analysis.temp_size_in_bytes + analysis.output_size_in_bytes, 1) if analysis is not None else 2**62


def _described(value: Any) -> Any:
    """What compilation needs to know of an operand: its shape, dtype and, if known, layout."""
    is_known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return value if is_known else jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


def _default_budget() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return (statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)) // 2
    return DEFAULT_MEMORY_BUDGET
