"""How parameters correspond to the tensors of a stored checkpoint, piece by piece.

Pure arithmetic: nothing here reads or writes a file.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

ALL = slice(None)
TRANSPOSED = ((1,), (0,))
"""Axes of a `Piece` for torch's linear layers, whose weights are (outputs, inputs)."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One stored tensor and its place in a parameter: `parameter[place]` holds its values, with axes
    rearranged.

    `axes` says, for each axis of the stored tensor, which axes of `parameter[place]` it runs over: ((0,),
    (1,)) is the tensor as it is, ((1,), (0,)) its transpose, and ((1, 2), (0,)) a transpose whose columns are
    split in two axes.
    """

    tensor: str
    place: tuple[int | slice, ...]
    axes: tuple[tuple[int, ...], ...]

    def shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of `parameter[place]`."""
        return tuple(stop - start for start, stop in self._spans(parameter_shape))

    def tensor_shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that the stored tensor must have."""
        sizes = self.shape(parameter_shape)
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.axes)

    def to_tensor(self, parameter: np.ndarray) -> np.ndarray:
        """The stored tensor out of the whole parameter."""
        order = [axis for group in self.axes for axis in group]
        values = parameter[self.place].transpose(order).reshape(self.tensor_shape(parameter.shape))
        return np.ascontiguousarray(values)

    def target(
        self, parameter_shape: tuple[int, ...], bounds: Sequence[tuple[int, int]]
    ) -> tuple[int | slice, ...] | None:
        """Where in the part of the parameter within `bounds` this piece belongs; None if nowhere.

        `bounds` holds a (start, stop) for each axis of the parameter.
        """
        index: list[int | slice] = []
        for at, size, (start, stop) in zip(self.place, parameter_shape, bounds, strict=True):
            first, last, _ = (at, at + 1, 1) if isinstance(at, int) else at.indices(size)
            first, last = max(first, start) - start, min(last, stop) - start
            if first >= last:
                return None
            index.append(first if isinstance(at, int) else slice(first, last))
        return tuple(index)

    def read(
        self,
        tensor: Callable[[tuple[slice, ...]], np.ndarray],
        parameter_shape: tuple[int, ...],
        bounds: Sequence[tuple[int, int]],
    ) -> np.ndarray:
        """The part of `parameter[place]` within `bounds`, which must not miss it altogether.

        `tensor` reads a slice of the stored tensor. Of an axis that is split in two, all of the inner one is
        read.
        """
        sizes = self.shape(parameter_shape)
        kept = [bound for bound, at in zip(bounds, self.place, strict=True) if isinstance(at, slice)]
        within = [
            (max(start, first) - first, min(stop, last) - first)
            for (start, stop), (first, last) in zip(kept, self._spans(parameter_shape), strict=True)
        ]
        order = [axis for group in self.axes for axis in group]
        inner = {group[0]: math.prod(sizes[a] for a in group[1:]) for group in self.axes}
        source = tuple(slice(*(inner[group[0]] * bound for bound in within[group[0]])) for group in self.axes)
        split = [within[a][1] - within[a][0] if a in inner else sizes[a] for a in order]
        values = tensor(source).reshape(split).transpose(np.argsort(order))
        return values[tuple(slice(None) if a in inner else slice(*within[a]) for a in range(len(sizes)))]

    def _spans(self, parameter_shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """First and last + 1 entry of each axis of the parameter that `place` keeps."""
        placed = zip(self.place, parameter_shape, strict=True)
        return [at.indices(size)[:2] for at, size in placed if isinstance(at, slice)]


@dataclasses.dataclass(frozen=True)
class ParameterLayout:
    """Shape of one parameter of a model and the stored tensors that fill it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def whole(tensor: str, shape: tuple[int, ...]) -> ParameterLayout:
    """A parameter stored as it is."""
    return ParameterLayout(shape, (Piece(tensor, (ALL,) * len(shape), tuple((axis,) for axis in range(len(shape)))),))


def whole_norm(path: str, tensor: str, size: int) -> dict[str, ParameterLayout]:
    """Scale and bias of a layer norm."""
    return {
        f"{path}/scale": whole(f"{tensor}.weight", (size,)),
        f"{path}/bias": whole(f"{tensor}.bias", (size,)),
    }


def stacked(
    path: str, tensor: str, shape: tuple[int, ...], *, axes: tuple[tuple[int, ...], ...] = ((0,),)
) -> dict[str, ParameterLayout]:
    """A parameter of all blocks; `tensor` has {} where the number of the block goes."""
    rest = (ALL,) * (len(shape) - 1)
    pieces = (Piece(tensor.format(layer), (layer, *rest), axes) for layer in range(shape[0]))
    return {path: ParameterLayout(shape, tuple(pieces))}
