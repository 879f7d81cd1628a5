"""Isotropy of a language model's states, layer by layer.

    I = 1 - sum_x sum_{i != j} cos(h_i, h_j) / sum_x L_x (L_x - 1)      over the tokens i, j of each text x

About 1 where states point everywhere, 0 where all are alike. Pooled over pairs of tokens
(`jaxcore.losses.cosine_pairs`), so long texts weigh more.

Source: Su and Collier 2023, section 2, who look at the last layer; by layer, Ethayarajh 2019.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.distributed import batch_sharding, jit_on_mesh
from jaxcore.evaluation.row_map import map_rows
from jaxcore.losses import cosine_pairs
from jaxcore.transforms import capture


def layer_isotropy(
    model: Any, params: Any, rows: Mapping[str, np.ndarray], *, batch_size: int, mesh: Mesh
) -> Float[np.ndarray, " layers_and_norm"]:
    """Isotropy of the embeddings, of the output of each block, and of the states after the last norm, in this order.

    The last is what the paper measures; the others are what flows through the model (the last but one is the last
    block's output, before the norm).

    Args:
        model, params: a `Decoder` and its parameters.
        rows: ``input_ids`` and ``attention_mask`` [texts, time]; True or 1 on real tokens.
        batch_size: texts at once, over all devices of `mesh`.

    Raises:
        ValueError: no text has two real tokens.
    """
    given = {name: np.asarray(rows[name]) for name in ("input_ids", "attention_mask")}
    totals, pairs = map_rows(_program(model, mesh), params, given, batch_size=batch_size, mesh=mesh)
    if not pairs.sum():
        raise ValueError("isotropy is over pairs of tokens of a text: no text has two real tokens")
    return 1 - totals.sum(0, dtype=np.float64) / pairs.sum(dtype=np.float64)


@functools.lru_cache(maxsize=8)
def _program(model: Any, mesh: Mesh) -> Any:
    """Sums of cosines [rows, layers + 2] and numbers of pairs [rows]."""

    def of_batch(params: Any, batch: Any) -> tuple[Float[Array, "rows places"], Float[Array, " rows"]]:
        def run(ids: Array, mask: Array) -> Array:
            return model.apply({"params": params}, ids, mask, method="trunk")[0]

        mask = batch["attention_mask"]
        captured: tuple[Array, Any] = capture(run, ("embeddings", "layer_output"))(batch["input_ids"], mask)
        last, inside = captured
        places = jnp.concatenate([inside["embeddings"][None], inside["layer_output"], last[None]])
        found = jax.vmap(jax.vmap(cosine_pairs), in_axes=(0, None))(places, mask.astype(bool))
        return found.total.T, found.num_pairs[0]

    return jit_on_mesh(of_batch, mesh, out_shardings=batch_sharding(mesh))
