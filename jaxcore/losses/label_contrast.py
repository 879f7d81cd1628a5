"""Contrast across two labelled sides: captions of one image, texts and label descriptions, items and class centres."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.info_nce import Temperature, info_nce
from jaxcore.losses.input_checks import check_length, check_same_shape, check_temperature, check_vectors
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors


def cross_supervised_contrastive(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "m dim"],
    query_labels: Int[Array, " n"],
    key_labels: Int[Array, " m"],
    *,
    temperature: Temperature,
    both_ways: bool = True,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Queries against keys of the other side, several of which may match: cross-entropy with uniform soft targets.

        L_q = (1/|A|) sum_{i in A} [ log sum_j e^{l_ij} - (1/|P_i|) sum_{p in P_i} l_ip ],  P_i = {j : y_j = y_i}

    Covers input-label contrast (texts against label embeddings, where equal labels of a batch are no false negatives)
    and image-text matching with several captions. A holds the queries that have a key; the others add nothing.

    Args:
        queries, keys: [n, dim] and [m, dim] with their labels [n] and [m].
        both_ways: the mean of this and the same loss for keys against queries; False for queries only (a label table
            larger than the batch).
        Others and errors as for `info_nce`.

    Source: Khosla et al. 2020 (out form) across two sides; Yuan et al. 2023 (PIR), contrastive loss with P_ij.
    """
    check_vectors("queries", queries)
    check_vectors("keys", keys)
    check_length("query_labels", query_labels, queries.shape[0])
    check_length("key_labels", key_labels, keys.shape[0])
    check_temperature(temperature)
    parts = reduce_pairs(
        _matching_logits,
        {name: r for name, r in _PARTS.items() if both_ways or r.per == "row"},
        Side(similarity_vectors(queries, normalize=normalize), query_labels),
        Side(similarity_vectors(keys, normalize=normalize), key_labels),
        shared=temperature,
        mesh=mesh,
        exchange=exchange,
    )
    of_queries = _mean_loss(parts["row"], parts["row_matching"], parts["row_count"])
    if not both_ways:
        return of_queries
    return (of_queries + _mean_loss(parts["column"], parts["column_matching"], parts["column_count"])) / 2


_PARTS = {
    "row": Reduction("row", "log_sum_exp"),
    "row_matching": Reduction("row", "sum"),
    "row_count": Reduction("row", "sum"),
    "column": Reduction("column", "log_sum_exp"),
    "column_matching": Reduction("column", "sum"),
    "column_count": Reduction("column", "sum"),
}


def _matching_logits(similarity: Array, of_rows: Array, of_columns: Array, temperature: Array) -> dict[str, Array]:
    logits = similarity / temperature
    match = of_rows == of_columns
    matching, count = jnp.where(match, logits, 0), match.astype(logits.dtype)
    return {
        "row": logits,
        "row_matching": matching,
        "row_count": count,
        "column": logits,
        "column_matching": matching,
        "column_count": count,
    }


def _mean_loss(log_candidates: Array, matching: Array, count: Array) -> Array:
    used = count > 0
    losses = log_candidates - matching / jnp.maximum(count, 1)
    return jnp.sum(losses, where=used) / jnp.maximum(jnp.sum(used), 1)


class ClassCentres(NamedTuple):
    """The mean vector of each item's class, and the class's size in the batch."""

    centres: Float[Array, "n dim"]
    sizes: Float[Array, " n"]


def class_centres(vectors: Float[Array, "n dim"], labels: Int[Array, " n"]) -> ClassCentres:
    """``c_i = (1/n_i) sum_{j : y_j = y_i} x_j`` for every item, not re-normalised; O(N d) memory, gradients flow."""
    _, slot = jnp.unique(labels, size=labels.shape[0], return_inverse=True)
    slot = slot.reshape(-1)
    wide = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    total = jax.ops.segment_sum(wide, slot, num_segments=labels.shape[0])
    sizes = jax.ops.segment_sum(jnp.ones(labels.shape, wide.dtype), slot, num_segments=labels.shape[0])
    return ClassCentres((total / jnp.maximum(sizes, 1)[:, None])[slot], sizes[slot])


def cluster_contrastive(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Each item of one side against the class centres of the other, both ways (attribution loss of PIR / PriorCLIP).

        L_a = (1/2) [ CE_k( <v_i, c^T_k> / tau, k = i ) + CE_k( <t_i, c^I_k> / tau, k = i ) ],  mean over i

    Column k is the centre of item k's class, so a class counts as often as it occurs in the batch and the minimum is
    ``mean log n_i``, not 0.

    Args:
        first, second: [n, dim], the two sides (images and their texts).
        labels: [n], the class of each pair.
        Others and errors as for `info_nce`; `normalize` applies to the items, never to the centres.

    Source: Pan et al. 2023 (PIR), affiliation loss; PriorCLIP, not transposed.
    """
    check_same_shape(first, second, names="first and second")
    check_length("labels", labels, first.shape[0])
    check_temperature(temperature)
    a, b = (similarity_vectors(x, normalize=normalize) for x in (first, second))
    options: dict[str, Any] = {"temperature": temperature, "normalize": False, "mesh": mesh, "exchange": exchange}
    of_first = info_nce(a, class_centres(b, labels).centres.astype(b.dtype), **options)
    of_second = info_nce(b, class_centres(a, labels).centres.astype(a.dtype), **options)
    return (of_first + of_second) / 2
