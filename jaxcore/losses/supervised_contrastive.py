"""Supervised contrastive loss over several positives per anchor, and the form STAR's released code computes."""

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.info_nce import check_temperature
from jaxcore.losses.pairs import Side, row_statistics
from jaxcore.losses.similarity import unit_vectors


def supervised_contrastive(
    embeddings: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    temperature: float | Float[Array, ""],
    normalize: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """SupCon, "out" form: the mean over positives stands outside the logarithm.

        L = -(1/|A|) sum_{i in A} (1/|P_i|) sum_{p in P_i} [ s_ip / tau - log sum_{a != i} exp(s_ia / tau) ]

    P_i holds the other items with i's label; the self pair is in neither numerator nor denominator. A is the set
    of anchors with at least one positive: an anchor without any takes part as a candidate only, and a batch
    without any positive pair has loss 0.

    Args:
        embeddings: [n, dim], in any row order (the value does not depend on it).
        labels: [n] integers.
        temperature: tau > 0; may be a learnt scalar.
        normalize: s_ij is the cosine (default) or, with False, the dot product.
        mesh: spread rows over its batch axes under `jax.shard_map`; the value does not change.

    Raises:
        ValueError: shapes that do not fit, fewer than two items, or a temperature that is not positive.

    Source: Khosla et al. 2020, eq. 2 (L_out); Huertas-Tato et al. 2023 (STAR).
    """
    _check(embeddings, labels)
    check_temperature(temperature)
    vectors = unit_vectors(embeddings) if normalize else embeddings
    side = Side(vectors, labels, jnp.arange(labels.shape[0]))
    statistics = row_statistics(side, side, temperature=temperature, mesh=mesh)
    return _mean_over_anchors(statistics.log_normalizer, statistics.positive_sum, statistics.positive_count)


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
    _check(embeddings, labels)
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


def _check(embeddings: Array, labels: Array) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"expected embeddings [n, dim] and labels [n]: got {embeddings.shape} and {labels.shape}")
    if embeddings.shape[0] < 2:
        raise ValueError(f"a contrastive batch needs at least two items: got {embeddings.shape[0]}")
