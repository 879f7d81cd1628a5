"""Losses of deep metric learning that weigh the pairs of a labelled batch: multi-similarity and circle."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.input_checks import check_labels, check_positive
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors

_LOG_SUMS = {"positive": Reduction("row", "log_sum_exp"), "negative": Reduction("row", "log_sum_exp")}
_EXTREMES = {"positive": Reduction("row", "max"), "negative": Reduction("row", "max")}


def multi_similarity(
    embeddings: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    positive_scale: float = 2.0,
    negative_scale: float = 50.0,
    threshold: float = 0.5,
    mining_margin: float | None = 0.1,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Multi-similarity loss, with its pair mining.

        L = (1/n) sum_i [ (1/alpha) log(1 + sum_{p in P_i} e^{-alpha (s_ip - lambda)})
                        + (1/beta)  log(1 + sum_{m in N_i} e^{beta (s_im - lambda)}) ]

    Mining keeps a negative with ``s_im > min_p s_ip - epsilon`` and a positive with ``s_ip < max_m s_im + epsilon``. An
    anchor without any pair left adds 0.

    Args:
        embeddings, labels: [n, dim] and [n]; other items of the same label are positives.
        positive_scale, negative_scale: alpha and beta; threshold: lambda.
        mining_margin: epsilon; None keeps every pair.
        normalize, mesh, exchange: as for `info_nce`.

    Raises:
        ValueError: shapes that do not fit, fewer than two items, a scale that is not positive.

    Source: Wang et al. 2019, eq. 11-15 (constants: section 4.1).
    """
    check_labels(embeddings, labels)
    check_positive("positive_scale", positive_scale)
    check_positive("negative_scale", negative_scale)
    side = _labelled(embeddings, labels, normalize)
    options: dict[str, Any] = {"mesh": mesh, "exchange": exchange}
    rows = side
    if mining_margin is not None:
        extremes = reduce_pairs(_extreme_similarities, _EXTREMES, side, side, **options)
        bounds = {
            "weakest_positive": -extremes["positive"].value - mining_margin,
            "strongest_negative": extremes["negative"].value + mining_margin,
        }
        rows = Side(side.vectors, side.known | jax.lax.stop_gradient(bounds))
    shared = {"alpha": positive_scale, "beta": negative_scale, "threshold": threshold}
    sums = reduce_pairs(_multi_similarity_terms, _LOG_SUMS, rows, side, shared=shared, **options)
    positive = jax.nn.softplus(sums["positive"]) / positive_scale
    return jnp.mean(positive + jax.nn.softplus(sums["negative"]) / negative_scale)


def _multi_similarity_terms(similarity: Array, of_rows: dict, of_columns: dict, shared: dict) -> dict[str, Array]:
    positive, negative = pair_kinds(of_rows, of_columns)
    if "weakest_positive" in of_rows:
        positive &= similarity < of_rows["strongest_negative"]
        negative &= similarity > of_rows["weakest_positive"]
    distance = similarity - shared["threshold"]
    return {
        "positive": jnp.where(positive, -shared["alpha"] * distance, -jnp.inf),
        "negative": jnp.where(negative, shared["beta"] * distance, -jnp.inf),
    }


def circle(
    embeddings: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    scale: float = 80.0,
    margin: float = 0.4,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Circle loss: every pair is pulled in proportion to how far it is from its optimum.

        L = (1/|A|) sum_{i in A} log(1 + sum_m e^{gamma a_im (s_im - m)} sum_p e^{-gamma a_ip (s_ip - 1 + m)})
        a_ip = max(1 + m - s_ip, 0),  a_im = max(s_im + m, 0)    (no gradient through a)

    A holds the anchors with at least one positive and one negative; a batch without any has loss 0.

    Args:
        embeddings, labels: [n, dim] and [n]; cosines.
        scale: gamma > 0; margin: m.
        mesh, exchange: as for `info_nce`.

    Raises:
        ValueError: shapes that do not fit, fewer than two items, a scale that is not positive.

    Source: Sun et al. 2020, eq. 6 and 8.
    """
    check_labels(embeddings, labels)
    check_positive("scale", scale)
    side = _labelled(embeddings, labels, normalize=True)
    shared = {"scale": scale, "margin": margin}
    sums = reduce_pairs(_circle_terms, _LOG_SUMS, side, side, shared=shared, mesh=mesh, exchange=exchange)
    complete = (sums["positive"] > -jnp.inf) & (sums["negative"] > -jnp.inf)
    both = jnp.where(complete, sums["positive"], 0) + jnp.where(complete, sums["negative"], 0)
    return jnp.sum(jax.nn.softplus(both), where=complete) / jnp.maximum(jnp.sum(complete), 1)


def _circle_terms(similarity: Array, of_rows: dict, of_columns: dict, shared: dict) -> dict[str, Array]:
    positive, negative = pair_kinds(of_rows, of_columns)
    scale, margin = shared["scale"], shared["margin"]
    fixed = jax.lax.stop_gradient(similarity)
    pull, push = jnp.maximum(1 + margin - fixed, 0), jnp.maximum(fixed + margin, 0)
    return {
        "positive": jnp.where(positive, -scale * pull * (similarity - 1 + margin), -jnp.inf),
        "negative": jnp.where(negative, scale * push * (similarity - margin), -jnp.inf),
    }


def pair_kinds(of_rows: dict, of_columns: dict) -> tuple[Array, Array]:
    """Which pairs of a block are positive (same label, another item) and which negative."""
    same = of_rows["label"] == of_columns["label"]
    return same & (of_rows["position"] != of_columns["position"]), ~same


def _labelled(embeddings: Array, labels: Array, normalize: bool) -> Side:
    vectors = similarity_vectors(embeddings, normalize=normalize)
    return Side(vectors, {"label": labels, "position": jnp.arange(labels.shape[0])})


def _extreme_similarities(similarity: Array, of_rows: dict, of_columns: dict, shared: tuple) -> dict[str, Array]:
    positive, negative = pair_kinds(of_rows, of_columns)
    return {
        "positive": jnp.where(positive, -similarity, -jnp.inf),
        "negative": jnp.where(negative, similarity, -jnp.inf),
    }
