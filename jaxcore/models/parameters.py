"""Counting parameters."""

import math
from typing import Any

import jax


def count_parameters(params: Any) -> int:
    """Number of scalar parameters in a tree of arrays (or of abstract arrays, boxed or not)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
