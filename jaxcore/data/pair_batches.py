"""Batches of anchors with partners that were drawn for them: positives, negatives, copies, side by side.

The draw is made afresh every so often (sampling, not loss weighting, is what inverse propensities act on); between two
draws it is fixed. A batch is a pure function of (seed, step), as in `jaxcore.data.author_batches`.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxcore.data.author_batches import AuthorBatches, Batch, EpochOrder

Draw = Callable[[int], Int[np.ndarray, "anchors views"]]


class PairSampler:
    """The rows of `pair_batches` as a pure function of the step."""

    def __init__(
        self,
        rows: Mapping[str, Shaped[np.ndarray, "rows ..."]],
        draw: Draw,
        *,
        num_anchors: int,
        batch_size: int,
        redraw_every: int,
        seed: int,
        reference: Float[np.ndarray, "rows dim"] | None = None,
        reference_views: Sequence[int] = (0, 1),
    ) -> None:
        _check_rows(rows, reference, num_anchors, batch_size, redraw_every)
        self._rows, self._draw, self._redraw_every = dict(rows), draw, redraw_every
        self._reference, self._reference_views = reference, list(reference_views)
        self._num_anchors = num_anchors
        self._order = EpochOrder(num_anchors, per_step=batch_size, seed=seed)
        self._drawn: collections.OrderedDict[int, Int[np.ndarray, "anchors views"]] = collections.OrderedDict()
        self._lock = threading.Lock()  # prefetching threads ask for several steps at once
        self.num_rows = batch_size

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows [start, stop) of batch `step`."""
        anchors = self._order.at(step)[start:stop]
        partners = self.drawn(step // self._redraw_every)[anchors]
        chosen = np.concatenate([anchors[:, None], np.where(partners < 0, anchors[:, None], partners)], axis=1)
        batch = {name: np.asarray(array[chosen]) for name, array in self._rows.items()}
        if self._reference is not None:
            batch["reference"] = np.asarray(self._reference[chosen[:, self._reference_views]])
        return {**batch, "example_ids": anchors.astype(np.int32)}

    def drawn(self, number: int) -> Int[np.ndarray, "anchors views"]:
        """Draw `number`; the last two are kept, for batches made ahead of time."""
        with self._lock:
            if number not in self._drawn:
                partners = np.asarray(self._draw(number))
                if partners.ndim != 2 or len(partners) != self._num_anchors:
                    raise ValueError(f"a draw must be [{self._num_anchors}, views]: got {partners.shape}")
                self._drawn[number] = partners
                while len(self._drawn) > 2:
                    self._drawn.popitem(last=False)
            return self._drawn[number]


def pair_batches(
    rows: Mapping[str, Shaped[np.ndarray, "rows ..."]],
    draw: Draw,
    *,
    num_anchors: int,
    batch_size: int,
    redraw_every: int,
    seed: int,
    reference: Float[np.ndarray, "rows dim"] | None = None,
    reference_views: Sequence[int] = (0, 1),
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 2,
) -> AuthorBatches:
    """Batches of `batch_size` different anchors, each with the partners of the current draw.

    Args:
        rows: Arrays [rows, ...]; the anchors are their first `num_anchors` rows, partners any.
        draw: Number of a draw -> row numbers [anchors, V - 1]; -1 stands for the anchor itself. A pure function of the
            number, for every process alike; step k uses draw ``k // redraw_every``.
        num_anchors: N.
        batch_size: Anchors in the global batch, without replacement inside an epoch.
        redraw_every: Steps between draws.
        seed: Decides the order of anchors.
        reference: [rows, e]; vectors of a frozen teacher, which the batch then brings along.
        reference_views: Of which views (0: the anchor).
        num_steps, process_index, process_count, start_step, prefetch: as for `jaxcore.data.author_batches`.

    Returns:
        An iterator of dicts: every array of `rows` as [n, V, ...], `reference` [n, len(reference_views), e] where
        given, and `example_ids` [n] (anchors, int32).

    Raises:
        ValueError: Arrays of different lengths, fewer rows than anchors, a batch larger than the anchors, names that
            the batch adds, numbers out of range; while iterating, a draw of another shape.
    """
    sampler = PairSampler(
        rows,
        draw,
        num_anchors=num_anchors,
        batch_size=batch_size,
        redraw_every=redraw_every,
        seed=seed,
        reference=reference,
        reference_views=reference_views,
    )
    return AuthorBatches(
        sampler,
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        prefetch=prefetch,
    )


def _check_rows(
    rows: Mapping[str, np.ndarray],
    reference: np.ndarray | None,
    num_anchors: int,
    batch_size: int,
    redraw_every: int,
) -> None:
    if taken := {"reference", "example_ids"} & set(rows):
        raise ValueError(f"{sorted(taken)} are added by pair_batches; rename those arrays")
    sizes = {name: len(array) for name, array in rows.items()}
    if reference is not None:
        sizes["reference"] = len(reference)
    if len(set(sizes.values())) != 1 or num_anchors > next(iter(sizes.values())):
        raise ValueError(f"arrays of one length, at least the {num_anchors} anchors, are needed: got {sizes}")
    if batch_size < 1 or redraw_every < 1:
        raise ValueError(f"batch_size and redraw_every must be at least 1: got {batch_size} and {redraw_every}")
    if batch_size > num_anchors:
        raise ValueError(f"batch_size is {batch_size}, but there are {num_anchors} anchors only; lower it")
