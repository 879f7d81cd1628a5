"""MAUVE: how far the texts of a machine and of people are from each other, in a language model's own terms.

Both sets of texts are given as features (a language model's last state of each text), quantised together by k-means;
P and Q are the shares of people's and of the machine's texts in the clusters. Then

    curve:  ( exp(-c KL(Q | R_w)), exp(-c KL(P | R_w)) ),   R_w = w P + (1 - w) Q,   0 < w < 1,   c = 5
    MAUVE = the area under it, from (0, 1) to (1, 0): 1 for equal histograms, near 0 for disjoint ones

Made after the published definition, not after the package ``mauve-text``: k-means is scikit-learn's where the package
uses faiss, so clusters, and with them the value, differ by what two runs of k-means with different seeds differ. The
other choices are the package's: unit-length features, their leading components up to 90 % of the variance, a tenth as
many clusters as texts, a curve of 25 points. Few texts give few clusters and a coarse value: compare only values from
equally many texts.

Source: Pillutla et al. 2021 (MAUVE), section 3 and appendix.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxcore.data.tokenization import attention_mask, pad_rows
from jaxcore.distributed import batch_sharding, jit_on_mesh
from jaxcore.evaluation.row_map import map_rows


def mauve(
    reference: Float[np.ndarray, "texts features"],
    generated: Float[np.ndarray, "others features"],
    *,
    num_clusters: int | None = None,
    scale: float = 5.0,
    num_points: int = 25,
    explained_variance: float = 0.9,
    seed: int = 0,
) -> float:
    """MAUVE of two sets of texts, in [0, 1].

    Args:
        reference, generated: features of people's and of the machine's texts, from one model.
        num_clusters: of k-means; None = a tenth of the smaller set, at least 2.
        scale: c.
        num_points: values of w.
        explained_variance: share of the variance that the leading components keep, in (0, 1].
        seed: of k-means.

    Raises:
        ValueError: not two matrices of one width, fewer than two texts in one, a number out of range.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    both = [np.asarray(features, np.float64) for features in (reference, generated)]
    if any(x.ndim != 2 or len(x) < 2 for x in both) or both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            "reference and generated must be [texts, features] of one width, two or more texts each: got "
            f"{both[0].shape} and {both[1].shape}"
        )
    if not all(np.isfinite(x).all() for x in both):
        raise ValueError("features must be finite numbers")
    clusters = num_clusters if num_clusters is not None else max(2, round(min(map(len, both)) / 10))
    if not 2 <= clusters <= len(both[0]) + len(both[1]):
        raise ValueError(
            f"num_clusters must be in 2..{len(both[0]) + len(both[1])}, the number of texts: got {clusters}"
        )
    if not 0 < explained_variance <= 1:
        raise ValueError(f"explained_variance must be in (0, 1]: got {explained_variance}")
    joined = np.concatenate(both)
    joined = joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-12)
    components = PCA(n_components=None, random_state=seed).fit(joined)
    kept = int(np.searchsorted(np.cumsum(components.explained_variance_ratio_), explained_variance) + 1)
    points = components.transform(joined)[:, :kept]
    labels = KMeans(clusters, n_init=5, max_iter=500, random_state=seed).fit_predict(points)
    counts = [np.bincount(part, minlength=clusters).astype(np.float64) for part in np.split(labels, [len(both[0])])]
    return divergence_area(counts[0], counts[1], scale=scale, num_points=num_points)


def divergence_area(
    reference: Float[np.ndarray, " clusters"],
    generated: Float[np.ndarray, " clusters"],
    *,
    scale: float = 5.0,
    num_points: int = 25,
) -> float:
    """Area under the divergence curve of two histograms (counts or shares).

    By trapezoids over x and over y, averaged: the curve is given by few points, and neither axis is the first.

    Raises:
        ValueError: not two histograms of one length with something in them, a negative entry, scale not above 0, fewer
            than two points.
    """
    p, q = (np.asarray(histogram, np.float64) for histogram in (reference, generated))
    if p.ndim != 1 or p.shape != q.shape or not (p.sum() > 0 and q.sum() > 0) or min(p.min(), q.min()) < 0:
        raise ValueError(f"expected two histograms of one length, none empty: got shapes {p.shape} and {q.shape}")
    if not scale > 0 or num_points < 2:
        raise ValueError(f"scale must be above 0 and num_points 2 or more: got {scale} and {num_points}")
    p, q = p / p.sum(), q / q.sum()
    weights = np.linspace(1e-6, 1 - 1e-6, num_points)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.concatenate([ends[:1], np.exp(-scale * _divergences(h, mixtures)), ends[1:]]) for h, ends in (
        (q, [0.0, 1.0]), (p, [1.0, 0.0]),
    ))  # fmt: skip
    return float((_area(x, y) + _area(y, x)) / 2)


def _divergences(histogram: np.ndarray, mixtures: np.ndarray) -> Float[np.ndarray, " points"]:
    """KL(histogram | mixture) in nats, for each mixture; the mixture is positive wherever the histogram is."""
    present = histogram > 0
    ratios = histogram[present] / mixtures[:, present]
    return np.sum(histogram[present] * np.log(ratios), axis=1)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    order = np.lexsort((-y, x))
    return float(np.trapezoid(y[order], x[order]))


# ---- features --------------------------------------------------------------------------------------------


def last_token_states(
    model: Any, params: Any, sequences: Sequence[Sequence[int]], *, batch_size: int, mesh: Mesh, max_length: int
) -> Float[np.ndarray, "texts hidden"]:
    """The decoder's state at the last token of each text, after the last norm: the features of `mauve`.

    Args:
        model, params: a `Decoder` and its parameters.
        sequences: token ids; cut to `max_length`.
        batch_size: texts at once, over all devices of `mesh`.

    Raises:
        ValueError: no text, an empty one.
    """
    if not len(sequences) or not all(len(sequence) for sequence in sequences):
        raise ValueError("every text needs a token, and there must be one text")
    ids, lengths = pad_rows(sequences, length=max_length, pad_id=0)
    rows = {"input_ids": ids, "attention_mask": attention_mask(lengths, max_length)}
    return map_rows(_states_program(model, mesh), params, rows, batch_size=batch_size, mesh=mesh)


@functools.lru_cache(maxsize=8)
def _states_program(model: Any, mesh: Mesh) -> Any:
    def of_batch(params: Any, batch: Any) -> Float[Array, "rows hidden"]:
        mask: Int[Array, "rows time"] = batch["attention_mask"]
        hidden, _ = model.apply({"params": params}, batch["input_ids"], mask, method="trunk")
        last = jnp.sum(mask, axis=1) - 1
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)

    return jit_on_mesh(of_batch, mesh, out_shardings=batch_sharding(mesh))
