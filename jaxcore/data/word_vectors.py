"""Word vectors from co-occurrence counts: positive pointwise mutual information, factorised."""

import dataclasses
import os

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Bool, Float, Int

from jaxcore.data.array_cache import cached_arrays, content_hash

_ROWS_AT_ONCE = 16384  # sentences counted at once: bounds the memory of the pairs not yet summed


@dataclasses.dataclass(frozen=True)
class WordVectorOptions:
    """How words are counted and factorised; the defaults are those of the rehearsed experiment of whitenedcse.md."""

    window: int = 5
    """Words on each side that count as context."""
    context_smoothing: float = 0.75
    """Exponent of the context counts (Levy et al. 2015): below 1 it takes weight from rare contexts."""
    min_count: int = 3
    """Rarer words get a zero vector and are no context; they keep their place in the windows."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.min_count < 1:
            raise ValueError(f"window and min_count must be at least 1: got {self.window} and {self.min_count}")
        if not 0 < self.context_smoothing <= 1:
            raise ValueError(f"context_smoothing must be in (0, 1]: got {self.context_smoothing}")


def ppmi_svd_vectors(
    input_ids: Int[np.ndarray, "rows length"],
    counted: Bool[np.ndarray, "rows length"],
    *,
    vocab_size: int,
    dim: int,
    options: WordVectorOptions | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Float[np.ndarray, "vocab dim"]:
    """Word vectors of a corpus of token rows, float32, scaled to mean norm 1 over the words that have one.

        N_wc = how often c stands within `window` places of w;   a = context_smoothing
        M_wc = max(0, log (N_wc sum_c' N_c'^a / (N_w N_c^a)))  ~  U diag(S) V^T  (the `dim` largest)
        x_w = U_w diag(S)^(1/2) / mean_w |U_w diag(S)^(1/2)|

    Frequent words co-occur with everything, so the leading dimension is shared by all words: such vectors are
    anisotropic (their mean cosine is far from 0), as are the states of language models. Memory is linear in the number
    of pairs of words that meet. The signs of the dimensions are set so that each has a positive sum.

    Args:
        input_ids: [rows, length], ids in [0, vocab_size).
        counted: which tokens are words (not padding, not special).
        vocab_size: rows of the result.
        dim: at most the number of words with a vector, minus one.
        options: see `WordVectorOptions`.
        cache_dir: keeps the result under a hash of everything it depends on; None computes it anew.

    Raises:
        ValueError: shapes that differ, ids out of range, no words that meet, `dim` out of range.

    Source: Levy and Goldberg 2014 (implicit factorisation); Levy et al. 2015 (smoothing, symmetric U sqrt(S)).
    """
    options = options or WordVectorOptions()
    input_ids, counted = np.asarray(input_ids), np.asarray(counted, bool)
    _check(input_ids, counted, vocab_size, dim)

    def compute() -> tuple[dict[str, np.ndarray], dict]:
        words, pairs = co_occurrences(input_ids, counted, vocab_size=vocab_size, options=options)
        if not 1 <= dim < len(words):
            raise ValueError(
                f"dim is {dim}, but only {len(words)} words occur {options.min_count} times or more: "
                "lower dim or min_count, or give more text"
            )
        vectors = np.zeros((vocab_size, dim), np.float32)
        vectors[words] = _factorise(positive_mutual_information(pairs, options.context_smoothing), dim)
        return {"vectors": vectors}, {}

    key = ""
    if cache_dir is not None:
        rows = [np.ascontiguousarray(array).tobytes() for array in (input_ids.astype(np.int32), np.packbits(counted))]
        key = content_hash("ppmi svd 1", repr((options, vocab_size, dim, input_ids.shape)), *rows)
    return np.asarray(cached_arrays(cache_dir, key, compute)[0]["vectors"])


def co_occurrences(
    input_ids: Int[np.ndarray, "rows length"],
    counted: Bool[np.ndarray, "rows length"],
    *,
    vocab_size: int,
    options: WordVectorOptions,
) -> tuple[Int[np.ndarray, "words"], scipy.sparse.csr_array]:
    """How often each two frequent words stand within a window of each other.

    Returns:
        The ids of the words that occur `options.min_count` times or more, ascending, and their symmetric [words, words]
        matrix of counts, float64.
    """
    frequency = np.bincount(input_ids[counted], minlength=vocab_size)
    words = np.flatnonzero(frequency >= options.min_count)
    number = np.full(vocab_size, -1, np.int32)
    number[words] = np.arange(len(words))
    total = scipy.sparse.csr_array((len(words), len(words)))
    for start in range(0, len(input_ids), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        numbers = np.where(counted[rows], number[input_ids[rows]], -1)
        total += _count_pairs(numbers, len(words), options.window)
    return words, scipy.sparse.csr_array(total + total.T)


def _count_pairs(numbers: Int[np.ndarray, "rows length"], size: int, window: int) -> scipy.sparse.csr_array:
    """Counts of (word, word after it); -1 marks places without a word."""
    left, right = [], []
    for offset in range(1, min(window, numbers.shape[1] - 1) + 1):
        before, after = numbers[:, :-offset], numbers[:, offset:]
        both = (before >= 0) & (after >= 0)
        left.append(before[both])
        right.append(after[both])
    if not left:
        return scipy.sparse.csr_array((size, size))
    places = (np.concatenate(left), np.concatenate(right))
    counts = scipy.sparse.coo_array((np.ones(len(places[0])), places), shape=(size, size))
    return counts.tocsr()  # which adds up the duplicates


def positive_mutual_information(pairs: scipy.sparse.csr_array, context_smoothing: float) -> scipy.sparse.csr_array:
    """``max(0, log (N_wc sum_c' N_c'^a / (N_w N_c^a)))`` of a matrix of counts; pairs that never met stay 0.

    Raises:
        ValueError: no two words meet.
    """
    if not pairs.nnz:
        raise ValueError("no two frequent words stand near each other: give more text, or lower min_count")
    coordinates = pairs.tocoo()
    row, column = coordinates.coords
    word_counts = np.asarray(pairs.sum(axis=1)).ravel()
    context_counts = np.asarray(pairs.sum(axis=0)).ravel() ** context_smoothing
    information = np.log(coordinates.data * context_counts.sum() / (word_counts[row] * context_counts[column]))
    positive = information > 0
    return scipy.sparse.csr_array((information[positive], (row[positive], column[positive])), shape=pairs.shape)


def _factorise(matrix: scipy.sparse.csr_array, dim: int) -> Float[np.ndarray, "words dim"]:
    """``U sqrt(S)``, largest first, at mean norm 1."""
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])  # svds draws it anew otherwise
    left, values, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start, solver="propack", rng=0)
    order = np.argsort(-values)
    vectors = left[:, order] * np.sqrt(values[order])
    vectors *= np.where(vectors.sum(axis=0) < 0, -1, 1)
    norms = np.linalg.norm(vectors, axis=1)
    return vectors / norms[norms > 0].mean()


def _check(input_ids: np.ndarray, counted: np.ndarray, vocab_size: int, dim: int) -> None:
    if input_ids.ndim != 2 or not np.issubdtype(input_ids.dtype, np.integer) or counted.shape != input_ids.shape:
        raise ValueError(
            "input_ids must be integers [rows, length] and counted of the same shape: got "
            f"{input_ids.dtype} {input_ids.shape} and {counted.shape}"
        )
    used = input_ids[counted]
    if used.size and not 0 <= used.min() <= used.max() < vocab_size:
        raise ValueError(f"ids must be in [0, {vocab_size}): got {used.min()}..{used.max()}; raise vocab_size")
    if dim < 1:
        raise ValueError(f"dim must be at least 1: got {dim}")
