"""Discretised integrated gradients: monotone paths, the search against a plain loop, completeness."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import completeness_error
from jaxcore.attribution.discretised_path import anchor_points, discretised_integrated_gradients

VOCABULARY = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
PADDING = 0
TOKENS = np.array([[3, 7, 12], [25, 3, PADDING]])
INPUTS = jnp.asarray(VOCABULARY[TOKENS])
OPTIONS = {"baseline": VOCABULARY[PADDING], "num_anchors": 5, "num_neighbours": 10}


def score(x):
    return jnp.sum(jnp.tanh(x @ jnp.asarray(VOCABULARY[:4].T)), axis=(1, 2)) ** 2


def reference(word, origin, anchor_search):
    """The points from the word (left out) towards the baseline (left out), for word ids."""
    used, current, point, points = {word, origin}, word, VOCABULARY[word], []
    for _ in range(OPTIONS["num_anchors"]):
        distances = np.linalg.norm(VOCABULARY - VOCABULARY[current], axis=1)
        candidates = [i for i in np.argsort(distances) if i not in used][: OPTIONS["num_neighbours"]]
        best = None
        for i in candidates:
            low, high = np.minimum(point, VOCABULARY[origin]), np.maximum(point, VOCABULARY[origin])
            inside = (low <= VOCABULARY[i]) & (VOCABULARY[i] <= high)
            moved = np.where(inside, VOCABULARY[i], point - (point - VOCABULARY[origin]) / OPTIONS["num_anchors"])
            cost = np.linalg.norm(moved - VOCABULARY[i]) if anchor_search == "greedy" else -inside.sum()
            if best is None or cost < best[0]:
                best = (cost, i, moved)
        _, current, point = best
        used.add(current)
        points.append(point)
    return points


@pytest.mark.parametrize("anchor_search", ["greedy", "maxcount"])
def test_points_equal_a_plain_search(anchor_search):
    points = anchor_points(INPUTS, VOCABULARY, anchor_search=anchor_search, **OPTIONS)
    assert points.shape == (7, *INPUTS.shape)
    for row, token in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        expected = reference(TOKENS[row, token], PADDING, anchor_search)[::-1]
        np.testing.assert_allclose(points[1:-1, row, token], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(points[:, 0, 0], points[:, 1, 1])  # the same word takes the same path


def test_every_coordinate_moves_monotonically_from_baseline_to_word():
    points = anchor_points(INPUTS, VOCABULARY, **OPTIONS)
    np.testing.assert_array_equal(points[-1], INPUTS)
    np.testing.assert_array_equal(points[0], jnp.broadcast_to(VOCABULARY[PADDING], INPUTS.shape))
    direction = jnp.sign(points[-1] - points[0])
    assert bool(jnp.all(jnp.diff(points, axis=0) * direction >= -1e-6))
    np.testing.assert_allclose(points[:, 1, 2], np.tile(VOCABULARY[PADDING], (7, 1)))  # padding stays


def test_points_lie_closer_to_words_than_the_straight_line():
    """In a plane full of words; both paths have the same number of points."""
    words = np.random.default_rng(1).standard_normal((400, 2)).astype(np.float32)
    inputs = jnp.asarray(words[None, 10:40])
    points = anchor_points(inputs, words, baseline=words[0], num_anchors=5, num_neighbours=100)[1:-1, 0]
    straight = words[0] + jnp.linspace(0, 1, 7)[1:-1, None, None] * (inputs[0] - words[0])
    gap = lambda x: float(jnp.linalg.norm(x[..., None, :] - words, axis=-1).min(-1).mean())  # noqa: E731
    assert gap(points) < 0.5 * gap(straight)


@pytest.mark.parametrize("anchor_search", ["greedy", "maxcount"])
def test_completeness(anchor_search):
    values = discretised_integrated_gradients(
        score, INPUTS, vocabulary=VOCABULARY, anchor_search=anchor_search, num_steps=8, chunk_size=48, **OPTIONS
    )
    change = score(INPUTS) - score(jnp.broadcast_to(VOCABULARY[PADDING], INPUTS.shape))
    assert float(jnp.abs(change).min()) > 0.5
    error = completeness_error(score, INPUTS, values, baseline=VOCABULARY[PADDING])
    np.testing.assert_allclose(error, 0, atol=1e-3 * float(jnp.abs(change).max()))
    np.testing.assert_array_equal(values[1, 2], 0)


def test_the_left_rule_is_the_sources_sum():
    points = anchor_points(INPUTS, VOCABULARY, **OPTIONS)
    gradient = jax.grad(lambda x: jnp.sum(score(x)))
    expected = sum(gradient(a) * (b - a) for a, b in itertools.pairwise(points))
    values = jax.jit(
        lambda x: discretised_integrated_gradients(
            score, x, vocabulary=VOCABULARY, quadrature="left", chunk_size=2, **OPTIONS
        )
    )(INPUTS)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_bad_input_is_named():
    for inputs, options, message in [
        (INPUTS[0], {}, r"inputs must be \[batch, tokens, dim\]"),
        (INPUTS, {"vocabulary": VOCABULARY[:, :4]}, r"the vocabulary \[words, dim\]"),
        (INPUTS, {"anchor_search": "random"}, "unknown anchor_search 'random'"),
        (INPUTS, {"num_anchors": 39}, "39 anchors need at least 41 words: got 40"),
        (INPUTS, {"num_neighbours": 0}, "num_neighbours must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            discretised_integrated_gradients(
                lambda x: jnp.sum(x, axis=tuple(range(1, x.ndim))), inputs, **{"vocabulary": VOCABULARY, **options}
            )
