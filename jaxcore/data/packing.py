"""Packing: token sequences of many lengths into rows of one length, each row of several whole texts.

    rows = pack_sequences([[5, 6, 7], [8, 9]], length=6)
    rows.input_ids     [[5, 6, 7, 8, 9, 0]]
    rows.segment_ids   [[1, 1, 1, 2, 2, 0]]      which text of its row a token belongs to; 0 on padding
    rows.positions     [[0, 1, 2, 0, 1, 0]]      place within that text

A `jaxcore.models.Decoder` that is given the segments computes of every text what it computes of that text alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows of whole sequences, or of pieces of sequences longer than a row."""

    input_ids: Int[np.ndarray, "rows length"]
    segment_ids: Int[np.ndarray, "rows length"]
    """1, 2, ... in a row; 0 on padding."""
    positions: Int[np.ndarray, "rows length"]
    """Place of a token in its segment; 0 on padding."""
    sequence_ids: Int[np.ndarray, "rows length"]
    """Number of the sequence given that a token comes from; -1 on padding."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def fill(self) -> float:
        """Share of the slots that hold a token."""
        return float(np.mean(self.segment_ids > 0))

    def as_rows(self) -> dict[str, np.ndarray]:
        """What `jaxcore.training.language_modelling` trains on."""
        return {"input_ids": self.input_ids, "segment_ids": self.segment_ids}


def pack_sequences(
    sequences: Sequence[Sequence[int] | np.ndarray], *, length: int, pad_id: int = 0, min_length: int = 2
) -> PackedRows:
    """Best fit, longest first: each sequence goes to the fullest row that still has room, or begins a new one.

    Deterministic: among rows equally full the oldest, among sequences equally long the first. A sequence longer than
    `length` is cut into pieces of `length`, each a segment of its own (the first token of a later piece is then not
    predicted by what came before). Nothing else is lost but what is shorter than `min_length`, last pieces included.

    Args:
        sequences: token ids.
        length: of a row, 1 or more.
        pad_id: id on empty slots.
        min_length: shortest piece kept; 2 is the shortest in which a token is predicted.

    Raises:
        ValueError: length below 1, min_length outside 1 .. length, no sequence that is long enough.
    """
    if length < 1 or not 1 <= min_length <= length:
        raise ValueError(f"length must be >= 1 and min_length in 1..length: got {length} and {min_length}")
    pieces = [
        (number, np.asarray(sequence[start : start + length], np.int32))
        for number, sequence in enumerate(sequences)
        for start in range(0, len(sequence), length)
    ]
    pieces = [piece for piece in pieces if len(piece[1]) >= min_length]
    if not pieces:
        raise ValueError(f"nothing to pack: none of {len(sequences)} sequences has {min_length} tokens")
    assigned = _best_fit([len(ids) for _, ids in pieces], length)
    shape = (len(assigned), length)
    packed = PackedRows(
        np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1)
    )
    for row, members in enumerate(assigned):
        start = 0
        for segment, member in enumerate(members, start=1):
            number, ids = pieces[member]
            place = slice(start, start + len(ids))
            packed.input_ids[row, place] = ids
            packed.segment_ids[row, place] = segment
            packed.positions[row, place] = np.arange(len(ids))
            packed.sequence_ids[row, place] = number
            start += len(ids)
    return packed


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Items by row, in the order of the items' numbers; rows by their first item."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by free slots, the oldest first
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        size = sizes[item]
        room = next((room for room in range(size, length + 1) if with_room[room]), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = with_room[room].pop(0)
        rows[row].append(item)
        with_room[room - size].append(row)
    return sorted(sorted(row) for row in rows)
