"""Authorship attribution in closed sets: who of N candidates wrote this text, given S texts of each.

(Attribution here is the philological word. How a prediction is explained is `jaxcore.attribution`; whether
such explanations find known markers is `token_attribution`.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcore.evaluation.bootstrap import ConfidenceInterval, bootstrap_interval
from jaxcore.evaluation.input_checks import (
    binary_labels,
    class_codes,
    finite_array,
    positive_integer,
    same_length,
)


def centroid_attribution(
    support: Float[ArrayLike, "authors texts dim"], queries: Float[ArrayLike, "queries dim"]
) -> Float[Array, "queries authors"]:
    """Cosine of every query with every author's centroid; works under `jit`.

    `scores[q, n] = u_q . c_n`, u = x / |x|, `c_n = m_n / |m_n|`, `m_n = (1/S) sum_s u_ns`: the mean of the
    normalised support embeddings, renormalised. A zero vector scores 0. float32 or wider, at full matmul
    precision.

    Args:
        support: embeddings of S support texts for each of N authors.
        queries: embeddings of the texts to attribute.
    Raises:
        ValueError: axes other than [N, S, D] and [Q, D], no support text, or different D.
    Source: star.md, section 2.6 (attribution, closed set).
    """
    if np.ndim(support) != 3 or np.ndim(queries) != 2 or np.shape(support)[-1] != np.shape(queries)[-1]:
        raise ValueError(
            f"support must be [authors, texts, dim] and queries [queries, dim], got {np.shape(support)} and "
            f"{np.shape(queries)}"
        )
    if 0 in np.shape(support):
        raise ValueError(f"support is empty (shape {np.shape(support)}); give every author at least one text")
    centroids = _unit(_unit(support).mean(axis=1))
    return jnp.einsum("qd,nd->qn", _unit(queries), centroids, precision=jax.lax.Precision.HIGHEST)


def anchor_replica_accuracy(
    anchors: Float[ArrayLike, "authors dim"], replicas: Float[ArrayLike, "authors dim"], *, top_k: int = 1
) -> Float[Array, ""]:
    """Share of authors whose replica is among the k nearest to their anchor, averaged over both directions.

    Row i of both arrays belongs to author i; cosine similarity; chance is min(k, N) / N. PART's protocol with
    one text each; with means of several views it is STAR's training monitor. Works under `jit`.

    Args:
        anchors, replicas: two embeddings, or means of embeddings, per author.
        top_k: k >= 1.
    Raises:
        ValueError: shapes that differ or are not [N, D]; top_k < 1.
    Source: star.md, section 2.6 (batch accuracy) and Metrics (PART's protocol).
    """
    if np.ndim(anchors) != 2 or np.shape(anchors) != np.shape(replicas):
        raise ValueError(
            f"anchors and replicas must both be [authors, dim], got {np.shape(anchors)} and {np.shape(replicas)}"
        )
    positive_integer("top_k", top_k)
    scores = centroid_attribution(jnp.asarray(anchors)[:, None], replicas)
    own = jnp.arange(scores.shape[0])
    forward, backward = _standing(scores.T, own), _standing(scores, own)
    return (forward.hits(top_k).mean() + backward.hits(top_k).mean()) / 2


@dataclass(frozen=True, eq=False)
class NWayResult:
    """Accuracy at (N, S): attribution among N candidates with S support texts each, over draws of authors.

    Attributes:
        num_candidates: N.
        num_support: S.
        num_queries: query texts of every author in a draw.
        mean, sd: of the top-1 accuracy over draws (sd with n - 1).
        top5: mean top-5 accuracy.
        chance, chance_top5: 1 / N and min(5, N) / N.
        confidence_interval: bootstrap interval of `mean` over draws. It is about the draws from this pool;
            for other authors of the same kind resample authors:
            `bootstrap_interval(result.hits.ravel(), groups=result.authors.ravel())`.
        per_draw, per_draw_top5: [draws] accuracies.
        hits: [draws, N * num_queries] top-1 outcome of every query, in [0, 1] (fractional only on ties).
        authors: [draws, N * num_queries] who wrote the query, as given in `authors`.
    """

    num_candidates: int
    num_support: int
    num_queries: int
    mean: float
    sd: float
    top5: float
    chance: float
    chance_top5: float
    confidence_interval: ConfidenceInterval
    per_draw: Float[np.ndarray, "draws"] = field(repr=False)
    per_draw_top5: Float[np.ndarray, "draws"] = field(repr=False)
    hits: Float[np.ndarray, "draws outcomes"] = field(repr=False)
    authors: np.ndarray = field(repr=False)


def nway_protocol(
    embeddings: Float[ArrayLike, "n dim"],
    authors: Shaped[np.ndarray, "n"] | Sequence,
    *,
    num_candidates: int,
    num_support: int,
    draws: int = 100,
    rng: np.random.Generator | int,
    num_queries: int = 1,
    support_mask: Bool[ArrayLike, "n"] | None = None,
    query_mask: Bool[ArrayLike, "n"] | None = None,
    level: float = 0.95,
) -> NWayResult:
    """Accuracy@(N, S) of centroid attribution over many draws.

    Every draw picks N eligible authors anew, then S support and Q query texts of each at random, never the
    same text for both. A query's tie with another candidate counts as a fair coin would decide it, so that
    collapsed embeddings score 1 / N.

    Args:
        embeddings: [n, D], finite; need not be normalised.
        authors: [n] author of every text (integers or strings).
        num_candidates: N >= 2.
        num_support: S >= 1.
        draws: >= 2; star.md asks for at least 100.
        rng: generator, or a seed.
        num_queries: Q >= 1 query texts of every author in a draw.
        support_mask, query_mask: [n] texts that may serve as support and as query (all by default), for
            instance of disjoint topics, books, or threads.
        level: coverage of the interval.
    Raises:
        ValueError: fewer than N authors with enough texts (says how many there are), wrong shapes, NaN,
            counts out of range.
    Source: star.md, section 2.6 and Metrics (Accuracy@(N, S), >= 100 draws).
    """
    grid = nway_grid(
        embeddings,
        authors,
        candidate_counts=(num_candidates,),
        support_counts=(num_support,),
        draws=draws,
        rng=rng,
        num_queries=num_queries,
        support_mask=support_mask,
        query_mask=query_mask,
        level=level,
    )
    return grid[num_candidates, num_support]


def nway_grid(
    embeddings: Float[ArrayLike, "n dim"],
    authors: Shaped[np.ndarray, "n"] | Sequence,
    *,
    candidate_counts: Sequence[int],
    support_counts: Sequence[int],
    draws: int = 100,
    rng: np.random.Generator | int,
    num_queries: int = 1,
    support_mask: Bool[ArrayLike, "n"] | None = None,
    query_mask: Bool[ArrayLike, "n"] | None = None,
    level: float = 0.95,
) -> dict[tuple[int, int], NWayResult]:
    """`nway_protocol` for every N and S, as {(N, S): result}.

    For one N all S share authors, queries, and nested supports (the first S of the same texts), so that their
    differences are paired over draws; every author must have enough texts for the largest S.

    Args:
        candidate_counts: the values of N.
        support_counts: the values of S.
        (the others): as in `nway_protocol`.
    Raises:
        ValueError: as `nway_protocol`; an empty list of N or S.
    Source: star.md, Metrics and full scale (Reddit N-by-S grid).
    """
    if not len(candidate_counts) or not len(support_counts):
        raise ValueError(f"the grid is empty: N in {list(candidate_counts)}, S in {list(support_counts)}")
    sizes = tuple(sorted({positive_integer("num_support", size) for size in support_counts}))
    queries, draws = positive_integer("num_queries", num_queries), positive_integer("draws", draws, minimum=2)
    pool = _text_pool(embeddings, authors, support_mask, query_mask)
    generator = np.random.default_rng(rng)
    vectors = jnp.asarray(pool.embeddings)
    results = {}
    for count in candidate_counts:
        count = positive_integer("num_candidates", count, minimum=2)
        eligible = _eligible(pool, count, sizes[-1], queries)
        candidates = np.stack([generator.choice(eligible, count, replace=False) for _ in range(draws)])
        pairs = [_draw_texts(pool, row, sizes[-1], queries, generator) for row in candidates]
        support, query = (np.stack(parts) for parts in zip(*pairs, strict=True))
        top1, top5 = _outcomes_of_draws(vectors, support, query, sizes=sizes)
        written_by = pool.names[np.repeat(candidates, queries, axis=1)]
        for index, size in enumerate(sizes):
            outcomes = np.asarray(top1[:, index], np.float64), np.asarray(top5[:, index], np.float64)
            results[count, size] = _summary(outcomes, written_by, count, size, queries, level, generator)
    return results


def macro_f1_open_set(true: Sequence, predicted: Sequence, *, unknown: Any) -> float:
    """Macro-F1 of open-set attribution as in PAN19: `mean over true classes c != unknown of F1_c`.

    A predicted author who is not among the true ones counts as `unknown`. `unknown` itself is not averaged
    over, but a text of an unknown author given to a candidate costs that candidate precision, and a
    candidate's text left `unknown` costs recall.

    Args:
        true: [n] true authors, `unknown` for texts by none of the candidates.
        predicted: [n] predicted authors, `unknown` for texts left unattributed.
        unknown: the label of "none of the candidates", for instance "<UNK>".
    Raises:
        ValueError: lengths differ, empty, or no true label besides `unknown`.
    Source: star.md, Metrics (Macro-F1; PAN19 evaluator).
    """
    from sklearn.metrics import f1_score  # it takes more than a second to import

    true, predicted = list(true), list(predicted)
    same_length(true=true, predicted=predicted)
    known = {author: code for code, author in enumerate(dict.fromkeys(a for a in true if a != unknown), start=1)}
    if not known:
        raise ValueError(f"no true author besides {unknown!r} among {len(true)} texts; F1 has no class to average")
    gold, silver = ([known.get(author, 0) for author in side] for side in (true, predicted))
    return float(f1_score(gold, silver, labels=list(known.values()), average="macro", zero_division=0))


class _Standing(NamedTuple):
    """How the right candidate stands in each query's ranking."""

    better: Int[Array, "queries"]
    equal: Int[Array, "queries"]  # itself included

    def hits(self, k: int) -> Float[Array, "queries"]:
        """Probability that the right candidate is among the first k when ties are broken at random."""
        return jnp.clip((k - self.better) / self.equal, 0.0, 1.0)


def _standing(scores: Float[Array, "queries authors"], own: Int[Array, "queries"]) -> _Standing:
    right = jnp.take_along_axis(scores, own[:, None], axis=1)
    return _Standing((scores > right).sum(axis=1), (scores == right).sum(axis=1))


def _unit(vectors: ArrayLike) -> Array:
    x = jnp.asarray(vectors)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)


@partial(jax.jit, static_argnames="sizes")
def _outcomes_of_draws(
    vectors: Float[Array, "n dim"],
    support: Int[Array, "draws authors texts"],
    query: Int[Array, "draws authors texts"],
    *,
    sizes: tuple[int, ...],
) -> tuple[Float[Array, "draws sizes outcomes"], Float[Array, "draws sizes outcomes"]]:
    """Top-1 and top-5 outcomes of every query for every number of support texts."""
    own = jnp.repeat(jnp.arange(query.shape[1]), query.shape[2])

    def one_draw(indices):
        support, query = indices
        texts, asked = vectors[support], vectors[query.reshape(-1)]
        standings = [_standing(centroid_attribution(texts[:, :size], asked), own) for size in sizes]
        return tuple(jnp.stack([standing.hits(k) for standing in standings]) for k in (1, 5))

    return jax.lax.map(one_draw, (support, query))  # one draw at a time: memory does not grow with draws


class _TextPool(NamedTuple):
    """Texts sorted by author: those of author a are `order[starts[a] : starts[a] + counts[a]]`."""

    embeddings: Float[np.ndarray, "n dim"]
    names: np.ndarray
    order: Int[np.ndarray, "n"]
    starts: Int[np.ndarray, "authors"]
    counts: Int[np.ndarray, "authors"]
    codes: Int[np.ndarray, "n"]
    may_support: Bool[np.ndarray, "n"]
    may_query: Bool[np.ndarray, "n"]


def _text_pool(embeddings: Any, authors: Any, support_mask: Any, query_mask: Any) -> _TextPool:
    vectors = finite_array("embeddings", embeddings, ndim=2).astype(np.float32)
    codes, names = class_codes("authors", authors)
    same_length(embeddings=vectors, authors=codes)
    masks = []
    for name, mask in (("support_mask", support_mask), ("query_mask", query_mask)):
        checked = np.ones(len(codes), bool) if mask is None else binary_labels(name, mask)
        same_length(**{"embeddings": vectors, name: checked})
        masks.append(checked)
    counts = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    order = np.argsort(codes, kind="stable")
    return _TextPool(vectors, names, order, starts, counts, codes, masks[0], masks[1])


def _eligible(pool: _TextPool, num_candidates: int, num_support: int, num_queries: int) -> Int[np.ndarray, "k"]:
    """Authors whose texts allow S for support and Q others as queries (Hall's condition for two sets)."""

    def texts_of_authors(allowed: np.ndarray) -> np.ndarray:
        return np.bincount(pool.codes[allowed], minlength=len(pool.names))

    support, query = texts_of_authors(pool.may_support), texts_of_authors(pool.may_query)
    either = texts_of_authors(pool.may_support | pool.may_query)
    enough = (support >= num_support) & (query >= num_queries) & (either >= num_support + num_queries)
    eligible = np.flatnonzero(enough)
    if len(eligible) < num_candidates:
        raise ValueError(
            f"num_candidates is {num_candidates}, but only {len(eligible)} of {len(pool.names)} authors have "
            f"{num_support} support and {num_queries} other query texts (at most {support.max()} support and "
            f"{query.max()} query texts, {either.max()} in all); lower one of the three counts"
        )
    return eligible


def _draw_texts(
    pool: _TextPool,
    authors: Int[np.ndarray, "N"],
    num_support: int,
    num_queries: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "N S"], Int[np.ndarray, "N Q"]]:
    """Disjoint support and query texts of each author, in random order."""
    column = np.arange(pool.counts[authors].max())
    exists = column < pool.counts[authors][:, None]
    texts = pool.order[np.minimum(pool.starts[authors][:, None] + column, len(pool.order) - 1)]
    may_support, may_query = pool.may_support[texts] & exists, pool.may_query[texts] & exists
    shared = may_support & may_query
    # Where an author has fewer than Q query-only texts, some texts fit for both must be left to the queries.
    short = num_queries - (may_query & ~shared).sum(axis=1, keepdims=True)
    reserved = _first_in_random_order(shared, np.maximum(short, 0), rng)
    support = _first_in_random_order(may_support & (reserved < 0), num_support, rng)
    query = _first_in_random_order(may_query & (support < 0), num_queries, rng)
    return _in_order(texts, support, num_support), _in_order(texts, query, num_queries)


def _first_in_random_order(
    allowed: Bool[np.ndarray, "N M"], count: int | np.ndarray, rng: np.random.Generator
) -> Int[np.ndarray, "N M"]:
    """Positions 0..count-1 of the allowed entries that come first in a random order of the row, else -1."""
    keys = np.where(allowed, rng.random(allowed.shape), np.inf)
    position = np.argsort(np.argsort(keys, axis=1), axis=1)
    return np.where(allowed & (position < count), position, -1)


def _in_order(
    texts: Int[np.ndarray, "N M"], position: Int[np.ndarray, "N M"], count: int
) -> Int[np.ndarray, "N count"]:
    """The entries with positions 0..count-1 of each row, in that order."""
    last_first = np.where(position < 0, position.shape[1], position)
    return np.take_along_axis(texts, np.argsort(last_first, axis=1, kind="stable")[:, :count], axis=1)


def _summary(
    outcomes: tuple[np.ndarray, np.ndarray],
    written_by: np.ndarray,
    num_candidates: int,
    num_support: int,
    num_queries: int,
    level: float,
    rng: np.random.Generator,
) -> NWayResult:
    top1, top5 = outcomes
    per_draw, per_draw_top5 = top1.mean(axis=1), top5.mean(axis=1)
    return NWayResult(
        num_candidates=num_candidates,
        num_support=num_support,
        num_queries=num_queries,
        mean=float(per_draw.mean()),
        sd=float(per_draw.std(ddof=1)),
        top5=float(per_draw_top5.mean()),
        chance=1 / num_candidates,
        chance_top5=min(5, num_candidates) / num_candidates,
        confidence_interval=bootstrap_interval(per_draw, level=level, rng=rng),
        per_draw=per_draw,
        per_draw_top5=per_draw_top5,
        hits=top1,
        authors=written_by,
    )
