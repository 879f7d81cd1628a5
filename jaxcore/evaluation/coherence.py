"""Coherence of continuations: how likely a language model, not the one that wrote them, finds them.

    coherence = mean over texts of (1 / |y|) sum_i log p_M(y_i | prefix, y_<i)      in nats per token

Source: Su and Collier 2023, section 3.3, whose scorers M are OPT models; they read a first token (bos) first.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.data.tokenization import attention_mask, pad_rows
from jaxcore.distributed import batch_sharding, jit_on_mesh
from jaxcore.evaluation.row_map import map_rows
from jaxcore.training.language_modelling import token_log_probs


def continuation_log_probs(
    model: Any,
    params: Any,
    prefixes: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int,
    mesh: Mesh,
    max_length: int,
) -> Float[np.ndarray, " texts"]:
    """Mean log probability per token of each continuation given its prefix, in nats; coherence is their mean.

    Args:
        model, params: the scorer M, a `Decoder`, and its parameters.
        prefixes: token ids of M's tokenizer, with its first token (bos) where it has been trained with one.
        continuations: token ids, as many; what goes beyond `max_length` together with the prefix is not scored.
        batch_size: texts at once, over all devices of `mesh`.
        max_length: tokens of prefix and continuation; one program serves all calls with the same.

    Raises:
        ValueError: none or unequally many texts, an empty prefix or continuation, a prefix that leaves no room.
    """
    if len(prefixes) != len(continuations) or not len(prefixes):
        raise ValueError(f"expected a continuation per prefix: got {len(prefixes)} and {len(continuations)}")
    for number, (prefix, continuation) in enumerate(zip(prefixes, continuations, strict=True)):
        if not len(prefix) or not len(continuation) or len(prefix) >= max_length:
            raise ValueError(
                f"text {number}: a prefix of {len(prefix)} and a continuation of {len(continuation)} tokens; expected "
                f"1..{max_length - 1} and 1 or more"
            )
    whole = [[*prefix, *continuation] for prefix, continuation in zip(prefixes, continuations, strict=True)]
    ids, lengths = pad_rows(whole, length=max_length, pad_id=0)
    begins = np.array([len(prefix) for prefix in prefixes])
    rows = {
        "input_ids": ids,
        "attention_mask": attention_mask(lengths, max_length),
        "target_mask": (np.arange(max_length) >= begins[:, None]).astype(np.int32),
    }
    return map_rows(_program(model, mesh), params, rows, batch_size=batch_size, mesh=mesh)


@functools.lru_cache(maxsize=8)
def _program(model: Any, mesh: Mesh) -> Any:
    def of_batch(params: Any, batch: Any) -> Float[Array, " rows"]:
        return token_log_probs(model, params, batch)[0].means()

    return jit_on_mesh(of_batch, mesh, out_shardings=batch_sharding(mesh))
