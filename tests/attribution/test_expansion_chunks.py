"""Chunks: the same result whatever their size, within the budget by the compiler's own account, inside jit too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.chunking import _even_chunk, chunked_map, chunked_sum, fitting_chunk_size

ITEMS = (jnp.arange(23.0), jnp.arange(46.0).reshape(23, 2))


def term(item):
    number, pair = item
    return {"product": number * pair, "square": number**2}


@pytest.mark.parametrize("chunk_size", [1, 4, 23, 100])
def test_sums_and_stacks_do_not_depend_on_the_chunk(chunk_size):
    numbers, pairs = (np.asarray(leaf) for leaf in ITEMS)
    total = chunked_sum(term, ITEMS, chunk_size=chunk_size)
    np.testing.assert_allclose(total["product"], (numbers[:, None] * pairs).sum(0))
    np.testing.assert_allclose(total["square"], (numbers**2).sum())
    stack = chunked_map(term, ITEMS, chunk_size=chunk_size)
    np.testing.assert_array_equal(stack["product"], numbers[:, None] * pairs)


def wide(scale, item):
    return jnp.sum(jnp.sort(jnp.sin(scale * item * jnp.arange(10_000.0))))


def test_the_budget_holds_inside_jit_for_what_the_term_closes_over():
    """The temporaries of the whole program, read from the compiler, grow with the budget and stay near it."""

    def temporaries(budget):
        run = jax.jit(lambda s, items: chunked_sum(lambda i: wide(s, i), items, memory_budget=budget))
        return run.lower(1.5, jnp.arange(64.0)).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(200_000), temporaries(2_000_000)
    assert small < 400_000 < large < 4_000_000
    assert fitting_chunk_size(lambda i: wide(1.5, i), jnp.arange(64.0), memory_budget=200_000) < 8


@pytest.mark.parametrize(
    ("length", "largest", "chunk"),
    [
        (10_000, 1014, 1000),
        (50, 12, 10),
        (128, 50, 32),
        (7, 7, 7),
        (10_007, 1014, 1000),
        (101, 1, 1),
        (23, 2, 1),
        (23, 5, 3),
    ],
)
def test_chosen_chunks_leave_little_over(length, largest, chunk):
    found = _even_chunk(length, largest)
    assert found == chunk
    assert found + length % found <= largest


def test_the_program_does_not_grow_with_the_number_of_terms():
    def length(count):
        run = jax.jit(lambda s, items: chunked_sum(lambda i: wide(s, i), items, chunk_size=2))
        return len(run.lower(1.5, jnp.arange(float(count))).as_text())

    assert length(2000) < 1.05 * length(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"chunk_size": 0}, "chunk_size must be at least 1: got 0"), ({"memory_budget": 0}, "memory_budget must be")],
)
def test_bad_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        chunked_sum(term, ITEMS, **options)
