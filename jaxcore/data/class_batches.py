"""Batches of P classes x K examples each, for losses that need several positives of every label.

A batch is a pure function of (seed, step), as in `jaxcore.data.author_batches`, whose iterator hands it out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped

from jaxcore.data.author_batches import AuthorBatches, Batch, EpochOrder

# What a random stream is for: part of its key, so that no two uses share numbers.
_EXAMPLE_ORDER, _REPEATS = 101, 102

SmallClasses = Literal["refuse", "leave_out", "repeat"]


class ClassSampler:
    """The rows of P x K batches as a pure function of the step; the laws are those of `class_batches`."""

    def __init__(
        self,
        arrays: Mapping[str, Shaped[np.ndarray, "examples ..."]],
        labels: Sequence[Any] | Shaped[np.ndarray, "examples"],
        *,
        num_classes: int,
        num_examples: int,
        seed: int,
        small_classes: SmallClasses = "refuse",
    ) -> None:
        _check_sizes(arrays, len(labels), num_classes, num_examples, small_classes)
        self.class_names, self._class_of_row = np.unique(np.asarray(labels), return_inverse=True)
        self._arrays, self._num_examples, self._seed = dict(arrays), num_examples, seed
        counts = np.bincount(self._class_of_row, minlength=len(self.class_names))
        self._rows_by_class = np.split(np.argsort(self._class_of_row, kind="stable"), np.cumsum(counts)[:-1])
        usable = _usable_classes(self.class_names, counts, num_examples, small_classes)
        if len(usable) < num_classes:
            raise ValueError(
                f"{len(usable)} classes can be drawn from, fewer than the {num_classes} of a batch; "
                "lower num_classes or add classes"
            )
        self._usable = usable
        self._order = EpochOrder(len(usable), per_step=num_classes, seed=seed)
        self.num_rows = num_classes * num_examples

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows [start, stop) of batch `step`."""
        first, last = start // self._num_examples, -(-stop // self._num_examples)
        classes = self._usable[self._order.at(step)][first:last]
        epoch = step // self._order.steps_per_epoch
        drawn = np.concatenate([self._examples(int(label), epoch) for label in classes])
        chosen = drawn[start - first * self._num_examples : stop - first * self._num_examples]
        return {
            **{name: np.asarray(array[chosen]) for name, array in self._arrays.items()},
            "labels": self._class_of_row[chosen].astype(np.int32),
            "example_ids": chosen.astype(np.int32),
        }

    def _examples(self, label: int, epoch: int) -> Int[np.ndarray, "num_examples"]:
        """The K examples of a class in an epoch: block `epoch` of its reshuffled cycles."""
        rows, wanted = self._rows_by_class[label], self._num_examples
        if len(rows) < wanted:
            rng = np.random.default_rng([self._seed, _REPEATS, label, epoch])
            return rng.permutation(np.concatenate([rows, rng.choice(rows, wanted - len(rows))]))
        cycle, block = divmod(epoch, len(rows) // wanted)
        order = np.random.default_rng([self._seed, _EXAMPLE_ORDER, label, cycle]).permutation(len(rows))
        return rows[order[block * wanted : (block + 1) * wanted]]


def class_batches(
    arrays: Mapping[str, Shaped[np.ndarray, "examples ..."]],
    labels: Sequence[Any] | Shaped[np.ndarray, "examples"],
    *,
    num_classes: int,
    num_examples: int,
    seed: int,
    small_classes: SmallClasses = "refuse",
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 2,
) -> AuthorBatches:
    """Batches of `num_classes` classes with `num_examples` examples of each, class by class.

    Coverage, with C classes to draw from and n_c examples of class c:

    - Classes come without replacement inside an epoch of floor(C / P) steps. The C mod P classes left over at its end
      are others in every epoch; every class is therefore in a share P floor(C / P) / C of all epochs.
    - Examples of a class come without replacement over a cycle of floor(n_c / K) epochs: no example twice in a batch,
      none twice in a cycle. Where P divides C and K divides n_c, each is seen exactly once per cycle.
    - Classes are drawn equally often however many examples they have.

    Args:
        arrays: Name to array with one row per example; memory maps are read batch by batch.
        labels: One label per example: anything that sorts. Batches carry class numbers, 0..C-1 in sorted order.
        num_classes: P.
        num_examples: K.
        seed: Decides every batch, with its step.
        small_classes: What to do with a class of fewer than K examples: "refuse" it with an error, "leave_out" the
            class, or "repeat" (all its examples, filled up with repetitions).
        num_steps: Batches in all, counted from step 0 even when `start_step` is later; None: endless.
        process_index, process_count, start_step, prefetch: as for `jaxcore.data.author_batches`.

    Returns:
        An iterator of dicts with the rows of `arrays`, `labels` and `example_ids` (row numbers), both int32.

    Raises:
        ValueError: Arrays and labels of different lengths, names that the batch adds, fewer than 2 classes or 1
            example per batch, small classes (naming one), fewer classes than a batch takes.
    """
    sampler = ClassSampler(
        arrays, labels, num_classes=num_classes, num_examples=num_examples, seed=seed, small_classes=small_classes
    )
    return AuthorBatches(
        sampler,
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        prefetch=prefetch,
    )


def _check_sizes(
    arrays: Mapping[str, np.ndarray], num_labels: int, num_classes: int, num_examples: int, small_classes: str
) -> None:
    if num_classes < 2 or num_examples < 1:
        raise ValueError(f"a batch needs at least 2 classes x 1 example: got {num_classes} x {num_examples}")
    if small_classes not in ("refuse", "leave_out", "repeat"):
        raise ValueError(f"small_classes must be refuse, leave_out or repeat: got {small_classes!r}")
    rows = {name: len(array) for name, array in arrays.items()} | {"labels": num_labels}
    if len(set(rows.values())) > 1 or num_labels == 0:
        raise ValueError(f"arrays and labels need one row per example, at least one: got {rows}")
    if taken := {"labels", "example_ids"} & set(arrays):
        raise ValueError(f"{sorted(taken)} are added by class_batches; rename those arrays")


def _usable_classes(
    names: np.ndarray, counts: Int[np.ndarray, "classes"], wanted: int, small_classes: SmallClasses
) -> Int[np.ndarray, "usable"]:
    small = np.flatnonzero(counts < wanted)
    if len(small) and small_classes == "refuse":
        raise ValueError(
            f"{len(small)} of {len(names)} classes have fewer than {wanted} examples (e.g. "
            f"{names.tolist()[small[0]]!r} has {counts[small[0]]}); lower num_examples, or set small_classes to "
            "leave_out or repeat"
        )
    return np.flatnonzero(counts >= wanted) if small_classes == "leave_out" else np.arange(len(names))
