"""Shuffled epochs over sentences: grouped by length, no two of a kind in a batch, copies side by side.

A batch is a pure function of (seed, step): the iterator's state is one integer (see `jaxcore.data.author_batches`).
"""

import collections
import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxcore.data.author_batches import AuthorBatches, Batch

_SENTENCE_ORDER = 201  # what the random stream is for: part of its key


@dataclasses.dataclass
class _OpenBatch:
    """A batch being filled from one width bucket, and the rows that must wait for a later one."""

    rows: list[int] = dataclasses.field(default_factory=list)
    ids: set[int] = dataclasses.field(default_factory=set)
    waiting: collections.deque[int] = dataclasses.field(default_factory=collections.deque)

    def offer(self, row: int, duplicate_id: int) -> bool:
        """Take the row unless one of its kind is in already."""
        if duplicate_id in self.ids:
            return False
        self.rows.append(row)
        self.ids.add(duplicate_id)
        return True

    def copy(self) -> "_OpenBatch":
        return _OpenBatch(list(self.rows), set(self.ids), self.waiting.copy())


class _EpochPlans:
    """Which rows make which batch. Epoch e starts with what epoch e - 1 left waiting, so plans are made in order;
    the little that is carried over is kept for every epoch, the plans themselves for the last few."""

    def __init__(
        self,
        bucket_of_row: Int[np.ndarray, "rows"],
        duplicate_ids: Int[np.ndarray, "rows"],
        batch_size: int,
        seed: int,
    ) -> None:
        self._buckets, self._ids = bucket_of_row.tolist(), duplicate_ids.tolist()
        self._batch_size, self._seed = batch_size, seed
        self._carried: list[dict[int, _OpenBatch]] = [{}]
        self._first_step = [0]
        self._plans: collections.OrderedDict[int, list[Int[np.ndarray, "batch"]]] = collections.OrderedDict()
        self._lock = threading.Lock()  # prefetching threads ask for several steps at once

    def at(self, step: int) -> Int[np.ndarray, "batch"]:
        with self._lock:
            while self._first_step[-1] <= step:
                self._plan(len(self._first_step) - 1)
            epoch = int(np.searchsorted(self._first_step, step, side="right")) - 1
            if epoch not in self._plans:
                self._plan(epoch)
            return self._plans[epoch][step - self._first_step[epoch]]

    def _plan(self, epoch: int) -> None:
        filling = {bucket: batch.copy() for bucket, batch in self._carried[epoch].items()}
        batches = []
        for row in np.random.default_rng([self._seed, _SENTENCE_ORDER, epoch]).permutation(len(self._ids)).tolist():
            batch = filling.setdefault(self._buckets[row], _OpenBatch())
            if not batch.offer(row, self._ids[row]):
                batch.waiting.append(row)
            while len(batch.rows) == self._batch_size:
                batches.append(np.asarray(batch.rows, np.int64))
                batch = filling[self._buckets[row]] = self._next(batch)
        self._plans[epoch] = batches
        while len(self._plans) > 3:
            self._plans.popitem(last=False)
        if epoch == len(self._carried) - 1:
            self._carried.append(filling)
            self._first_step.append(self._first_step[epoch] + len(batches))

    def _next(self, full: _OpenBatch) -> _OpenBatch:
        """A new batch that takes what has waited longest first."""
        new = _OpenBatch()
        for row in full.waiting:
            if len(new.rows) == self._batch_size or not new.offer(row, self._ids[row]):
                new.waiting.append(row)
        return new


class SentenceSampler:
    """The rows of sentence batches as a pure function of the step; the laws are those of `sentence_batches`."""

    def __init__(
        self,
        input_ids: Int[np.ndarray, "sentences length"],
        attention_mask: Int[np.ndarray, "sentences length"] | None = None,
        *,
        batch_size: int,
        seed: int,
        num_copies: int = 1,
        widths: Sequence[int] = (),
        duplicate_ids: Int[np.ndarray, "sentences"] | None = None,
    ) -> None:
        _check_arrays(input_ids, attention_mask, duplicate_ids, batch_size, num_copies)
        self._input_ids, self._mask, self._copies = input_ids, attention_mask, num_copies
        count, length = input_ids.shape
        ids = np.arange(count) if duplicate_ids is None else np.unique(duplicate_ids, return_inverse=True)[1]
        lengths = np.full(count, length) if attention_mask is None else _used_lengths(attention_mask)
        self.widths = _check_widths(widths, length, int(lengths.max()))
        bucket_of_row = _usable_buckets(np.searchsorted(self.widths, lengths), ids, self.widths, batch_size)
        self._bucket_of_row = bucket_of_row
        self._plans = _EpochPlans(bucket_of_row, ids, batch_size, seed)
        self.num_rows = batch_size * num_copies

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows [start, stop) of batch `step`."""
        planned = self._plans.at(step)
        width = self.widths[self._bucket_of_row[planned[0]]]
        chosen = np.repeat(planned, self._copies)[start:stop]
        input_ids = np.asarray(self._input_ids[chosen, :width], np.int32)
        mask = np.ones_like(input_ids) if self._mask is None else np.asarray(self._mask[chosen, :width], np.int32)
        return {"input_ids": input_ids, "attention_mask": mask, "example_ids": chosen.astype(np.int32)}


def sentence_batches(
    input_ids: Int[np.ndarray, "sentences length"],
    attention_mask: Int[np.ndarray, "sentences length"] | None = None,
    *,
    batch_size: int,
    seed: int,
    num_copies: int = 1,
    widths: Sequence[int] = (),
    duplicate_ids: Int[np.ndarray, "sentences"] | None = None,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 2,
) -> AuthorBatches:
    """Batches of `batch_size` different sentences, reshuffled every epoch, each `num_copies` times in a row.

    Laws:

    - Every epoch deals every sentence exactly once. What does not fill a batch at its end, and what had to wait
      because its kind was in the batch already, opens the next epoch: nothing is dropped, now or later.
    - No two sentences of one `duplicate_ids` value are in one batch; the later one waits for the next batch without.
    - All sentences of a batch fit the same entry of `widths` and are cut to it, so that a jitted step compiles once
      per width. A width whose sentences cannot fill batches is joined to the next wider one.

    Args:
        input_ids: [N, T] token ids, padded on the right; may be a memory map.
        attention_mask: [N, T], 1 on real tokens; None: all are.
        batch_size: B, different sentences in the global batch.
        seed: Decides every batch, with its step.
        num_copies: V, rows of every sentence, adjacent: row i V + v is copy v of sentence i, so the copies stay on
            one process, and ``x.reshape(B, V, T)`` separates them.
        widths: Padded widths to group by, a small set such as (16, 32, 64); the full width T is always one.
        duplicate_ids: [N], equal for sentences that must not meet in a batch (the same text, the same meaning).
        num_steps: Batches in all, counted from step 0 even when `start_step` is later; None: endless.
        process_index, process_count, start_step, prefetch: as for `jaxcore.data.author_batches`. Restoring in epoch e
            plans the epochs before it again, in time linear in e N.

    Returns:
        An iterator of dicts with n = B V / process_count rows: `input_ids` [n, width], `attention_mask` [n, width],
        `example_ids` [n] (sentence numbers), all int32.

    Raises:
        ValueError: No sentences, shapes that do not fit, a batch larger than the corpus, widths that are not positive,
            a kind with more copies than there are batches to put them in.
    """
    sampler = SentenceSampler(
        input_ids,
        attention_mask,
        batch_size=batch_size,
        seed=seed,
        num_copies=num_copies,
        widths=widths,
        duplicate_ids=duplicate_ids,
    )
    return AuthorBatches(
        sampler,
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        prefetch=prefetch,
    )


def _used_lengths(mask: Int[np.ndarray, "rows length"]) -> Int[np.ndarray, "rows"]:
    """One more than the position of each row's last real token (0 for a row without)."""
    real = np.asarray(mask) != 0
    return np.where(real.any(1), real.shape[1] - np.argmax(real[:, ::-1], axis=1), 0)


def _check_arrays(
    input_ids: np.ndarray,
    mask: np.ndarray | None,
    duplicate_ids: np.ndarray | None,
    batch_size: int,
    num_copies: int,
) -> None:
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(f"input_ids must be [sentences, length], at least one of each: got {input_ids.shape}")
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask must have the shape of input_ids {input_ids.shape}: got {mask.shape}")
    if duplicate_ids is not None and np.shape(duplicate_ids) != input_ids.shape[:1]:
        raise ValueError(f"duplicate_ids must be [{len(input_ids)}]: got {np.shape(duplicate_ids)}")
    if batch_size < 1 or num_copies < 1:
        raise ValueError(f"batch_size and num_copies must be at least 1: got {batch_size} and {num_copies}")
    if batch_size > len(input_ids):
        raise ValueError(
            f"batch_size is {batch_size}, but there are {len(input_ids)} sentences only; lower it or add sentences"
        )


def _check_widths(widths: Sequence[int], length: int, longest: int) -> tuple[int, ...]:
    """Ascending widths that end with one that holds the longest sentence."""
    if any(width < 1 for width in widths):
        raise ValueError(f"widths must be positive: got {tuple(widths)}")
    inside = sorted({int(width) for width in widths if width < length})
    return tuple(inside) if inside and inside[-1] >= longest else (*inside, length)


def _usable_buckets(
    buckets: Int[np.ndarray, "rows"], ids: Int[np.ndarray, "rows"], widths: Sequence[int], batch_size: int
) -> Int[np.ndarray, "rows"]:
    """Buckets in which batches can be filled for ever; a bucket that cannot is joined to the next wider one.

    n rows make n / B batches an epoch, and each holds one row of a kind: no kind may have more than n / B rows.
    """
    buckets, joined = buckets.copy(), []
    for bucket in range(len(widths)):
        members = buckets == bucket
        if not members.any():
            continue
        if np.bincount(ids[members]).max() * batch_size <= members.sum():
            joined.append(bucket)
        elif bucket + 1 < len(widths):
            buckets[members] = bucket + 1
        else:
            buckets, joined = _join_backwards(buckets, ids, bucket, joined, batch_size)
    return buckets


def _join_backwards(
    buckets: Int[np.ndarray, "rows"], ids: Int[np.ndarray, "rows"], last: int, joined: list[int], batch_size: int
) -> tuple[Int[np.ndarray, "rows"], list[int]]:
    """Narrower buckets taken into the last one until it can be filled."""
    while True:
        members = buckets == last
        counts = np.bincount(ids[members])
        if counts.max() * batch_size <= members.sum():
            return buckets, [*joined, last]
        if not joined:
            example = int(np.flatnonzero(ids == np.argmax(counts))[0])
            raise ValueError(
                f"{counts.max()} of {members.sum()} sentences share the duplicate id of sentence {example}, but only "
                f"one of them fits into each batch of {batch_size}: remove duplicates or lower batch_size"
            )
        buckets[buckets == joined.pop()] = last
