"""Texts grouped by length: a few padded widths worth compiling for, and full batches of texts of like length.

Padding costs tokens that are computed in vain, every width costs a compilation. `choose_widths` weighs the two
against each other, `batches_by_length` fills batches under a budget of tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class LengthBatch:
    """Texts that are encoded together, as an array [num_rows, width].

    Attributes:
        texts: [at most num_rows] their numbers, longest first.
        num_rows: rows of the array; those beyond the texts are empty.
        width: tokens per row.
    """

    texts: Int[np.ndarray, "texts"]
    num_rows: int
    width: int


def choose_widths(
    lengths: Int[np.ndarray, "texts"],
    *,
    longest: int,
    compile_tokens: float,
    repeats: float = 1.0,
    multiple: int = 1,
) -> tuple[int, ...]:
    """The padded widths W that make the least of

        sum_i repeats * min {w in W : w >= lengths_i}  +  compile_tokens * |W|,

    exactly, by dynamic programming over the lengths that occur; above them widths grow by a quarter up to `longest`,
    for texts that were not in the sample.

    Args:
        lengths: tokens of each text of a sample.
        longest: the largest width, which every text fits.
        compile_tokens: how many tokens are computed in the time that one more width takes to compile.
        repeats: how often the sample stands for what is to come: texts in all over texts in the sample.
        multiple: widths are multiples of it (but for `longest`): what the hardware pads to anyway.

    Returns:
        Widths in rising order, the last one `longest`.

    Raises:
        ValueError: no lengths, a length above `longest`, or a number that is not positive.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError(f"lengths must be a vector of at least one text, got shape {lengths.shape}")
    if lengths.min() < 0 or lengths.max() > longest:
        raise ValueError(f"lengths are {lengths.min()} to {lengths.max()}, expected 0 to longest={longest}")
    if longest < 1 or multiple < 1 or repeats <= 0 or compile_tokens < 0:
        raise ValueError(
            "longest, multiple and repeats must be positive and compile_tokens not negative: got "
            f"{longest}, {multiple}, {repeats}, {compile_tokens}"
        )
    rounded = np.minimum(-(-np.maximum(lengths, 1) // multiple) * multiple, longest)
    candidates, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(counts) * repeats])
    best, start_of = np.zeros(len(candidates) + 1), np.zeros(len(candidates) + 1, int)
    for end in range(1, len(candidates) + 1):  # the last bucket holds candidates[start:end]
        costs = best[:end] + candidates[end - 1] * (below[end] - below[:end]) + compile_tokens
        start_of[end] = np.argmin(costs)
        best[end] = costs[start_of[end]]
    chosen, end = [], len(candidates)
    while end:
        chosen.append(int(candidates[end - 1]))
        end = int(start_of[end])
    chosen.reverse()
    while chosen[-1] < longest:
        chosen.append(min(longest, math.ceil(chosen[-1] * 1.25 / multiple) * multiple))
    return tuple(chosen)


def batches_by_length(
    lengths: Int[np.ndarray, "texts"], widths: Sequence[int], *, batch_tokens: int, shards: int = 1
) -> list[LengthBatch]:
    """Every text once, in batches of at most `batch_tokens` tokens per shard, padding counted; longest texts first.

    A batch is as wide as its longest text needs, and full: it goes on with shorter texts where those of its own width
    run out. One width has one number of rows, so widths are all the shapes there are.

    Args:
        lengths: tokens of each text.
        widths: padded widths; the largest must hold every text.
        batch_tokens: tokens of a batch on each shard; at least one row is taken, however wide.
        shards: batches have a multiple of so many rows.

    Raises:
        ValueError: no widths, a text longer than all of them, or a number that is not positive.
    """
    lengths, rising = np.asarray(lengths), sorted(int(width) for width in widths)
    if batch_tokens < 1 or shards < 1:
        raise ValueError(f"batch_tokens and shards must be positive, got {batch_tokens} and {shards}")
    if not rising or rising[0] < 1:
        raise ValueError(f"widths must be at least one positive number, got {list(widths)}")
    if len(lengths) and lengths.max() > rising[-1]:
        raise ValueError(f"a text has {lengths.max()} tokens but the largest width is {rising[-1]}; cut it or add one")
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        width = rising[int(np.searchsorted(rising, lengths[order[start]]))]
        num_rows = max(batch_tokens // width, 1) * shards
        batches.append(LengthBatch(order[start : start + num_rows], num_rows, width))
        start += num_rows
    return batches
