"""InfoNCE: each query against its own key and everybody else's; one-sided, both ways, and between two views."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.input_checks import (
    check_length,
    check_pair_shapes,
    check_same_shape,
    check_temperature,
    check_vectors,
)
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import paired_similarity, similarity_vectors

Temperature = float | Float[Array, ""]

_ROW = {"row": Reduction("row", "log_sum_exp")}
_BOTH = {**_ROW, "column": Reduction("column", "log_sum_exp")}


def info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "m dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    negatives: Float[Array, "k dim"] | Float[Array, "n k dim"] | None = None,
    negative_log_weights: Float[Array, " k"] | None = None,
    own_negative_log_weight: float = 0.0,
    items: Int[Array, " n"] | None = None,
    reference: tuple[Float[Array, "n e"], Float[Array, "n e"]] | None = None,
    reference_threshold: float = 1.0,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """One-sided InfoNCE; key i is the positive of query i, all keys are its candidates.

        L = -(1/n) sum_i [ s_ii / tau - log sum_{j<m} exp(s_ij / tau) ],   s_ij = cos(q_i, k_j)

    computed as ``log(1 + exp(log sum_{j != i} exp(l_ij) - l_ii))``, which keeps its digits when it is nearly 0.

    Args:
        queries: [n, dim].
        keys: [m, dim] with m >= n; keys beyond the n-th are negatives only.
        temperature: tau > 0 divides the similarity (a *scale* of peers is 1 / tau); may be a learnt scalar.
        normalize: cosine similarity (the field's default); False takes the vectors' dot products as they are.
        negatives: further candidates of every query: [k, dim] (a queue, mined texts), or [n, k, dim] hard negatives
            that belong to the queries (all n k of them are contrasted with every query, as in SimCSE and NegCLIP).
        negative_log_weights: [k], added to the logits of ``negatives``; -inf leaves one out (an empty queue slot).
        own_negative_log_weight: added to the logit between a query and its own hard negatives (SimCSE's
            ``hard_negative_weight``); asks for ``negatives`` of shape [n, k, dim].
        items: [n]; key j is no negative of query i where ``items[i] == items[j]`` (the same text twice, the same
            label). A negative number equals no other.
        reference: vectors of the queries and of the first n keys under a frozen teacher; key j != i is no negative of
            query i where their cosine exceeds `reference_threshold`.
        mesh: spread rows over its batch axes under `jax.shard_map`; the value does not change.
        exchange: how columns reach the rows on a mesh (`jaxcore.losses.pairs`); by size unless given.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, NaN outside `jit`, a batch that the
            mesh does not divide.

    Source: van den Oord et al. 2018, eq. 4; Sohn 2016; own hard negatives: Gao et al. 2021 (SimCSE).
    """
    return jnp.mean(
        info_nce_rows(
            queries,
            keys,
            temperature=temperature,
            normalize=normalize,
            negatives=negatives,
            negative_log_weights=negative_log_weights,
            own_negative_log_weight=own_negative_log_weight,
            items=items,
            reference=reference,
            reference_threshold=reference_threshold,
            mesh=mesh,
            exchange=exchange,
        )
    )


def info_nce_rows(
    queries: Float[Array, "n dim"], keys: Float[Array, "m dim"], *, temperature: Temperature, **options: Any
) -> Float[Array, " n"]:
    """The summands of `info_nce`, one per query; the same options."""
    contrast = contrast_rows(queries, keys, temperature=temperature, **options)
    return jax.nn.softplus(contrast.log_negatives - contrast.positive)


class Contrast(NamedTuple):
    """Per query: the logit ``l_ii`` of its own key and ``log sum_{j in negatives} exp(l_ij)``.

    ``column_log_negatives`` is the same sum per key, over the queries; None unless asked for.
    """

    positive: Float[Array, " n"]
    log_negatives: Float[Array, " n"]
    column_log_negatives: Float[Array, " n"] | None = None


def contrast_rows(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "m dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    negatives: Array | None = None,
    negative_log_weights: Array | None = None,
    own_negative_log_weight: float = 0.0,
    key_log_weights: Float[Array, " n"] | None = None,
    items: Int[Array, " n"] | None = None,
    reference: tuple[Array, Array] | None = None,
    reference_threshold: float = 1.0,
    both_ways: bool = False,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Contrast:
    """Positive and negative parts of InfoNCE, from which its relatives are made; options as for `info_nce`.

    Args:
        key_log_weights: [n], added to the logits of keys where they are negatives.
        both_ways: also reduce per key (then with as many keys as queries, and ``negatives`` for queries only).
    """
    check_pair_shapes(queries, keys)
    check_temperature(temperature)
    count = queries.shape[0]
    check_length("items", items, count)
    check_length("key_log_weights", key_log_weights, count)
    negatives, owners = _flat_negatives(queries, negatives, own_negative_log_weight)
    if keys.shape[0] > count:
        negatives, owners = _further_keys(keys[count:], negatives, owners)
        keys = keys[:count]
    rows, columns = (similarity_vectors(x, normalize=normalize) for x in (queries, keys))
    known = _known_of_rows(count, items, reference)
    known_of_columns = _known_of_rows(count, items, None if reference is None else reference[::-1])
    if key_log_weights is not None:
        known_of_columns["log_weight"] = key_log_weights
    shared = {"temperature": temperature, "threshold": reference_threshold, "own": own_negative_log_weight}
    options: dict[str, Any] = {"shared": shared, "mesh": mesh, "exchange": exchange}
    among_keys = reduce_pairs(
        _negative_logits, _BOTH if both_ways else _ROW, Side(rows, known), Side(columns, known_of_columns), **options
    )
    log_negatives = among_keys["row"]
    if negatives is not None:
        further: dict[str, Array] = {} if owners is None else {"owner": owners}
        if negative_log_weights is not None:
            check_length("negative_log_weights", negative_log_weights, negatives.shape[0])
            further["log_weight"] = negative_log_weights
        columns_further = Side(similarity_vectors(negatives, normalize=normalize), further)
        among_further = reduce_pairs(_further_logits, _ROW, Side(rows, known), columns_further, **options)
        log_negatives = jnp.logaddexp(log_negatives, among_further["row"])
    return Contrast(paired_similarity(rows, columns) / temperature, log_negatives, among_keys.get("column"))


def _negative_logits(similarity: Array, of_rows: dict, of_columns: dict, shared: dict) -> dict[str, Array]:
    logits = similarity / shared["temperature"]
    excluded = of_rows["position"] == of_columns["position"]
    if "item" in of_rows:
        excluded |= (of_rows["item"] == of_columns["item"]) & (of_rows["item"] >= 0)
    if "reference" in of_rows:
        teacher = jnp.einsum(
            "ie,je->ij", of_rows["reference"], of_columns["reference"], preferred_element_type=jnp.float32
        )
        excluded |= teacher > shared["threshold"]
    if "log_weight" in of_columns:
        logits = logits + of_columns["log_weight"]
    logits = jnp.where(excluded, -jnp.inf, logits)
    return {"row": logits, "column": logits}


def _further_logits(similarity: Array, of_rows: dict, of_columns: dict, shared: dict) -> dict[str, Array]:
    logits = similarity / shared["temperature"]
    if "owner" in of_columns:
        logits = logits + jnp.where(of_rows["position"] == of_columns["owner"], shared["own"], 0.0)
    if "log_weight" in of_columns:
        logits = logits + of_columns["log_weight"]
    return {"row": logits}


def _known_of_rows(count: int, items: Array | None, reference: tuple[Array, Array] | None) -> dict[str, Array]:
    known = {"position": jnp.arange(count)}
    if items is not None:
        known["item"] = items
    if reference is not None:
        if any(x.ndim != 2 or x.shape[0] != count for x in reference):
            raise ValueError(f"reference vectors must be [{count}, e]: got {[x.shape for x in reference]}")
        known["reference"] = jax.lax.stop_gradient(similarity_vectors(reference[0], normalize=True))
    return known


def _flat_negatives(queries: Array, negatives: Array | None, own_weight: float) -> tuple[Array | None, Array | None]:
    """Negatives as [k, dim], and for those that belong to queries, to which."""
    if negatives is None or negatives.ndim == 2:
        if own_weight:
            raise ValueError(
                "own_negative_log_weight needs negatives [n, k, dim]: got "
                + ("none" if negatives is None else str(negatives.shape))
            )
        if negatives is not None and (negatives.shape[1] != queries.shape[1] or not negatives.shape[0]):
            raise ValueError(f"negatives must be [k, {queries.shape[1]}]: got {negatives.shape}")
        return negatives, None
    if negatives.ndim != 3 or negatives.shape[::2] != queries.shape or not negatives.shape[1]:
        raise ValueError(
            f"hard negatives must be [n, k, dim] for queries [n, dim]: got {negatives.shape} for {queries.shape}"
        )
    return negatives.reshape(-1, queries.shape[1]), jnp.repeat(jnp.arange(queries.shape[0]), negatives.shape[1])


def _further_keys(further: Array, negatives: Array | None, owners: Array | None) -> tuple[Array, Array | None]:
    if negatives is None:
        return further, None
    everyone = jnp.full(further.shape[0], -1)
    owners = None if owners is None else jnp.concatenate([everyone, owners])
    return jnp.concatenate([further, negatives]), owners


def symmetric_info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    negatives: Float[Array, "k dim"] | Float[Array, "n k dim"] | None = None,
    items: Int[Array, " n"] | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """The mean of `info_nce` read along the rows and along the columns (CLIP's loss), in one pass over the matrix.

        L = (info_nce(q, k) + info_nce(k, q)) / 2

    With ``negatives`` (NegCLIP: hard captions), they are candidates of the queries and have no query of their own.
    Arguments and errors as for `info_nce`, with as many keys as queries.

    Source: Radford et al. 2021, figure 3; Yuksekgonul et al. 2023 (NegCLIP).
    """
    if queries.shape != keys.shape:
        raise ValueError(f"symmetric_info_nce needs as many keys as queries: got {queries.shape} and {keys.shape}")
    contrast = contrast_rows(
        queries,
        keys,
        temperature=temperature,
        normalize=normalize,
        negatives=negatives,
        items=items,
        both_ways=True,
        mesh=mesh,
        exchange=exchange,
    )
    assert contrast.column_log_negatives is not None
    forward = jax.nn.softplus(contrast.log_negatives - contrast.positive)
    backward = jax.nn.softplus(contrast.column_log_negatives - contrast.positive)
    return jnp.mean(forward + backward) / 2


def queue_info_nce(
    queries: Float[Array, "n dim"],
    keys: Float[Array, "n dim"],
    queue: Float[Array, "m dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    queue_log_weights: Float[Array, " m"] | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Each query against its own key and a queue of earlier keys, and nobody else of the batch (MoCo).

        L = -(1/n) sum_i log [ exp(s_ii / tau) / (exp(s_ii / tau) + sum_{j<m} exp(<q_i, k_j> / tau)) ]

    No gradient flows to keys and queue: they come from a momentum encoder (`jaxcore.losses.momentum_update`); push the
    keys after the loss (`jaxcore.losses.push`). To have the batch's keys as negatives too, give the queue to `info_nce`
    as ``negatives``.

    Args:
        queue: [m, dim], split over the mesh like the batch.
        queue_log_weights: [m]; -inf marks slots not filled yet.
        Others and errors as for `info_nce`.

    Source: He et al. 2020 (MoCo), eq. 1.
    """
    check_same_shape(queries, keys, names="queries and keys")
    check_temperature(temperature)
    check_vectors("queue", queue)
    check_length("queue_log_weights", queue_log_weights, queue.shape[0])
    rows, own, columns = (similarity_vectors(x, normalize=normalize) for x in (queries, keys, queue))
    own, columns = jax.lax.stop_gradient((own, columns))
    log_negatives = reduce_pairs(
        _further_logits,
        _ROW,
        Side(rows),
        Side(columns, {} if queue_log_weights is None else {"log_weight": queue_log_weights}),
        shared={"temperature": temperature},
        mesh=mesh,
        exchange=exchange,
    )["row"]
    return jnp.mean(jax.nn.softplus(log_negatives - paired_similarity(rows, own) / temperature))


def nt_xent(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """NT-Xent: every view of every item is an anchor, its other view the positive, all 2n - 2 others the negatives.

        L = (1/2n) sum_{a of 2n} -log [ exp(s_a,a+ / tau) / sum_{b != a} exp(s_ab / tau) ]

    Args:
        first, second: [n, dim], two views of the same items.
        Others and errors as for `info_nce`.

    Source: Chen et al. 2020 (SimCLR), eq. 1.
    """
    parts = two_view_parts(first, second, temperature=temperature, normalize=normalize, mesh=mesh, exchange=exchange)
    losses = [jax.nn.softplus(log_negatives - parts.positive) for log_negatives in parts.log_negatives]
    return jnp.mean(losses[0] + losses[1]) / 2


class TwoViews(NamedTuple):
    """Per item, the logit between its views, and the log-sum-exp over the 2n - 2 negatives of the first and second."""

    positive: Float[Array, " n"]
    log_negatives: tuple[Float[Array, " n"], Float[Array, " n"]]


def two_view_parts(
    first: Float[Array, "n dim"],
    second: Float[Array, "n dim"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> TwoViews:
    """Positive and negative parts of `nt_xent`, from which its relatives are made; arguments as there.

    Three blocks of the 2n x 2n matrix are computed: the fourth is the transpose of the second.
    """
    check_same_shape(first, second, names="first and second")
    check_temperature(temperature)
    a, b = (similarity_vectors(x, normalize=normalize) for x in (first, second))
    known = _known_of_rows(first.shape[0], None, None)
    options: dict[str, Any] = {"shared": {"temperature": temperature}, "mesh": mesh, "exchange": exchange}
    across = reduce_pairs(_negative_logits, _BOTH, Side(a, known), Side(b, known), **options)
    among_first = reduce_pairs(_negative_logits, _ROW, Side(a, known), Side(a, known), **options)["row"]
    among_second = reduce_pairs(_negative_logits, _ROW, Side(b, known), Side(b, known), **options)["row"]
    log_negatives = jnp.logaddexp(across["row"], among_first), jnp.logaddexp(across["column"], among_second)
    return TwoViews(paired_similarity(a, b) / temperature, log_negatives)
