"""Discretised integrated gradients: a path from baseline to word that passes close to other words' embeddings."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.attribution.chunking import chunked_map
from jaxcore.attribution.input_checks import (
    Baseline,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_positive,
    check_score,
    checked_finite,
)
from jaxcore.attribution.integrated_gradients import Quadrature
from jaxcore.attribution.paths import polyline_integrated_gradients

AnchorSearch = Literal["greedy", "maxcount"]

SAME_WORD = 1e-6
"""Squared distance, relative to the squared norms, below which an embedding is the word (or baseline) itself."""


def discretised_integrated_gradients(
    score: Score,
    inputs: Float[Array, "batch tokens dim"],
    *,
    vocabulary: Float[Array, "words dim"],
    baseline: Baseline = 0.0,
    num_anchors: int = 30,
    num_neighbours: int = 500,
    anchor_search: AnchorSearch = "greedy",
    num_steps: int = 1,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch tokens dim"]:
    """Path integrated gradients along the lines between the points of `anchor_points`.

        DIG = sum_k (p_{k+1} - p_k) * int_0^1 grad score(p_k + a (p_{k+1} - p_k)) da

    Gradients are taken near embeddings that the model knows, not at mixtures of two words that it has never seen.
    Every coordinate moves monotonically, so completeness holds: the sum is ``score(x) - score(x')``, up to
    quadrature error.

    Args:
        score: maps embeddings to [batch]; example b's score may depend on example b only.
        inputs: word embeddings, as the model looks them up.
        vocabulary: the embedding table; leave out rows that no text should pass (special and unused tokens).
        baseline: x', broadcast against `inputs`; the source takes the embedding of the padding token. Tokens equal
            to their baseline stay where they are.
        num_anchors: points between baseline and word; the source calls them steps.
        num_neighbours: nearest words among which the next anchor is searched (500 in the source).
        anchor_search: see `anchor_points`.
        num_steps: gradient evaluations on each of the num_anchors + 1 lines.
        quadrature: the rule on each line; "left" with one step is the source's sum.
        chunk_size: gradient steps evaluated together; by default as many as fit `memory_budget` (bytes), which the
            search keeps to as well.

    Returns:
        In units of the score, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `integrated_gradients` and `anchor_points`.

    Source: Sanyal and Ren 2021 (discretized integrated gradients).
    """
    check_score(score, inputs)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    points = anchor_points(
        inputs,
        vocabulary,
        baseline=baseline,
        num_anchors=num_anchors,
        num_neighbours=num_neighbours,
        anchor_search=anchor_search,
        memory_budget=memory_budget,
    )
    values = polyline_integrated_gradients(
        score, points, num_steps=num_steps, quadrature=quadrature, chunk_size=chunk_size, memory_budget=memory_budget
    )
    return checked_finite(values, "discretised_integrated_gradients")


def anchor_points(
    inputs: Float[Array, "batch tokens dim"],
    vocabulary: Float[Array, "words dim"],
    *,
    baseline: Baseline = 0.0,
    num_anchors: int = 30,
    num_neighbours: int = 500,
    anchor_search: AnchorSearch = "greedy",
    memory_budget: int | None = None,
) -> Float[Array, "num_anchors+2 batch tokens dim"]:
    """For each token a monotone sequence of points from its baseline x' to its embedding x, close to other words.

    Found from the word's end. From the point p (at first x, with w = x the current word) the next word is an anchor
    a among w's nearest neighbours, none taken twice, made monotone coordinate by coordinate:

        c_j = a_j  if a_j lies between p_j and x'_j,  else  p_j - (p_j - x'_j) / num_anchors

    "greedy" takes the neighbour with the smallest ``|a - c|``, "maxcount" the one with the most coordinates in
    between. Then p = c and w = a. The last point is x'.

    Returns:
        The points, baseline first, word last, in the inputs' dtype.

    Raises:
        ValueError: inputs that are not [batch, tokens, dim], a vocabulary of another width or with fewer words than
            anchors (and the word and the baseline), an unknown search, counts below 1.

    Source: Sanyal and Ren 2021, sections 3.2 and 3.3.
    """
    if inputs.ndim != 3 or vocabulary.ndim != 2 or vocabulary.shape[1] != inputs.shape[2]:
        raise ValueError(
            "inputs must be [batch, tokens, dim] and the vocabulary [words, dim]: "
            f"got {list(inputs.shape)} and {list(vocabulary.shape)}"
        )
    check_positive(num_anchors=num_anchors, num_neighbours=num_neighbours)
    if anchor_search not in ("greedy", "maxcount"):
        raise ValueError(f"unknown anchor_search {anchor_search!r}: expected greedy or maxcount")
    if len(vocabulary) < num_anchors + 2:
        raise ValueError(f"{num_anchors} anchors need at least {num_anchors + 2} words: got {len(vocabulary)}")
    dtype = accumulation_dtype(inputs)
    words = jnp.asarray(vocabulary, dtype)
    start = broadcast_baseline(baseline, inputs)
    neighbours = min(num_neighbours, len(words))

    def points_of(word_and_baseline: tuple[Array, Array]) -> Array:
        word, origin = (x.astype(dtype) for x in word_and_baseline)
        return _descent(word, origin, words, num_anchors, neighbours, anchor_search)

    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[2])  # noqa: E731
    points = chunked_map(points_of, (rows(inputs), rows(start)), memory_budget=memory_budget)
    between = jnp.moveaxis(points, 1, 0).reshape(num_anchors, *inputs.shape)[::-1]
    return jnp.concatenate([start[None], between.astype(start.dtype), jnp.asarray(inputs)[None]])


def _descent(
    word: Float[Array, " dim"],
    origin: Float[Array, " dim"],
    words: Float[Array, "words dim"],
    num_anchors: int,
    num_neighbours: int,
    anchor_search: AnchorSearch,
) -> Float[Array, "num_anchors dim"]:
    """The monotone points of one token, from next to the word to next to the baseline."""
    norms = jnp.sum(words**2, axis=1)

    def squared_distances(vector: Array) -> Array:
        products = jnp.matmul(words, vector, precision=jax.lax.Precision.HIGHEST)
        return norms - 2 * products + jnp.sum(vector**2)

    def is_other_than(vector: Array) -> Bool[Array, " words"]:
        return squared_distances(vector) > SAME_WORD * (norms + jnp.sum(vector**2))

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
        current, point, is_free = carry
        distances, nearest = jax.lax.top_k(-jnp.where(is_free, squared_distances(current), jnp.inf), num_neighbours)
        anchors = words[nearest]
        is_between = (anchors - point) * (anchors - origin) <= 0
        monotone = jnp.where(is_between, anchors, point - (point - origin) / num_anchors)
        if anchor_search == "greedy":
            cost = jnp.sum((anchors - monotone) ** 2, axis=1)
        else:
            cost = -jnp.sum(is_between, axis=1, dtype=word.dtype)
        best = jnp.argmin(jnp.where(jnp.isfinite(distances), cost, jnp.inf))
        return (anchors[best], monotone[best], is_free.at[nearest[best]].set(False)), monotone[best]

    carry = (word, word, is_other_than(word) & is_other_than(origin))
    return jax.lax.scan(step, carry, None, length=num_anchors)[1]
