"""Removal measures against loops that delete tokens one text at a time, and scores whose curves are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.attribution.faithfulness import (
    ERASER_FRACTIONS,
    area_under_curve,
    comprehensiveness,
    deletion_curve,
    insertion_curve,
    removal_order,
    replace_top_tokens,
    sufficiency,
)

BATCH, TIME, DIM = 3, 6, 2


def score(inputs):
    """Not additive: what a token contributes depends on the others."""
    return jnp.tanh(jnp.sum(jnp.sin(inputs), axis=(1, 2))) + jnp.prod(jnp.cos(inputs), axis=(1, 2))


def texts(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(BATCH, TIME, DIM)).astype(np.float32)
    mask = rng.permuted(np.arange(TIME) < rng.integers(1, TIME + 1, (BATCH, 1)), axis=1)
    token_scores = np.where(mask, rng.integers(0, 4, (BATCH, TIME)), np.nan).astype(np.float32)
    return inputs, token_scores, mask


def changed_by_loop(inputs, token_scores, mask, baseline, counts, keep):
    result = inputs.copy()
    for row, count in enumerate(counts):
        order = sorted(np.flatnonzero(mask[row]), key=lambda t: -token_scores[row, t])  # stable: ties by position
        result[row, order[count:] if keep else order[:count]] = baseline
    return result


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equal_a_loop_over_texts_and_bins(seed):
    inputs, token_scores, mask = texts(seed)
    lengths = mask.sum(axis=1)
    bins = [[int(np.ceil(np.round(share * n, 6))) for n in lengths] for share in ERASER_FRACTIONS]
    for measure, keep in ((comprehensiveness, False), (sufficiency, True)):
        after = [score(changed_by_loop(inputs, token_scores, mask, 0.5, counts, keep)) for counts in bins]
        expected = score(inputs) - np.mean(after, axis=0)
        values = measure(score, inputs, token_scores, mask=mask, baseline=0.5, chunk_size=2)
        np.testing.assert_allclose(values, expected, atol=1e-5)
    for curve, keep in ((deletion_curve, False), (insertion_curve, True)):
        points = curve(score, inputs, token_scores, mask=mask, baseline=0.5, num_steps=4, chunk_size=2)
        counts = np.floor(np.arange(5)[:, None] * lengths / 4 + 0.5).astype(int)
        after = [score(changed_by_loop(inputs, token_scores, mask, 0.5, c, keep)) for c in counts]
        np.testing.assert_allclose(points.scores, np.transpose(after), atol=1e-5)
        np.testing.assert_allclose(points.fractions, (counts / lengths).T, rtol=1e-6)


def test_counts_and_zero_bins():
    inputs, token_scores, mask = texts(0)
    at_two = comprehensiveness(score, inputs, token_scores, mask=mask, counts=[2])
    counts = np.minimum(2, mask.sum(axis=1))
    expected = score(inputs) - score(changed_by_loop(inputs, token_scores, mask, 0.0, counts, False))
    np.testing.assert_allclose(at_two, expected, atol=1e-6)
    np.testing.assert_allclose(comprehensiveness(score, inputs, token_scores, fractions=[0.0], mask=mask), 0, atol=1e-6)
    np.testing.assert_allclose(sufficiency(score, inputs, token_scores, fractions=[1.0], mask=mask), 0, atol=1e-6)


def test_fractions_take_whole_tokens_whatever_their_float():
    """0.1 of 30 tokens is three, though 0.1 * 30 > 3 in float32."""
    inputs = jnp.ones((1, 30, 1))
    removed = comprehensiveness(lambda x: jnp.sum(x, axis=(1, 2)), inputs, jnp.arange(30.0)[None], fractions=[0.1])
    np.testing.assert_allclose(removed, 3, rtol=1e-6)


def test_curves_of_an_additive_score_by_hand():
    """Values 3, 2, 1: deletion 6, 3, 1, 0 and insertion 0, 3, 5, 6 at thirds."""
    inputs = jnp.array([[[1.0], [3.0], [2.0]]])
    total = lambda x: jnp.sum(x, axis=(1, 2))  # noqa: E731
    deleted = deletion_curve(total, inputs, inputs[..., 0], num_steps=3)
    inserted = insertion_curve(total, inputs, inputs[..., 0], num_steps=3)
    np.testing.assert_allclose(deleted.scores, [[6, 3, 1, 0]])
    np.testing.assert_allclose(inserted.scores, [[0, 3, 5, 6]])
    np.testing.assert_allclose(area_under_curve(deleted), [(6 + 3) / 6 + (3 + 1) / 6 + (1 + 0) / 6], rtol=1e-6)
    np.testing.assert_allclose(area_under_curve(inserted), [(0 + 3) / 6 + (3 + 5) / 6 + (5 + 6) / 6], rtol=1e-6)
    more_steps = area_under_curve(deletion_curve(total, inputs, inputs[..., 0], num_steps=50))
    np.testing.assert_allclose(more_steps, area_under_curve(deleted), rtol=1e-5)


def test_the_true_ranking_is_more_faithful_than_its_reverse():
    inputs = jnp.asarray(texts(1)[0])
    additive = lambda x: jnp.sum(x, axis=(1, 2))  # noqa: E731
    ranking = jnp.sum(inputs, axis=-1)
    assert np.all(comprehensiveness(additive, inputs, ranking) > comprehensiveness(additive, inputs, -ranking))
    assert np.all(sufficiency(additive, inputs, ranking) < sufficiency(additive, inputs, -ranking))


def test_padding_is_neither_counted_nor_touched():
    inputs, token_scores, _ = texts(2)
    mask = np.arange(TIME) < 3
    mask = np.broadcast_to(mask, (BATCH, TIME))
    token_scores = np.nan_to_num(token_scores)
    tokens = lambda x: score(x[:, :3])  # noqa: E731
    whole = comprehensiveness(tokens, inputs, np.where(mask, token_scores, 100), mask=mask)
    np.testing.assert_allclose(whole, comprehensiveness(tokens, inputs[:, :3], token_scores[:, :3]), atol=1e-6)
    emptied = replace_top_tokens(jnp.asarray(inputs), removal_order(token_scores, mask), jnp.full(BATCH, 99))
    np.testing.assert_array_equal(emptied[:, 3:], inputs[:, 3:])
    assert not np.any(emptied[:, :3])


def test_under_jit():
    inputs, token_scores, mask = texts(3)
    run = lambda x, s, m: (comprehensiveness(score, x, s, mask=m), deletion_curve(score, x, s, mask=m).scores)  # noqa: E731
    for eager, jitted in zip(run(inputs, token_scores, mask), jax.jit(run)(inputs, token_scores, mask), strict=True):
        np.testing.assert_allclose(eager, jitted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": [0.1], "counts": [1]}, "either fractions or counts"),
        ({"fractions": [1.5]}, r"shares in \[0, 1\]"),
        ({"counts": [-1]}, "none negative"),
        ({"counts": []}, "one or more"),
        ({"mask": np.ones((BATCH, 2))}, r"mask must be \[.*one entry per token"),
        ({"token_scores": np.ones((BATCH, TIME, DIM), np.float32)}, "sum_over_dims"),
        ({"token_scores": np.ones((BATCH, 2), np.float32)}, r"must be one array \[batch, time, ...\]"),
        ({"token_scores": np.full((BATCH, TIME), np.nan, np.float32)}, "not finite"),
        ({"baseline": np.ones(7)}, "does not broadcast"),
    ],
)
def test_bad_input_is_refused(options, message):
    token_scores = options.pop("token_scores", np.ones((BATCH, TIME), np.float32))
    with pytest.raises(ValueError, match=message):
        comprehensiveness(score, np.ones((BATCH, TIME, DIM), np.float32), token_scores, **options)
