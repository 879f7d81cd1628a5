"""Triplet loss over a labelled batch: hardest, semi-hard, or all triplets, with a margin or a soft one."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.losses.input_checks import check_labels
from jaxcore.losses.metric_learning import pair_kinds
from jaxcore.losses.pair_rows import map_similarity_rows
from jaxcore.losses.pairs import Exchange, Reduction, Side, reduce_pairs
from jaxcore.losses.similarity import similarity_vectors

Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def triplet(
    embeddings: Float[Array, "n dim"],
    labels: Int[Array, " n"],
    *,
    margin: float | None = 0.2,
    mining: Literal["hard", "semi_hard", "all"] = "hard",
    distance: Distance = "euclidean",
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """Triplet loss: an anchor's positive must be nearer than its negative.

        l(a, p, n) = max(0, m + d_ap - d_an),  or softly log(1 + exp(d_ap - d_an))

    - "hard": for each anchor its farthest positive and nearest negative; mean over anchors that have both.
    - "semi_hard": for each anchor and positive the nearest negative that is farther than the positive, or where there
      is none the farthest negative; mean over (anchor, positive) pairs of anchors with a negative.
    - "all": mean over all triplets. The hinge takes O(N log N) per anchor (sorting), the soft margin O(N) per
      (anchor, positive); memory is linear in N in every case.

    No triplet at all gives 0. The gradient of a distance of 0 is 0.

    Args:
        embeddings, labels: [n, dim] and [n].
        margin: m; None for the soft margin.
        distance: of the vectors as they are ("euclidean", "squared_euclidean") or 1 - cosine.
        mesh: spread anchors over its batch axes; the value does not change.
        exchange: as for `info_nce`; used by "hard".

    Raises:
        ValueError: shapes that do not fit, fewer than two items, a negative margin.

    Source: Schroff et al. 2015 (semi-hard); Hermans et al. 2017 (hard, all, soft margin).
    """
    check_labels(embeddings, labels)
    if margin is not None and margin < 0:
        raise ValueError(f"margin must be >= 0, or None for a soft one: got {margin}")
    vectors = similarity_vectors(embeddings, normalize=distance == "cosine")
    wide = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    known = {"label": labels, "position": jnp.arange(labels.shape[0]), "squared_norm": jnp.sum(wide * wide, axis=1)}
    side = Side(vectors, known)
    if mining == "hard":
        extremes = reduce_pairs(_EXTREME_TERMS[distance], _EXTREMES, side, side, mesh=mesh, exchange=exchange)
        farthest_positive, nearest_negative = extremes["positive"].value, -extremes["negative"].value
        complete = (farthest_positive > -jnp.inf) & (nearest_negative < jnp.inf)
        gap = jnp.where(complete, farthest_positive, 0) - jnp.where(complete, nearest_negative, 0)
        losses, counts = jnp.where(complete, _hinge(gap, margin), 0), complete
    else:
        of_anchor = partial(_ANCHOR[mining, margin is None], distance=distance, margin=margin)
        rows_at_once = 1 if margin is None and mining == "all" else 64
        losses, counts = map_similarity_rows(of_anchor, side, side, rows_at_once=rows_at_once, mesh=mesh)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(counts), 1)


def _hinge(gap: Array, margin: float | None) -> Array:
    return jax.nn.softplus(gap) if margin is None else jnp.maximum(gap + margin, 0)


def _distances(similarity: Array, of_rows: dict, of_columns: dict, distance: Distance) -> Array:
    if distance == "cosine":
        return 1 - similarity
    squared = jnp.maximum(of_rows["squared_norm"] + of_columns["squared_norm"] - 2 * similarity, 0)
    if distance == "squared_euclidean":
        return squared
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _extreme_distances(
    similarity: Array, of_rows: dict, of_columns: dict, shared: tuple, *, distance: Distance
) -> dict[str, Array]:
    positive, negative = pair_kinds(of_rows, of_columns)
    distances = _distances(similarity, of_rows, of_columns, distance)
    return {
        "positive": jnp.where(positive, distances, -jnp.inf),
        "negative": jnp.where(negative, -distances, -jnp.inf),
    }


_EXTREMES = {"positive": Reduction("row", "max"), "negative": Reduction("row", "max")}
_EXTREME_TERMS = {
    kind: partial(_extreme_distances, distance=kind) for kind in ("euclidean", "squared_euclidean", "cosine")
}


# ---- one anchor: (sum of losses, number of terms) --------------------------------------------------------


def _semi_hard(
    similarity: Array, of_row: dict, of_columns: dict, *, distance: Distance, margin: float | None
) -> tuple[Array, Array]:
    distances = _distances(similarity, of_row, of_columns, distance)
    positive, negative = pair_kinds(of_row, of_columns)
    ordered = jnp.sort(jnp.where(negative, distances, jnp.inf))
    num_negatives = jnp.sum(negative)
    following = jnp.searchsorted(ordered, distances, side="right")
    chosen = ordered[jnp.clip(jnp.minimum(following, num_negatives - 1), 0)]
    used = positive & (num_negatives > 0)
    gap = jnp.where(used, distances - jnp.where(used, chosen, 0), 0)
    return jnp.sum(jnp.where(used, _hinge(gap, margin), 0)), jnp.sum(used)


def _all_hinges(
    similarity: Array, of_row: dict, of_columns: dict, *, distance: Distance, margin: float
) -> tuple[Array, Array]:
    """Per positive, the negatives within the margin are a prefix of the sorted ones: a count and a sum suffice."""
    distances = _distances(similarity, of_row, of_columns, distance)
    positive, negative = pair_kinds(of_row, of_columns)
    ordered = jnp.sort(jnp.where(negative, distances, jnp.inf))
    num_negatives = jnp.sum(negative)
    sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.where(jnp.isfinite(ordered), ordered, 0))])
    within = jnp.minimum(jnp.searchsorted(ordered, jax.lax.stop_gradient(distances) + margin), num_negatives)
    losses = within * (distances + margin) - sums[within]
    return jnp.sum(losses, where=positive), jnp.sum(positive) * num_negatives


def _all_soft(
    similarity: Array, of_row: dict, of_columns: dict, *, distance: Distance, margin: None
) -> tuple[Array, Array]:
    distances = _distances(similarity, of_row, of_columns, distance)
    positive, negative = pair_kinds(of_row, of_columns)

    def of_positive(p: Array) -> Array:
        def present() -> Array:
            return jnp.sum(jax.nn.softplus(distances[p] - distances), where=negative)

        return jax.lax.cond(positive[p], present, lambda: jnp.zeros((), distances.dtype))

    losses = jax.lax.map(jax.checkpoint(of_positive), jnp.arange(distances.shape[0]))
    return jnp.sum(losses), jnp.sum(positive) * jnp.sum(negative)


_ANCHOR: dict[tuple[str, bool], Callable[..., tuple[Array, Array]]] = {
    ("semi_hard", False): _semi_hard,
    ("semi_hard", True): _semi_hard,
    ("all", False): _all_hinges,
    ("all", True): _all_soft,
}
