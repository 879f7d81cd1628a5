"""Localisation on device against plain loops in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.span_localisation import (
    attention_scores,
    localise_tokens,
    localise_windows,
    mean_state,
    piece_scores,
    supported_runs,
)

runs = jax.jit(jax.vmap(functools.partial(supported_runs, max_gap=2, min_run=3)))
tokens = jax.jit(functools.partial(localise_tokens, threshold=0.4, max_gap=1, min_run=2))
OPTIONS = {"num_anchors": 3, "max_length": 4, "min_share": 0.7, "max_windows": 3}
scores_of_pieces = jax.jit(functools.partial(piece_scores, num_pieces=40))
attended = jax.jit(attention_scores)
windows = jax.jit(functools.partial(localise_windows, **OPTIONS))


def runs_by_hand(chosen, pieces, max_gap, min_run):
    kept = chosen & (pieces >= 0)
    filled = kept.copy()
    places = np.flatnonzero(kept)
    for first, second in itertools.pairwise(places):
        if second - first - 1 <= max_gap and pieces[first] == pieces[second]:
            filled[first:second] = True
    result, begin = np.zeros_like(filled), 0
    while begin < len(filled):
        end = begin
        while end < len(filled) and filled[end] and pieces[end] == pieces[begin]:
            end += 1
        if end - begin >= min_run:
            result[begin:end] = True
        begin = max(end, begin + 1)
    return result


def random_pieces(rng, size):
    lengths = rng.integers(1, 9, size)
    pieces = np.repeat(np.arange(size), lengths)[:size]
    pieces[rng.integers(size - 6, size) :] = -1
    return pieces.astype(np.int32)


def test_runs_close_gaps_and_drop_short_ones_within_pieces():
    rng = np.random.default_rng(0)
    pieces = np.stack([random_pieces(rng, 40) for _ in range(60)])
    chosen = rng.random(pieces.shape) < rng.random((60, 1))
    expected = np.stack([runs_by_hand(c, p, 2, 3) for c, p in zip(chosen, pieces, strict=True)])
    np.testing.assert_array_equal(runs(jnp.asarray(chosen), jnp.asarray(pieces)), expected)
    assert 0.1 < expected.mean() < 0.9


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(1)
    source, query = rng.standard_normal((40, 5)), rng.standard_normal((6, 5))
    return source.astype(np.float32), random_pieces(rng, 40), query.astype(np.float32), np.arange(6) < 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_tokens_are_those_near_a_query_token_and_padding_decides_nothing(row):
    source, pieces, query, mask = row
    found = tokens(*map(jnp.asarray, row))
    best = (unit(source) @ unit(query[mask]).T).max(1)
    np.testing.assert_allclose(found.scores, np.where(pieces >= 0, best, -1), atol=1e-6)
    np.testing.assert_array_equal(found.kept, runs_by_hand(best > 0.4, pieces, 1, 2))
    spoiled = (
        np.where((pieces >= 0)[:, None], source, query[0]),
        pieces,
        np.where(mask[:, None], query, source[0]),
        mask,
    )
    np.testing.assert_array_equal(tokens(*map(jnp.asarray, spoiled)).kept, found.kept)
    assert not tokens(source, pieces, query, np.zeros(6, bool)).kept.any()


def test_a_piece_s_score_is_the_mean_over_query_tokens_of_its_nearest_token(row):
    source, pieces, query, mask = row
    found = np.asarray(scores_of_pieces(*map(jnp.asarray, row)))
    cosines = unit(source) @ unit(query[mask]).T
    for piece in range(40):
        inside = pieces == piece
        expected = cosines[inside].max(0).mean() if inside.any() else -1.0
        assert found[piece] == pytest.approx(expected, abs=1e-6)


def test_windows_are_those_of_an_exhaustive_search(row):
    source, pieces, query, mask = row
    source, target = unit(source), unit(unit(query[mask]).sum(0))
    cosines = np.where(pieces >= 0, source @ target, -np.inf)
    anchors = set(np.argsort(-cosines)[:3].tolist())
    table = {}
    for start in range(40):
        for end in range(start + 1, min(start + 4, 40) + 1):
            one_piece = pieces[start] >= 0 and len(set(pieces[start:end])) == 1
            if one_piece and anchors & set(range(start, end)):
                table[start, end] = float(unit(source[start:end].sum(0)) @ target)
    expected, best = np.zeros(40, bool), max(table.values())
    for _ in range(3):
        (start, end), score = max(table.items(), key=lambda item: item[1])
        if score < 0.7 * best:
            break
        expected[start:end] = True
        table = {(a, b): s for (a, b), s in table.items() if b <= start or a >= end}
        if not table:
            break
    found = windows(*map(jnp.asarray, row))
    np.testing.assert_array_equal(found.kept, expected)
    assert expected.any()


def test_a_shared_part_of_all_states_goes_with_their_mean(row):
    source, pieces, *_ = row
    shifted = jnp.asarray(source + 100.0)
    mean = jax.jit(mean_state)(shifted, jnp.asarray(pieces >= 0))
    np.testing.assert_allclose(mean, (source + 100.0)[pieces >= 0].mean(0), rtol=1e-5)


def test_attention_scores_remove_what_all_output_tokens_attend_to():
    """Tokens 0-3 are sources, 4-6 output, 6 asked. Token 0 is a sink; 6 attends to 2 more than the others do."""
    attention = np.zeros((2, 7, 7), np.float32)
    attention[:, 4:, 0] = 0.6
    attention[:, 4:6, 1] = 0.4
    attention[:, 6, 2] = 0.4
    source, output, query = np.arange(7) < 4, np.arange(7) >= 4, np.arange(7) == 6
    scores = attended(*map(jnp.asarray, (attention, source, query, output)))
    np.testing.assert_allclose(scores, [0, -0.8 / 3, 0.8 / 3, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(attended(attention * 0.5, source, query, output), scores, atol=1e-6)
