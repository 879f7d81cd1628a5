"""Supervised contrastive loss over several positives per anchor, and the form STAR's released code computes."""

from typing import Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.info_nce import Temperature
from jaxcore.losses.input_checks import check_labels, check_length, check_temperature
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors, unit_vectors


def supervised_contrastive(
    embeddings: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    temperature: Temperature,
    normalize: bool = True,
    positives: Literal["out", "in"] = "out",
    memory: tuple[Float[Array, "m dim"], Int[Array, " m"]] | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """SupCon, with the mean over positives outside the logarithm ("out") or inside it ("in").

        L_out = -(1/|A|) sum_{i in A} (1/|P_i|) sum_{p in P_i} [ s_ip / tau - log sum_{a != i} exp(s_ia / tau) ]
        L_in  = -(1/|A|) sum_{i in A} log [ (1/|P_i|) sum_{p in P_i} exp(s_ip / tau) / sum_{a != i} exp(s_ia / tau) ]

    P_i holds the other items with i's label; the self pair is in neither numerator nor denominator. A is the set
    of anchors with at least one positive: an anchor without any takes part as a candidate only, and a batch
    without any positive pair has loss 0.

    Args:
        embeddings: [n, dim], in any row order (the value does not depend on it).
        labels: [n] integers.
        temperature: tau > 0; may be a learnt scalar.
        normalize: s_ij is the cosine (default) or, with False, the dot product.
        positives: the form; "out" is the stronger one in the source.
        memory: vectors of earlier batches with their labels (cross-batch memory): positives and candidates of every
            anchor, never anchors. A label of -1 marks an empty slot.
        mesh: spread rows over its batch axes under `jax.shard_map`; the value does not change.
        exchange: how columns reach the rows on a mesh (`jaxcore.losses.pairs`); by size unless given.

    Raises:
        ValueError: shapes that do not fit, fewer than two items, or a temperature that is not positive.

    Source: Khosla et al. 2020, eq. 2 and 3; Huertas-Tato et al. 2023 (STAR); memory: Wang et al. 2020 (XBM).
    """
    check_labels(embeddings, labels)
    check_temperature(temperature)
    vectors = similarity_vectors(embeddings, normalize=normalize)
    rows = Side(vectors, {"label": labels, "position": jnp.arange(labels.shape[0])})
    options: dict[str, Any] = {"shared": temperature, "mesh": mesh, "exchange": exchange}
    parts = reduce_pairs(_logits, _REDUCTIONS[positives], rows, rows, **options)
    if memory is not None:
        check_length("labels of the memory", memory[1], memory[0].shape[0])
        remembered = similarity_vectors(memory[0], normalize=normalize)
        columns = Side(remembered, {"label": memory[1], "position": jnp.full(memory[1].shape, -1)})
        further = reduce_pairs(_logits, _REDUCTIONS[positives], rows, columns, **options)
        parts = {name: _together(name, parts[name], further[name]) for name in parts}
    count, log_candidates = parts["count"], parts["log_candidates"]
    if positives == "out":
        return _mean_over_anchors(log_candidates, parts["positive_sum"], count)
    has_positive = count > 0
    log_positives = jnp.where(has_positive, parts["log_positives"], 0)
    losses = log_candidates - log_positives + jnp.log(jnp.maximum(count, 1))
    return jnp.sum(losses, where=has_positive) / jnp.maximum(jnp.sum(has_positive), 1)


_LOG_CANDIDATES = {"log_candidates": Reduction("row", "log_sum_exp"), "count": Reduction("row", "sum")}
_REDUCTIONS = {
    "out": {**_LOG_CANDIDATES, "positive_sum": Reduction("row", "sum")},
    "in": {**_LOG_CANDIDATES, "log_positives": Reduction("row", "log_sum_exp")},
}


def _logits(similarity: Array, of_rows: dict, of_columns: dict, temperature: Array) -> dict[str, Array]:
    logits = similarity / temperature
    candidate = (of_rows["position"] != of_columns["position"]) & (of_columns["label"] != _EMPTY)
    positive = candidate & (of_rows["label"] == of_columns["label"])
    return {
        "log_candidates": jnp.where(candidate, logits, -jnp.inf),
        "positive_sum": jnp.where(positive, logits, 0),
        "log_positives": jnp.where(positive, logits, -jnp.inf),
        "count": positive.astype(logits.dtype),
    }


_EMPTY = -1


def _together(name: str, a: Array, b: Array) -> Array:
    return jnp.logaddexp(a, b) if name.startswith("log_") else a + b


def feature_normalized_contrastive(
    embeddings: Float[Array, "n dim"], labels: Int[Array, " n"], *, scale: float = 100.0
) -> Float[Array, ""]:
    """What STAR's published code computes in place of SupCon; kept for parity and as an ablation only.

        l_ij = scale * sum_d (e_id / |e_i|) (e_jd / c_d),   c_d = sqrt(sum_k e_kd^2)

    with SupCon's "out" form on l_ij. The second factor divides every *feature* by its norm over the batch instead
    of every text by its own, so l is no cosine, not symmetric, and depends on who else is in the batch. The scale
    is 100 whatever the temperature, because the clamp's bound is given as a minimum. As there, the logarithm's
    argument is offset by 1e-12 after the row maximum (self pair included) has been subtracted.

    Source: github.com/jahuerta92/star, losses.py (behaviour; the code here is our own).
    """
    check_labels(embeddings, labels)
    embeddings = embeddings.astype(jnp.float32)
    by_feature = embeddings / jnp.maximum(jnp.linalg.norm(embeddings, axis=0, keepdims=True), 1e-12)
    logits = scale * unit_vectors(embeddings) @ by_feature.T
    logits = logits - jnp.max(logits, axis=1, keepdims=True)
    self_pair = jnp.eye(labels.shape[0], dtype=bool)
    positive = (labels[:, None] == labels[None, :]) & ~self_pair
    log_normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=1, where=~self_pair) + 1e-12)
    return _mean_over_anchors(
        log_normalizer, jnp.sum(logits, axis=1, where=positive), jnp.sum(positive, axis=1, dtype=jnp.float32)
    )


def _mean_over_anchors(log_normalizer: Array, positive_sum: Array, positive_count: Array) -> Array:
    has_positive = positive_count > 0
    losses = log_normalizer - positive_sum / jnp.maximum(positive_count, 1)
    return jnp.sum(losses, where=has_positive) / jnp.maximum(jnp.sum(has_positive), 1)
