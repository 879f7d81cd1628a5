"""Ranges of the options of decoding strategies: checked where their values are known, that is outside of jit."""

from typing import Any

import numpy as np


def check_count(name: str, value: Any) -> None:
    """ValueError for a count that is not a whole number of 1 or more."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """ValueError for a known number that is not above 0 and finite."""
    if _is_known(value) and not 0 < value < np.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_finite(name: str, value: Any) -> None:
    """ValueError for a known number that is infinite or not a number."""
    if _is_known(value) and not np.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """ValueError for a known number outside [0, 1]."""
    if _is_known(value) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_share(name: str, value: Any) -> None:
    """ValueError for a known number outside (0, 1]."""
    if _is_known(value) and not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def _is_known(value: Any) -> bool:
    # Inside jit options are tracers; jax also rebuilds strategies with placeholders for their leaves.
    return isinstance(value, int | float | np.number)
