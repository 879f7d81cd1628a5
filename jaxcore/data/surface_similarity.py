"""How alike two sentences look: words shared, edits apart, lengths apart; and which sentences look most alike.

Rows are word ids padded with `pad_id` (words, not word pieces: pieces inflate the overlap of rare words). Everything
runs on the host.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

SurfaceKind = Literal["jaccard", "edit", "idf_jaccard"]

_PAIRS_AT_ONCE = 65_536
_PRODUCTS_AT_ONCE = 8_000_000  # postings visited per block of rows: some 100 MB


def surface_similarity(
    first_ids: Int[np.ndarray, "pairs length_a"],
    second_ids: Int[np.ndarray, "pairs length_b"],
    *,
    kind: SurfaceKind = "jaccard",
    idf: Float[np.ndarray, " vocab"] | None = None,
    pad_id: int = 0,
) -> Float[np.ndarray, " pairs"]:
    """Surface similarity of row i of one array with row i of the other, in [0, 1].

        jaccard      |A & B| / |A | B|                                     on the sets of words
        idf_jaccard  sum of idf over A & B / sum of idf over A | B
        edit         1 - levenshtein(a, b) / max(|a|, |b|)                 on the sequences of words

    Padding is no word: it never counts as shared, wherever it stands. Two rows without words share nothing: 0.

    Args:
        first_ids, second_ids: [pairs, length] word ids >= 0; the lengths may differ.
        kind: Which measure.
        idf: [vocab] weights >= 0 by word id, for "idf_jaccard" (see `inverse_document_frequency`).
        pad_id: The id of padding.

    Returns:
        float32 [pairs].

    Raises:
        ValueError: Shapes that do not fit, an unknown kind, "idf_jaccard" without weights or with ids beyond them.

    Source: debcse.md M0.
    """
    _check_pairs(first_ids, second_ids, kind, idf)
    similarity = np.empty(len(first_ids), np.float32)
    for start in range(0, len(first_ids), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        first, second = np.asarray(first_ids[part]), np.asarray(second_ids[part])
        if kind == "edit":
            similarity[part] = _edit_similarity(_left_aligned(first, pad_id), _left_aligned(second, pad_id))
        else:
            similarity[part] = _set_similarity(first, second, None if kind == "jaccard" else idf, pad_id)
    return similarity


def length_gap(
    first_lengths: Int[np.ndarray, "*shape"], second_lengths: Int[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """``|a - b| / max(a, b)`` in [0, 1]; 0 for two empty sentences. float32."""
    first, second = np.asarray(first_lengths, np.float32), np.asarray(second_lengths, np.float32)
    return np.abs(first - second) / np.maximum(np.maximum(first, second), 1)


def inverse_document_frequency(
    rows: Int[np.ndarray, "sentences length"], *, vocab_size: int, pad_id: int = 0
) -> Float[np.ndarray, " vocab"]:
    """``log((1 + N) / (1 + df_w))`` for every word id: 0 for a word of all N sentences, largest for an unseen one.

    Raises:
        ValueError: Ids outside 0..vocab_size - 1.
    """
    present = _distinct(np.asarray(rows), pad_id)
    words = present[present >= 0]
    if words.size and words.max() >= vocab_size:
        raise ValueError(f"rows hold word id {words.max()}, but vocab_size is {vocab_size}; give the vocabulary's size")
    frequency = np.bincount(words, minlength=vocab_size)
    return np.log((1 + len(rows)) / (1 + frequency)).astype(np.float32)


class SurfaceNeighbours(NamedTuple):
    """The most similar rows of every row, best first: `indices` int32 [N, k], -1 where there are fewer than k that
    share a word; `similarity` float32 [N, k], 0 there."""

    indices: Int[np.ndarray, "rows k"]
    similarity: Float[np.ndarray, "rows k"]


def nearest_by_surface(
    rows: Int[np.ndarray, "rows length"],
    k: int,
    *,
    kind: SurfaceKind = "jaccard",
    idf: Float[np.ndarray, " vocab"] | None = None,
    groups: Int[np.ndarray, " rows"] | None = None,
    max_postings: int | None = 1000,
    pool: int = 4,
    pad_id: int = 0,
) -> SurfaceNeighbours:
    """For every row the k others that look most like it, through an inverted index.

    Candidates are the rows that share a word with it; words of more than `max_postings` rows are no evidence of
    likeness and are not followed, which bounds the work to length x max_postings per row. The ``pool * k`` best of them
    by the Jaccard measure on the words followed are then scored exactly. Memory is linear in the rows: the index, the
    answer, and one block of candidates. With ``max_postings=None`` the answer is exact for "jaccard" and
    "idf_jaccard". Ties go to the lower row number.

    Args:
        rows: [N, length] word ids.
        k: Neighbours wanted.
        kind, idf, pad_id: as for `surface_similarity`.
        groups: [N]; rows of one group (the same text) are never each other's neighbours.
        max_postings: Longest list of rows followed; None follows all.
        pool: How many times k are scored exactly.

    Raises:
        ValueError: As for `surface_similarity`; k, pool or max_postings that are not positive.
    """
    rows = np.asarray(rows)
    _check_pairs(rows, rows, kind, idf)
    if k < 1 or pool < 1 or (max_postings is not None and max_postings < 1):
        raise ValueError(f"k, pool and max_postings must be at least 1: got {k}, {pool}, {max_postings}")
    if groups is not None and np.shape(groups) != (len(rows),):
        raise ValueError(f"groups must be [{len(rows)}]: got {np.shape(groups)}")
    groups = np.arange(len(rows)) if groups is None else np.asarray(groups)
    index = _Index.of(rows, idf if kind == "idf_jaccard" else None, max_postings, pad_id)
    indices = np.full((len(rows), k), -1, np.int32)
    similarity = np.zeros((len(rows), k), np.float32)
    for start, stop in index.blocks(least_work=pool * k * rows.shape[1]):
        pooled = index.pool(start, stop, groups, pool * k)
        scores = surface_similarity(
            np.repeat(rows[start:stop], pooled.shape[1], axis=0),
            rows[pooled.reshape(-1)],
            kind=kind,
            idf=idf,
            pad_id=pad_id,
        ).reshape(pooled.shape)
        scores = np.where(pooled >= 0, scores, -1.0)
        best = np.lexsort((pooled, -scores), axis=1)[:, :k]
        found = np.take_along_axis(scores, best, 1) > 0
        width = best.shape[1]
        indices[start:stop, :width] = np.where(found, np.take_along_axis(pooled, best, 1), -1)
        similarity[start:stop, :width] = np.where(found, np.take_along_axis(scores, best, 1), 0)
    return SurfaceNeighbours(indices, similarity)


class _Index(NamedTuple):
    """Word sets as a sparse matrix [N, words], weighted; `followed` is what of it candidates are generated from."""

    weighted: scipy.sparse.csr_array
    followed: scipy.sparse.csc_array
    totals: Float[np.ndarray, " rows"]
    work: Int[np.ndarray, " rows"]

    @classmethod
    def of(
        cls,
        rows: Int[np.ndarray, "rows length"],
        idf: Float[np.ndarray, " vocab"] | None,
        max_postings: int | None,
        pad_id: int,
    ) -> "_Index":
        distinct = _distinct(rows, pad_id)
        row, column = np.nonzero(distinct >= 0)
        words = distinct[row, column]
        weights = np.ones(len(words), np.float32) if idf is None else np.asarray(idf, np.float32)[words]
        shape = (len(rows), int(words.max(initial=0)) + 1)
        weighted = scipy.sparse.csr_array((weights, (row, words)), shape=shape)
        postings = np.bincount(words, minlength=shape[1])
        kept = np.ones(len(words), bool) if max_postings is None else postings[words] <= max_postings
        ones = np.ones(int(kept.sum()), np.float32)
        followed = scipy.sparse.csr_array((ones, (row[kept], words[kept])), shape=shape)
        work = np.bincount(row[kept], weights=postings[words[kept]], minlength=len(rows)).astype(np.int64)
        totals = np.bincount(row, weights=weights, minlength=len(rows)).astype(np.float32)
        return cls(weighted, followed.T.tocsr(), totals, work)

    def blocks(self, *, least_work: int) -> Iterator[tuple[int, int]]:
        """Consecutive rows whose candidates fit the budget together; every row counts `least_work` at least."""
        start, visited = 0, 0
        for row, work in enumerate(np.maximum(self.work, least_work).tolist()):
            if row > start and visited + work > _PRODUCTS_AT_ONCE:
                yield start, row
                start, visited = row, 0
            visited += work
        if start < len(self.work):
            yield start, len(self.work)

    def pool(self, start: int, stop: int, groups: np.ndarray, size: int) -> Int[np.ndarray, "block pool"]:
        """The `size` best candidates of each row by what the followed words say, -1 where there are fewer."""
        shared = (self.weighted[start:stop] @ self.followed).tocsr()
        shared.sort_indices()
        pooled = np.full((stop - start, size), -1, np.int64)
        for row in range(stop - start):
            begin, end = shared.indptr[row], shared.indptr[row + 1]
            candidates, overlap = shared.indices[begin:end], shared.data[begin:end]
            others = groups[candidates] != groups[start + row]
            candidates, overlap = candidates[others], overlap[others]
            union = self.totals[start + row] + self.totals[candidates] - overlap
            order = np.argsort(-overlap / np.maximum(union, 1e-12), kind="stable")[:size]
            pooled[row, : len(order)] = candidates[order]
        return pooled


def _check_pairs(first: np.ndarray, second: np.ndarray, kind: str, idf: np.ndarray | None) -> None:
    if np.ndim(first) != 2 or np.ndim(second) != 2 or len(first) != len(second):
        raise ValueError(
            f"word ids must be [pairs, length] twice, with as many rows: got {np.shape(first)} and {np.shape(second)}"
        )
    if not all(np.issubdtype(np.asarray(ids).dtype, np.integer) for ids in (first, second)):
        raise ValueError("word ids must be integers; give ids, not vectors")
    if kind not in ("jaccard", "edit", "idf_jaccard"):
        raise ValueError(f"unknown kind {kind!r}: choose jaccard, edit or idf_jaccard")
    if kind == "idf_jaccard":
        if idf is None:
            raise ValueError("idf_jaccard needs idf weights: make them with inverse_document_frequency")
        largest = max(int(np.max(ids, initial=0)) for ids in (first, second))
        if largest >= len(idf):
            raise ValueError(f"word id {largest} has no idf weight: got {len(idf)} weights")


def _distinct(rows: Int[np.ndarray, "rows length"], pad_id: int) -> Int[np.ndarray, "rows length"]:
    """Rows sorted, with padding and every repetition of an id replaced by -1."""
    ordered = np.sort(rows.astype(np.int64), axis=1)
    repeated = np.zeros(ordered.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(repeated | (ordered == pad_id), -1, ordered)


def _set_similarity(
    first: np.ndarray, second: np.ndarray, idf: Float[np.ndarray, " vocab"] | None, pad_id: int
) -> Float[np.ndarray, " pairs"]:
    """Weighted Jaccard: ids that both sets hold are neighbours in the sorted concatenation."""
    sets = [_distinct(first, pad_id), _distinct(second, pad_id)]
    weigh = (
        (lambda ids: (ids >= 0).astype(np.float64)) if idf is None else (lambda ids: np.where(ids >= 0, idf[ids], 0))
    )
    both = np.sort(np.concatenate(sets, axis=1), axis=1)
    shared = np.where((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0), both[:, 1:], -1)
    overlap = weigh(shared).sum(1)
    union = weigh(sets[0]).sum(1) + weigh(sets[1]).sum(1) - overlap
    return np.where(union > 0, overlap / np.where(union > 0, union, 1), 0)


def _left_aligned(rows: np.ndarray, pad_id: int) -> Int[np.ndarray, "rows length"]:
    """Words first, then -1."""
    order = np.argsort(rows == pad_id, axis=1, kind="stable")
    aligned = np.take_along_axis(rows.astype(np.int64), order, axis=1)
    return np.where(aligned == pad_id, -1, aligned)


def _edit_similarity(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, " pairs"]:
    """Levenshtein's recurrence, one row of the table at a time for all pairs.

    ``new[j] = min(substituted or deleted [j], new[j - 1] + 1)`` is a running minimum of ``x[j] - j``, plus ``j``.
    """
    lengths = [(rows >= 0).sum(1) for rows in (first, second)]
    positions = np.arange(second.shape[1] + 1)
    row = np.broadcast_to(positions, (len(first), len(positions))).copy()
    distance = lengths[1].copy()  # of an empty first row
    for step in range(first.shape[1]):
        substituted = row[:, :-1] + (first[:, step, None] != second)
        new = np.minimum(row + 1, np.pad(substituted, ((0, 0), (1, 0)), constant_values=step + 1))
        row = np.minimum.accumulate(new - positions, axis=1) + positions
        ended = lengths[0] == step + 1
        distance[ended] = row[ended, lengths[1][ended]]
    longest = np.maximum(*lengths)
    return np.where(longest > 0, 1 - distance / np.maximum(longest, 1), 0)
