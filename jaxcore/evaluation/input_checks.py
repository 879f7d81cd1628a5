"""Boundary checks shared by the room: turn what a caller passes into checked NumPy arrays.

Metrics run on the host in float64. Each function here raises a one-line `ValueError` that names the argument,
what was given, what was expected, and how to mend it.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


def finite_array(name: str, values: Any, *, ndim: int | None = None) -> Float[np.ndarray, "..."]:
    """`values` as a float64 array of `ndim` axes without NaN or infinity.

    Args:
        name: the argument's name, for the message.
        values: anything NumPy can read as numbers (lists, NumPy or JAX arrays, bfloat16 included).
        ndim: required number of axes; None allows any number >= 1.
    Raises:
        ValueError: not numeric, wrong number of axes, empty, or not finite.
    """
    try:
        array = np.asarray(values).astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}") from None
    if (array.ndim != ndim) if ndim is not None else array.ndim < 1:
        wanted = f"{ndim} axes" if ndim is not None else "at least one axis"
        raise ValueError(f"{name} must have {wanted}, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}); pass at least one row")
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values of {array.size}; drop or repair those rows")
    return array


def binary_labels(name: str, values: Any, *, ndim: int = 1) -> Bool[np.ndarray, "..."]:
    """`values`, booleans or numbers that are all 0 or 1, as a boolean array of `ndim` axes.

    Raises:
        ValueError: another value than 0 and 1, wrong number of axes, or empty.
    """
    array = finite_array(name, values, ndim=ndim)
    if not np.all((array == 0) | (array == 1)):
        wrong = array[(array != 0) & (array != 1)].flat[0]
        raise ValueError(f"{name} must be 0 or 1, found {wrong:g}; map the classes to 0 and 1 first")
    return array == 1


def probabilities_in_unit_interval(name: str, values: Any) -> Float[np.ndarray, "n"]:
    """`values` as a float64 vector within [0, 1].

    Raises:
        ValueError: a value outside [0, 1], or anything that `finite_array` refuses.
    """
    array = finite_array(name, values, ndim=1)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got range [{array.min():g}, {array.max():g}]; "
            "rescale them (a cosine c becomes (1 + c) / 2)"
        )
    return array


def both_classes(name: str, labels: Bool[np.ndarray, "n"]) -> None:
    """Refuses labels of one class only, for which areas under curves are undefined.

    Raises:
        ValueError: all labels are 0, or all are 1.
    """
    if labels.all() or not labels.any():
        raise ValueError(f"{name} holds only class {int(labels[0])} ({labels.size} rows); AUC needs both classes")


def same_length(**arrays: Any) -> None:
    """Requires that the arrays, named by keyword, have one length.

    Raises:
        ValueError: lengths differ; the message gives each.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lengths differ: {listed}; pass one row per item in each")


def class_codes(name: str, labels: Any) -> tuple[Int[np.ndarray, "n"], np.ndarray]:
    """Labels of any sortable type as codes 0..k-1, with the k distinct labels in sorted order.

    Raises:
        ValueError: not one axis, empty, or NaN among the labels.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector of labels, got shape {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{name} has NaN labels; give every item a label")
    classes, codes = np.unique(array, return_inverse=True)
    return codes.reshape(-1), classes


def positive_integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`.

    Raises:
        ValueError: not an integer, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def fraction(name: str, value: float) -> float:
    """`value` as a float strictly between 0 and 1.

    Raises:
        ValueError: outside (0, 1).
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return float(value)
