"""Token and word scores against loops, and against a real fast tokenizer's own word numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxcore.attribution.token_aggregation import (
    abs_sum_over_dims,
    aggregate_tokens,
    l2_norm_over_dims,
    max_abs_over_dims,
    mean_abs_over_dims,
    mean_over_dims,
    span_ids_from_offsets,
    sum_over_dims,
    word_ids_array,
    word_ids_from_offsets,
)

REDUCED = {"sum": sum, "mean": np.mean, "max": max, "max_abs": lambda v: max(v, key=lambda x: (abs(x), x))}


def test_reductions_over_dimensions_by_hand():
    attributions = jnp.array([[[3.0, -4.0], [0.0, 0.0]]])
    expected = {
        sum_over_dims: -1,
        abs_sum_over_dims: 1,
        mean_over_dims: -0.5,
        mean_abs_over_dims: 3.5,
        l2_norm_over_dims: 5,
        max_abs_over_dims: 4,
    }
    for reduce, value in expected.items():
        np.testing.assert_allclose(reduce(attributions), [[value, 0]])
    assert np.all(np.isfinite(jax.grad(lambda a: jnp.sum(l2_norm_over_dims(a)))(attributions)))
    assert sum_over_dims(attributions.astype(jnp.bfloat16)).dtype == jnp.float32


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), reduction=st.sampled_from(sorted(REDUCED)))
def test_segments_equal_a_loop(seed, reduction):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 4, size=(3, 8))
    scores = np.where(ids < 0, np.nan, rng.normal(size=(3, 8))).astype(np.float32)
    result = aggregate_tokens(scores, ids, reduction=reduction, num_segments=5)
    for row in range(3):
        for segment in range(5):
            values = scores[row][ids[row] == segment].tolist()
            assert result.mask[row, segment] == bool(values)
            expected = REDUCED[reduction](values) if values else 0
            np.testing.assert_allclose(result.scores[row, segment], expected, rtol=1e-5, atol=1e-6)


def test_sums_of_words_keep_completeness():
    scores, ids = jax.random.normal(jax.random.key(0), (2, 6)), np.array([[-1, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1]])
    words = jax.jit(lambda s: aggregate_tokens(s, ids))(scores)
    np.testing.assert_allclose(words.scores.sum(axis=1), np.where(ids >= 0, scores, 0).sum(axis=1), rtol=1e-5)
    traced = jax.jit(lambda s, i: aggregate_tokens(s, i, num_segments=3))(scores, ids)
    np.testing.assert_array_equal(traced.scores, words.scores)


def test_word_ids_become_an_array():
    ids = word_ids_array([[None, 0, 0, 1, None], [None, 0, None]], length=6)
    assert ids.tolist() == [[-1, 0, 0, 1, -1, -1], [-1, 0, -1, -1, -1, -1]]


def pieces_tokenizer():
    """Sub-words of at most two letters, split at whitespace."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz,.?")}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_words_from_offsets_are_the_tokenizers_own():
    texts = ["  what a fine, day.", "ab  c", ""]
    tokenizer = pieces_tokenizer()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    ids = word_ids_from_offsets([e.offsets for e in encoded], texts)
    assert ids.max() == 3
    np.testing.assert_array_equal(ids, word_ids_array(e.word_ids for e in encoded))


def test_a_token_with_a_space_before_its_word_belongs_to_that_word():
    text = "the cat  sat. "
    #          the     _cat    (space) _s      at        .         (trailing)  special
    offsets = [(0, 3), (3, 7), (7, 8), (8, 10), (10, 12), (12, 13), (13, 14), (0, 0)]
    assert word_ids_from_offsets([offsets], [text]).tolist() == [[0, 1, 2, 2, 2, 2, 2, -1]]


def test_sentences_from_offsets():
    offsets = [[(0, 0), (0, 2), (2, 4), (4, 6), (6, 9), (0, 0)], [(0, 2), (3, 5), (0, 0), (0, 0), (0, 0), (0, 0)]]
    ids = span_ids_from_offsets(offsets, [[(5, 9), (0, 5)], []])
    # the token at [4, 6) shares one character with each: the first span listed
    assert ids.tolist() == [[-1, 1, 1, 0, 0, -1], [-1] * 6]
    assert span_ids_from_offsets([[(0, 3), (3, 9)]], [[(1, 4)]]).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate_tokens(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), int)), "sum_over_dims"),
        (lambda: aggregate_tokens(jnp.ones((1, 2)), jnp.zeros((1, 2), int), reduction="median"), "unknown reduction"),
        (lambda: aggregate_tokens(jnp.ones((1, 2)), np.array([[0, 5]]), num_segments=3), "beyond num_segments 3"),
        (lambda: aggregate_tokens(jnp.ones((1, 2)), np.array([[0, -2]])), "smallest -2"),
        (lambda: jax.jit(aggregate_tokens)(jnp.ones((1, 2)), jnp.zeros((1, 2), int)), "give num_segments"),
        (lambda: word_ids_array([]), "no texts"),
        (lambda: word_ids_array([[0, 1, 2]], length=2), "3 tokens, more than length 2"),
        (lambda: word_ids_from_offsets([[(0, 9)]], ["short"]), "reach to character 9"),
        (lambda: word_ids_from_offsets([[0, 9]], ["short"]), r"offsets must be \[1, time, 2\]"),
        (lambda: span_ids_from_offsets([[(0, 9)]], [[(0, 4), (3, 6)]]), "not overlap"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
