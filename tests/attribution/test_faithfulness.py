"""Removal measures against loops that delete tokens one text at a time, and scores whose curves are known."""

import functools

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


PAIR_BASELINE = {"left": np.float32(0.5), "right": np.array([0.1, -0.2, 0.3], np.float32)}


def pair_score(pair):
    left, right = (jnp.sum(jnp.sin(x), axis=(1, 2)) for x in (pair["left"], pair["right"]))
    return jnp.tanh(left * right) + jnp.cos(left)


def pairs(seed):
    """Two texts of their own lengths and widths; every pair has a token, not every text."""
    rng = np.random.default_rng(seed)
    shapes = {"left": (BATCH, 4, 2), "right": (BATCH, 3, 3)}
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    mask = rng.permuted(np.arange(7) < rng.integers(1, 8, (BATCH, 1)), axis=1)
    masks = {"left": mask[:, :4], "right": mask[:, 4:]}
    scores = {name: np.where(m, rng.integers(0, 4, m.shape), np.nan).astype(np.float32) for name, m in masks.items()}
    return inputs, scores, masks


def changed_pairs_by_loop(inputs, token_scores, masks, counts, keep):
    result = {name: x.copy() for name, x in inputs.items()}
    for row, count in enumerate(counts):
        tokens = [(name, t) for name in inputs for t in np.flatnonzero(masks[name][row])]
        order = sorted(tokens, key=lambda token: -token_scores[token[0]][row, token[1]])  # stable: ties by leaf
        for name, t in order[count:] if keep else order[:count]:
            result[name][row, t] = PAIR_BASELINE[name]
    return result


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tokens_of_all_leaves_stand_in_one_order(seed):
    inputs, token_scores, masks = pairs(seed)
    options = {"mask": masks, "baseline": PAIR_BASELINE, "chunk_size": 3}
    lengths = sum(m.sum(axis=1) for m in masks.values())
    counts = [np.minimum(k, lengths) for k in (1, 3)]
    for measure, keep in ((comprehensiveness, False), (sufficiency, True)):
        after = [pair_score(changed_pairs_by_loop(inputs, token_scores, masks, c, keep)) for c in counts]
        values = measure(pair_score, inputs, token_scores, counts=[1, 3], **options)
        np.testing.assert_allclose(values, pair_score(inputs) - np.mean(after, axis=0), atol=1e-5)
    for curve, keep in ((deletion_curve, False), (insertion_curve, True)):
        points = curve(pair_score, inputs, token_scores, num_steps=2, **options)
        steps = np.floor(np.arange(3)[:, None] * lengths / 2 + 0.5).astype(int)
        after = [pair_score(changed_pairs_by_loop(inputs, token_scores, masks, c, keep)) for c in steps]
        np.testing.assert_allclose(points.scores, np.transpose(after), atol=1e-5)
        np.testing.assert_allclose(points.fractions, (steps / lengths).T, rtol=1e-6)


def test_a_mask_that_leaves_nothing_is_refused_where_it_can_be_seen():
    inputs, token_scores, mask = texts(0)
    mask = mask.copy()
    mask[1] = False
    calls = [
        functools.partial(measure, score, inputs, token_scores)
        for measure in (comprehensiveness, sufficiency, deletion_curve, insertion_curve)
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"leaves nothing to attribute in 1 of 3 examples \(rows 1\)"):
            call(mask=mask)
    with pytest.raises(ValueError, match=r"in 3 of 3 examples"):
        comprehensiveness(score, inputs[:, :0], token_scores[:, :0])
    # Rows that fill up a batch inside jit: nothing can be raised there.
    values = jax.jit(lambda m: comprehensiveness(score, inputs, token_scores, mask=m, chunk_size=5))(mask)
    rest = np.array([0, 2])
    expected = comprehensiveness(score, inputs[rest], token_scores[rest], mask=mask[rest], chunk_size=5)
    np.testing.assert_allclose(values[rest], expected, atol=1e-6)
    assert values[1] == 0
    pair, pair_scores, masks = pairs(0)
    one_side = {"left": np.zeros_like(masks["left"]), "right": np.ones_like(masks["right"])}
    pair_scores = jax.tree.map(np.nan_to_num, pair_scores)
    assert np.all(np.isfinite(comprehensiveness(pair_score, pair, pair_scores, mask=one_side, chunk_size=5)))
    one_side["right"][2] = False
    with pytest.raises(ValueError, match=r"\(rows 2\)"):
        comprehensiveness(pair_score, pair, pair_scores, mask=one_side)


def test_the_empty_bin_of_the_papers_formula():
    """ERASER's paper divides by |B| + 1: nothing removed adds 0, nothing kept adds the whole fall."""
    inputs, token_scores, mask = texts(4)
    options = {"mask": mask, "chunk_size": 3}
    bins = (0.0, *ERASER_FRACTIONS)
    removed, kept = (
        [measure(score, inputs, token_scores, **options, **given) for given in ({}, {"fractions": bins})]
        for measure in (comprehensiveness, sufficiency)
    )
    np.testing.assert_allclose(removed[1], removed[0] * 5 / 6, rtol=1e-5, atol=1e-6)
    fall = score(inputs) - score(np.where(mask[..., None], 0, inputs))
    np.testing.assert_allclose(kept[1], (5 * kept[0] + fall) / 6, rtol=1e-5, atol=1e-6)


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
        ({"fractions": [np.nan]}, r"shares in \[0, 1\]"),
        ({"counts": []}, "one or more"),
        ({"counts": [1, 1.5]}, "whole numbers of tokens"),
        ({"chunk_size": 2.5}, "chunk_size must be a whole number: got 2.5"),
        ({"memory_budget": 1e9}, "memory_budget must be a whole number"),
        ({"mask": np.ones((BATCH, 2))}, r"mask must be \[.*one entry per token"),
        ({"token_scores": np.ones((BATCH, TIME, DIM), np.float32)}, "sum_over_dims"),
        ({"token_scores": np.ones((BATCH, 2), np.float32)}, r"like their token scores, \[3, 2\]: got \[3, 6, 2\]"),
        ({"token_scores": [np.ones((BATCH, TIME), np.float32)]}, r"like their token scores, \[\[3, 6\]\]"),
        ({"token_scores": {}}, "got no array"),
        ({"mask": {"left": np.ones((BATCH, TIME))}}, r"mask must be \[3, 6\], one entry per token: got \[\]"),
        ({"token_scores": np.full((BATCH, TIME), np.nan, np.float32)}, "not finite"),
        ({"baseline": np.ones(7)}, "does not broadcast"),
    ],
)
def test_bad_input_is_refused(options, message):
    token_scores = options.pop("token_scores", np.ones((BATCH, TIME), np.float32))
    with pytest.raises(ValueError, match=message):
        comprehensiveness(score, np.ones((BATCH, TIME, DIM), np.float32), token_scores, **options)


def test_a_pair_is_refused_by_its_leaf():
    inputs, token_scores, masks = pairs(0)
    token_scores = jax.tree.map(np.nan_to_num, token_scores)
    for scores, options, message in [
        (token_scores["left"], {}, r"like their token scores, \[3, 4\]: got .*'right': \[3, 3, 3\]"),
        (token_scores | {"right": token_scores["right"][:2]}, {}, r"must be \[batch, time\]: got \[3, 4\], \[2, 3\]"),
        (token_scores, {"mask": masks["left"]}, "mask must have the structure"),
        (token_scores, {"mask": masks | {"right": masks["left"]}}, r"mask must be \[3, 3\].*got \[3, 4\]"),
        (token_scores, {"baseline": np.zeros(2)}, "baseline must be a number or have the structure"),
    ]:
        with pytest.raises(ValueError, match=message):
            sufficiency(pair_score, inputs, scores, **options)
    with pytest.raises(ValueError, match=r"num_steps must be a whole number: got 2\.5"):
        deletion_curve(pair_score, inputs, token_scores, num_steps=2.5)
    with pytest.raises(ValueError, match="like their token scores"):
        replace_top_tokens(inputs, removal_order(token_scores["left"]), np.ones(BATCH, int))
