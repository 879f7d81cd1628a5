"""Candidate pairs of sentences: nearest by meaning, nearest by surface, and random, without all pairs in memory."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxcore.data.array_cache import cached_arrays, content_hash
from jaxcore.data.surface_similarity import SurfaceKind, length_gap, nearest_by_surface, surface_similarity
from jaxcore.distributed import BATCH_AXES, num_batch_shards, replicated
from jaxcore.losses.similarity import similarity_vectors

_RANDOM_CANDIDATES, _RANDOM_PAIRS = 301, 302  # what a random stream is for: part of its key

_ROWS_AT_ONCE = 1024
_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the operands of float32 products to bfloat16


# ---- nearest neighbours by cosine ------------------------------------------------------------------------


Vectors = Float[Array, "n dim"] | Float[np.ndarray, "n dim"]
Ids = Int[Array, " n"] | Int[np.ndarray, " n"]


class Neighbours(NamedTuple):
    """Most similar vectors of each query, best first: `indices` int32 [q, k], -1 where there are fewer than k allowed;
    `similarity` float32 [q, k], -1 there."""

    indices: Int[Array, "queries k"]
    similarity: Float[Array, "queries k"]


def nearest_by_meaning(
    vectors: Vectors,
    k: int,
    *,
    queries: Vectors | None = None,
    groups: Ids | None = None,
    query_groups: Ids | None = None,
    max_similarity: float | None = None,
    block: int = 1024,
    mesh: Mesh | None = None,
) -> Neighbours:
    """The k vectors of largest cosine with each query, exactly, in memory O(block^2 + (n + q) dim + q k).

    Blocks of the similarity matrix are visited in a scan that carries the best k so far; ties go to the lower index.
    On a mesh every device holds a shard of the vectors, finds its own best k, and the devices' lists are merged block
    by block.

    Args:
        vectors: [n, dim]; any float dtype; similarities are accumulated in float32. A zero vector has cosine 0.
        k: Neighbours wanted, at most n.
        queries: [q, dim]; the vectors themselves unless given.
        groups: [n] >= 0; a vector of the query's group is no neighbour of it (the same text). By default, where the
            queries are the vectors, only the vector itself is excluded.
        query_groups: [q], the groups of given queries; a negative one excludes nothing.
        max_similarity: Vectors of larger cosine are no neighbours (a false-negative gate).
        block: Rows and columns of a block.
        mesh: Devices to spread the vectors over (its batch axes).

    Raises:
        ValueError: Shapes that do not fit, k or block out of range, groups for queries that are not given.

    Source: debcse.md, "blocked_topk_cosine".
    """
    _check_vectors(vectors, k, queries, block)
    num_vectors = vectors.shape[0]
    if queries is None:
        if query_groups is not None:
            raise ValueError("query_groups belong to queries; give queries, or groups alone")
        queries = vectors
        groups = query_groups = np.arange(num_vectors) if groups is None else groups
    of_vectors: Ids = np.full(num_vectors, -2) if groups is None else groups
    of_queries: Ids = np.full(queries.shape[0], -1) if query_groups is None else query_groups
    for name, ids, size in (("groups", of_vectors, num_vectors), ("query_groups", of_queries, queries.shape[0])):
        if ids.shape != (size,):
            raise ValueError(f"{name} must be [{size}]: got {ids.shape}")
    limit = np.float32(np.inf if max_similarity is None else max_similarity)
    arguments: tuple = (vectors, of_vectors, queries, of_queries, limit)
    if mesh is not None and not any(isinstance(x, jax.core.Tracer) for x in arguments):
        arguments = jax.device_put(arguments, replicated(mesh))
    return _nearest(*arguments, k=k, block=block, mesh=mesh)


@partial(jax.jit, static_argnames=("k", "block", "mesh"))
def _nearest(
    vectors: Array, groups: Array, queries: Array, query_groups: Array, limit: Array, *, k: int, block: int, mesh: Mesh
) -> Neighbours:
    num_vectors, num_queries = vectors.shape[0], queries.shape[0]
    shards = 1 if mesh is None else num_batch_shards(mesh)
    block = min(block, max(num_vectors // shards, 1))
    vectors, queries = (similarity_vectors(x, normalize=True) for x in (vectors, queries))
    vectors, groups = _pad(vectors, shards * block, 0), _pad(groups.astype(jnp.int32), shards * block, -2)
    query_block = min(block, num_queries)
    queries = _pad(queries, query_block, 0).reshape(-1, query_block, queries.shape[1])
    query_groups = _pad(query_groups.astype(jnp.int32), query_block, -1).reshape(-1, query_block)
    search = partial(_search, num_vectors=num_vectors, limit=limit, k=k, block=block)
    if mesh is None:
        found = search(vectors, groups, queries, query_groups, axes=())
    else:
        split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        found = jax.shard_map(
            partial(search, axes=BATCH_AXES),
            mesh=mesh,
            in_specs=(split, split, whole, whole),
            out_specs=whole,
            check_vma=False,
        )(vectors, groups, queries, query_groups)
    indices, similarity = (x.reshape(-1, k)[:num_queries] for x in found)
    missing = similarity == -jnp.inf
    return Neighbours(jnp.where(missing, -1, indices), jnp.where(missing, -1.0, similarity))


def _search(
    vectors: Array,
    groups: Array,
    queries: Array,
    query_groups: Array,
    *,
    num_vectors: int,
    limit: Array,
    k: int,
    block: int,
    axes: tuple[str, ...],
) -> tuple[Array, Array]:
    """Indices and similarities [query blocks, rows, k] among the vectors of all devices along `axes`."""
    num_blocks, dim = vectors.shape[0] // block, vectors.shape[1]
    first = jax.lax.axis_index(axes) * vectors.shape[0] if axes else 0
    key_blocks = (
        vectors.reshape(num_blocks, block, dim),
        groups.reshape(num_blocks, block),
        (first + jnp.arange(num_blocks * block)).reshape(num_blocks, block).astype(jnp.int32),
    )

    def search_block(query_block: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, row_groups = query_block

        def visit(best: tuple[Array, Array], keys: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            columns, column_groups, numbers = keys
            scores = jnp.einsum("qd,kd->qk", rows, columns, precision=_EXACT, preferred_element_type=jnp.float32)
            excluded = (row_groups[:, None] == column_groups) | (numbers >= num_vectors) | (scores > limit)
            scores = jnp.where(excluded, -jnp.inf, scores)
            return _best(k, best, (jnp.broadcast_to(numbers, scores.shape), scores)), None

        empty = (jnp.full((rows.shape[0], k), -1, jnp.int32), jnp.full((rows.shape[0], k), -jnp.inf))
        best, _ = jax.lax.scan(visit, empty, key_blocks)
        for axis in reversed(axes):  # innermost first, so that the lists come out in order of index
            best = tuple(jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in best)
        return _best(k, best) if axes else best

    return jax.lax.map(search_block, (queries, query_groups))


def _best(k: int, *lists: tuple[Array, Array]) -> tuple[Array, Array]:
    """The k entries of largest score; of equal ones those that stand first."""
    indices, scores = (jnp.concatenate(parts, axis=1) for parts in zip(*lists, strict=True))
    scores, places = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(indices, places, axis=1), scores


def _pad(rows: Array, multiple: int, value: float) -> Array:
    missing = -rows.shape[0] % multiple
    return jnp.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1)), constant_values=value)


def _check_vectors(vectors: Vectors, k: int, queries: Vectors | None, block: int) -> None:
    if vectors.ndim != 2 or not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(f"vectors must be floating [n, dim]: got {vectors.dtype} {vectors.shape}")
    if queries is not None and (queries.ndim != 2 or queries.shape[1] != vectors.shape[1]):
        raise ValueError(f"queries must be [q, {vectors.shape[1]}]: got {queries.shape}")
    if not 1 <= k <= vectors.shape[0]:
        raise ValueError(f"k must be in 1..{vectors.shape[0]}, the number of vectors: got {k}")
    if block < 1:
        raise ValueError(f"block must be at least 1: got {block}")


# ---- candidates ------------------------------------------------------------------------------------------

BY_MEANING, BY_SURFACE, AT_RANDOM = 0, 1, 2
"""Values of `Candidates.source`."""


class Candidates(NamedTuple):
    """Candidate partners of every sentence, in host memory (or memory-mapped from a cache).

    Attributes:
        ids: int32 [N, K], sentence numbers; no two alike in a row, none of the anchor's own group; -1 where no more
            were found (a corpus hardly larger than K, or of many duplicates).
        meaning: float16 [N, K], psi: cosine under the teacher.
        surface: float16 [N, K], phi: `surface_similarity`.
        length_gap: float16 [N, K], ell.
        source: int8 [N, K]: `BY_MEANING`, `BY_SURFACE` or `AT_RANDOM`, the first that found it.
    """

    ids: Int[np.ndarray, "anchors candidates"]
    meaning: Float[np.ndarray, "anchors candidates"]
    surface: Float[np.ndarray, "anchors candidates"]
    length_gap: Float[np.ndarray, "anchors candidates"]
    source: Int[np.ndarray, "anchors candidates"]


def mine_candidates(
    vectors: Float[np.ndarray, "sentences dim"],
    word_ids: Int[np.ndarray, "sentences length"],
    *,
    num_meaning: int = 32,
    num_surface: int = 16,
    num_random: int = 16,
    surface: SurfaceKind = "jaccard",
    idf: Float[np.ndarray, " vocab"] | None = None,
    groups: Int[np.ndarray, " sentences"] | None = None,
    pad_id: int = 0,
    seed: int = 0,
    block: int = 1024,
    mesh: Mesh | None = None,
    cache_dir: str | None = None,
) -> Candidates:
    """For every sentence its nearest by the teacher's vectors, its nearest by surface, and random others.

    A sentence found twice counts once, for the first that found it; its place is filled with another random one.

    Args:
        vectors: [N, dim] of the teacher.
        word_ids: [N, T] padded word ids, for the surface.
        num_meaning, num_surface, num_random: K = their sum.
        surface, idf, pad_id: as for `surface_similarity`.
        groups: [N] >= 0, equal for duplicates; rows with equal words unless given. Duplicates of the anchor are never
            its candidates.
        seed: Of the random candidates.
        block, mesh: as for `nearest_by_meaning`.
        cache_dir: Folder of `jaxcore.data.cached_arrays`, under a hash of all the arguments.

    Raises:
        ValueError: Shapes that do not fit, numbers that are negative or all zero, a corpus not larger than K.

    Source: debcse.md M2.
    """
    numbers = (num_meaning, num_surface, num_random)
    if min(numbers) < 0 or sum(numbers) == 0:
        raise ValueError(f"numbers of candidates must be >= 0 and not all 0: got {numbers}")
    if vectors.ndim != 2 or word_ids.ndim != 2 or len(vectors) != len(word_ids):
        raise ValueError(f"vectors [N, dim] and word_ids [N, T] are needed: got {vectors.shape} and {word_ids.shape}")
    if len(vectors) <= sum(numbers):
        raise ValueError(
            f"{sum(numbers)} candidates per sentence need more than {len(vectors)} sentences; ask for fewer candidates"
        )
    groups = duplicate_groups(word_ids, pad_id=pad_id) if groups is None else np.asarray(groups)

    def compute() -> tuple[dict[str, np.ndarray], dict]:
        by_meaning = _meaning_neighbours(vectors, num_meaning, groups, block, mesh)
        by_surface = np.zeros((len(vectors), 0), np.int32)
        if num_surface:
            by_surface = nearest_by_surface(
                word_ids, num_surface, kind=surface, idf=idf, groups=groups, pad_id=pad_id
            ).indices
        ids, source = _join(by_meaning, by_surface, groups, sum(numbers), seed)
        features = _features(vectors, word_ids, ids, surface, idf, pad_id)
        return {"ids": ids, "source": source, **features}, {}

    arrays, _ = cached_arrays(
        cache_dir, _cache_key(vectors, word_ids, groups, idf, (*numbers, surface, pad_id, seed)), compute
    )
    return Candidates(**arrays)


def duplicate_groups(word_ids: Int[np.ndarray, "sentences length"], *, pad_id: int = 0) -> Int[np.ndarray, "sentences"]:
    """A number per sentence, equal where the words are (padding aside), from 0 in order of first appearance."""
    rows = np.asarray(word_ids)
    aligned = np.take_along_axis(rows, np.argsort(rows == pad_id, axis=1, kind="stable"), axis=1)
    _, first, inverse = np.unique(aligned, axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def random_pairs(
    num_rows: int, *, num_pairs: int, seed: int, groups: Int[np.ndarray, " rows"] | None = None
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """`num_pairs` pairs of different rows, uniformly and independently; with groups, of different groups.

    Raises:
        ValueError: fewer than two rows (or groups).
    """
    groups = np.arange(num_rows) if groups is None else np.asarray(groups)
    if num_rows < 2 or np.all(groups == groups[0]):
        raise ValueError(f"random pairs need at least two different rows: got {num_rows} rows of one group")
    rng = np.random.default_rng([seed, _RANDOM_PAIRS])
    first, second = rng.integers(num_rows, size=(2, num_pairs))
    while len(equal := np.flatnonzero(groups[first] == groups[second])):
        first[equal], second[equal] = rng.integers(num_rows, size=(2, len(equal)))
    return first, second


def _meaning_neighbours(
    vectors: np.ndarray, count: int, groups: np.ndarray, block: int, mesh: Mesh | None
) -> Int[np.ndarray, "rows count"]:
    if count == 0:
        return np.zeros((len(vectors), 0), np.int32)
    return np.asarray(nearest_by_meaning(vectors, count, groups=groups, block=block, mesh=mesh).indices)


def _join(
    by_meaning: np.ndarray, by_surface: np.ndarray, groups: np.ndarray, total: int, seed: int
) -> tuple[Int[np.ndarray, "rows total"], Int[np.ndarray, "rows total"]]:
    """The first `total` different candidates of each row: those found, then more random ones than can be missing."""
    ids = np.full((len(groups), total), -1, np.int32)
    source = np.full((len(groups), total), AT_RANDOM, np.int8)
    kinds = np.repeat([BY_MEANING, BY_SURFACE, AT_RANDOM], [by_meaning.shape[1], by_surface.shape[1], 2 * total])
    for start in range(0, len(groups), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rng = np.random.default_rng([seed, _RANDOM_CANDIDATES, start])
        others = rng.integers(len(groups), size=(len(groups[part]), 2 * total))
        offered = np.concatenate([by_meaning[part], by_surface[part], others], axis=1)
        allowed = (offered >= 0) & ~_repeated(offered) & (groups[offered] != groups[part, None])
        chosen = np.argsort(~allowed, axis=1, kind="stable")[:, :total]
        real = np.take_along_axis(allowed, chosen, 1)
        ids[part] = np.where(real, np.take_along_axis(offered, chosen, 1), -1)
        source[part] = np.where(real, kinds[chosen], AT_RANDOM)
    return ids, source


def _repeated(rows: Int[np.ndarray, "rows n"]) -> np.ndarray:
    """True where an entry equals one further left in its row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, 1)
    return repeated


def _features(
    vectors: np.ndarray,
    word_ids: np.ndarray,
    ids: np.ndarray,
    surface: SurfaceKind,
    idf: np.ndarray | None,
    pad_id: int,
) -> dict[str, Float[np.ndarray, "rows candidates"]]:
    """psi, phi and ell of every candidate, a block of anchors at a time."""
    features = {name: np.zeros(ids.shape, np.float16) for name in ("meaning", "surface", "length_gap")}
    unit: Callable[[np.ndarray], np.ndarray] = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # noqa: E731
    vectors = unit(np.asarray(vectors, np.float32))
    lengths = (np.asarray(word_ids) != pad_id).sum(1)
    for start in range(0, len(ids), _ROWS_AT_ONCE // 4):
        part = slice(start, start + _ROWS_AT_ONCE // 4)
        partners, missing = np.maximum(ids[part], 0), ids[part] < 0
        anchors = np.repeat(np.arange(len(ids))[part], ids.shape[1])
        alike = surface_similarity(
            word_ids[anchors], word_ids[partners.reshape(-1)], kind=surface, idf=idf, pad_id=pad_id
        ).reshape(partners.shape)
        meaning = np.einsum("nd,nkd->nk", vectors[part], vectors[partners])
        features["meaning"][part] = np.where(missing, -1, meaning)
        features["surface"][part] = np.where(missing, 0, alike)
        features["length_gap"][part] = np.where(missing, 0, length_gap(lengths[part, None], lengths[partners]))
    return features


def _cache_key(
    vectors: np.ndarray, word_ids: np.ndarray, groups: np.ndarray, idf: np.ndarray | None, rest: tuple
) -> str:
    arrays = [np.ascontiguousarray(x) for x in (vectors, word_ids, groups, np.zeros(0) if idf is None else idf)]
    parts = [piece for array in arrays for piece in (f"{array.dtype} {array.shape}", array.tobytes())]
    return content_hash("candidates 1", repr(rest), *parts)
