"""Token ids and the tables whose rows they name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def check_vocabulary(input_ids: Int[Array, "batch time"], vocab_size: int) -> None:
    """Raise ValueError for ids outside 0, ..., vocab_size - 1, where their values are known (not under jit)."""
    if isinstance(input_ids, jax.core.Tracer) or not getattr(input_ids, "is_fully_addressable", True):
        return
    ids = np.asarray(input_ids)
    wrong = np.argwhere((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"input_ids[{row}, {column}] is {ids[row, column]}, but the model's vocabulary has ids 0 to "
            f"{vocab_size - 1}: use the tokenizer that belongs to the model"
        )


def lookup(table: Float[Array, "rows hidden"], ids: Int[Array, "..."], dtype: Any) -> Float[Array, "... hidden"]:
    """Rows of a table; an id outside it gives NaN, not another row."""
    return jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(dtype)
