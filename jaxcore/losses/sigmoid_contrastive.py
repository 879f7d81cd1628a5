"""Pairwise sigmoid loss: every pair is a yes-or-no question of its own."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.info_nce import Temperature
from jaxcore.losses.input_checks import check_length, check_same_shape, check_temperature
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors


def sigmoid_contrastive(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    bias: float | Float[Array, ""],
    normalize: bool = True,
    items: Int[Array, " n"] | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """SigLIP's loss: binary cross-entropy of each of the n x n pairs.

        L = (1/n) sum_ij log(1 + exp(-z_ij (s_ij / tau + b))),   z_ij = 1 for a match, else -1

    Args:
        queries, keys: [n, dim]; key i matches query i.
        temperature: tau > 0; the source learns ``t = 1 / tau`` from 10.
        bias: b, learnt from -10 in the source, against the many non-matches.
        items: [n]; pairs with equal non-negative items match too (one image, several captions).
        normalize, mesh, exchange, errors: as for `info_nce`.

    Source: Zhai et al. 2023, algorithm 1.
    """
    check_same_shape(queries, keys, names="queries and keys")
    check_temperature(temperature)
    check_length("items", items, queries.shape[0])
    rows, columns = (similarity_vectors(x, normalize=normalize) for x in (queries, keys))
    known = {"position": jnp.arange(queries.shape[0])} | ({} if items is None else {"item": items})
    losses = reduce_pairs(
        _pair_losses,
        {"row": Reduction("row", "sum")},
        Side(rows, known),
        Side(columns, known),
        shared={"temperature": temperature, "bias": bias},
        mesh=mesh,
        exchange=exchange,
    )
    return jnp.mean(losses["row"])


def _pair_losses(similarity: Array, of_rows: dict, of_columns: dict, shared: dict) -> dict[str, Array]:
    match = of_rows["position"] == of_columns["position"]
    if "item" in of_rows:
        match |= (of_rows["item"] == of_columns["item"]) & (of_rows["item"] >= 0)
    logits = similarity / shared["temperature"] + shared["bias"]
    return {"row": jax.nn.softplus(jnp.where(match, -logits, logits))}
