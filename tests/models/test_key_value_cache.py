"""Caches as values: rows and slots chosen, repeated, forgotten; what does not fit refused. Their use by a model is in
test_decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models import (
    DecoderConfig,
    KeyValueCache,
    adopt,
    fork,
    repeat_rows,
    resize,
    rewind,
    take_rows,
    token_counts,
    total_capacity,
    unstack_cache,
)

CONFIG = DecoderConfig(num_layers=2, num_heads=3, num_key_value_heads=3, head_size=4, hidden_size=12)


def filled(rows: int, capacity: int, length: int, *, seed: int = 0) -> KeyValueCache:
    """Random contents in the first `length` slots; row r begins with r slots of padding."""
    rng = np.random.default_rng(seed)
    cache = KeyValueCache.empty(CONFIG, rows, capacity)
    slots = np.arange(capacity)
    return dataclasses.replace(
        cache,
        keys=jnp.asarray(rng.normal(size=cache.keys.shape), jnp.float32),
        values=jnp.asarray(rng.normal(size=cache.values.shape), jnp.float32),
        valid=jnp.asarray((slots >= np.arange(rows)[:, None]) & (slots < length)),
        length=jnp.asarray(length, jnp.int32),
    )


def test_an_empty_cache():
    cache = KeyValueCache.empty(CONFIG, 5, 7, "bfloat16")
    assert cache.keys.shape == cache.values.shape == (2, 5, 3, 7, 4) and cache.keys.dtype == jnp.bfloat16
    assert (cache.rows, cache.capacity, int(cache.length), int(cache.valid.sum())) == (5, 7, 0, 0)


def test_rows_are_repeated_and_chosen_together():
    cache = filled(2, 4, 3)
    repeated = repeat_rows(cache, 2)
    np.testing.assert_array_equal(repeated.keys, cache.keys[:, [0, 0, 1, 1]])
    np.testing.assert_array_equal(repeated.valid, cache.valid[np.array([0, 0, 1, 1])])
    chosen = take_rows(repeated, jnp.array([3, 0]))
    np.testing.assert_array_equal(chosen.values, cache.values[:, [1, 0]])
    np.testing.assert_array_equal(chosen.valid, cache.valid[np.array([1, 0])])
    assert int(chosen.length) == 3


def test_tokens_are_counted_through_prefixes():
    cache = filled(2, 4, 3)
    np.testing.assert_array_equal(token_counts(cache), [3, 2])
    inner = fork(cache, 2, 5)
    inner = dataclasses.replace(inner, valid=inner.valid.at[1:, 0].set(True), length=jnp.asarray(1))
    np.testing.assert_array_equal(token_counts(fork(inner, 1, 1)), [3, 4, 3, 3])
    assert total_capacity(fork(inner, 1, 1)) == 4 + 5 + 1


def test_rewinding_and_resizing_keep_what_was_before():
    cache = filled(2, 6, 5)
    short = rewind(cache, 3)
    assert int(short.length) == 3 and int(rewind(short, 5).length) == 3
    np.testing.assert_array_equal(short.valid, cache.valid & (np.arange(6) < 3))
    for capacity in (3, 4, 9):
        sized = resize(short, capacity)
        assert sized.capacity == capacity == sized.keys.shape[-2] and int(sized.length) == 3
        np.testing.assert_array_equal(sized.keys[..., :3, :], cache.keys[..., :3, :])
        np.testing.assert_array_equal(sized.valid[:, :3], cache.valid[:, :3])
        assert not sized.valid[:, 3:].any()


def test_an_adopted_sample_is_written_behind_the_prefix():
    parent = filled(2, 6, 3)
    samples = filled(6, 2, 2, seed=1)
    child = adopt(dataclasses.replace(samples, prefix=parent), jnp.array([2, 0]))
    assert child.prefix is None and int(child.length) == 5
    np.testing.assert_array_equal(child.keys[..., :3, :], parent.keys[..., :3, :])
    np.testing.assert_array_equal(child.values[..., 3:5, :], samples.values[:, [2, 3]])
    np.testing.assert_array_equal(child.valid[:, 3:5], samples.valid[np.array([2, 3])])


def test_unstacked_caches_go_through_the_same_functions():
    def process(cache):
        return rewind(resize(take_rows(repeat_rows(cache, 3), jnp.array([4, 1])), 8), 2)

    cache = filled(2, 6, 5)
    expected, got = process(cache), process(unstack_cache(cache))
    assert isinstance(got.keys, tuple) and len(got.keys) == 2
    np.testing.assert_array_equal(jnp.stack(got.keys), expected.keys)
    child = adopt(fork(unstack_cache(cache), 2, 1), jnp.array([0, 1]))
    np.testing.assert_array_equal(jnp.stack(child.keys), adopt(fork(cache, 2, 1), jnp.array([0, 1])).keys)


def test_what_does_not_fit_is_refused():
    cache = filled(2, 6, 5)
    forked = fork(cache, 3, 2)
    cases = [
        (lambda: KeyValueCache.empty(CONFIG, 0, 4), "rows=0, capacity=4"),
        (lambda: KeyValueCache.empty(CONFIG, 3, 4, prefix=cache), "multiple of the prefix's 2 rows, got 3"),
        (lambda: fork(cache, 0, 2), "samples=0, capacity=2"),
        (lambda: adopt(cache, jnp.array([0, 0])), "adopt needs a cache with a prefix"),
        (lambda: adopt(forked, jnp.array([0])), r"one sample for each of the 2 rows, got shape \(1,\)"),
        (lambda: adopt(fork(cache, 1, 7), jnp.array([0, 0])), "a prefix of 6 slots cannot take the 7"),
        (lambda: repeat_rows(cache, 0), "samples must be positive, got 0"),
        (lambda: take_rows(forked, jnp.array([0, 1, 2])), "multiple of the prefix's 2 rows, got 3"),
        (lambda: resize(cache, 0), "capacity must be positive"),
        (lambda: resize(cache, 4), "5 slots are in use, more than the new capacity 4"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_caches_pass_through_jit_and_loops():
    """The structure stays, so that a cache can be the state of a while_loop."""

    @jax.jit
    def loop(cache):
        return jax.lax.while_loop(lambda c: c.length > 1, lambda c: rewind(c, c.length - 1), cache)

    assert int(loop(fork(filled(2, 6, 5), 2, 3)).length) == 0
    assert int(loop(filled(2, 6, 5)).length) == 1
