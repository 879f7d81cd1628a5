"""Clustering by author: agglomerative clustering on cosine distance, and the PAN16/17 measures."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as build_tree
from scipy.spatial.distance import pdist

from jaxcore.evaluation.input_checks import class_codes, finite_array, same_length

Linkage = Literal["average", "complete", "single"]
Labelling = Mapping[Hashable, Hashable] | Sequence[Hashable] | Shaped[np.ndarray, "n"]


def agglomerative_cosine(
    embeddings: Float[ArrayLike, "n dim"], *, threshold: float, linkage: Linkage = "average"
) -> Int[np.ndarray, "n"]:
    """Cluster labels 0..k-1, numbered in order of first appearance.

    Clusters merge, nearest first, while their distance is <= threshold; distance of two texts: 1 - cosine, in
    [0, 2];
    of two clusters: mean, largest or smallest distance between their texts.

    Args:
        embeddings: [n, D], finite, no zero rows; need not be normalised.
        threshold: largest cosine distance at which clusters merge, >= 0; from `tune_threshold`, or fixed
            beforehand.
        linkage: "average", "complete" or "single".
    Raises:
        ValueError: not [n, D], NaN, a zero row, negative or NaN threshold, unknown linkage.
    Source: star.md, section 2.6 (clustering).
    """
    return _cut(_cosine_tree(embeddings, linkage), _checked_threshold(threshold))


class BCubed(NamedTuple):
    """BCubed precision, recall, and the harmonic mean of the two averages."""

    precision: float
    recall: float
    f: float


def bcubed(true: Labelling, predicted: Labelling) -> BCubed:
    """BCubed scores of a clustering.

    For document d with true class C(d) and cluster K(d): precision |C n K| / |K|, recall |C n K| / |C|, each
    averaged over documents; `F = 2 P R / (P + R)` of the averages, not the mean of the documents' F.

    Args:
        true: [n] labels, or a mapping document -> label.
        predicted: likewise. A document that is absent from the mapping, or None in the list, becomes a
            singleton.
    Raises:
        ValueError: no documents, lengths differ, one mapping and one list, or predicted documents that are
            not in `true`.
    Source: star.md, Metrics (BCubed; PAN16 evaluator).
    """
    classes, clusters = _parallel_labels(true, predicted)
    n, num_clusters = len(classes), clusters.max() + 1
    pairs, sizes = np.unique(classes * num_clusters + clusters, return_counts=True)
    # Each of the |C n K| documents in a cell adds |C n K| / |K|, hence the squares.
    squares = sizes.astype(np.float64) ** 2
    precision = float((squares / np.bincount(clusters)[pairs % num_clusters]).sum() / n)
    recall = float((squares / np.bincount(classes)[pairs // num_clusters]).sum() / n)
    return BCubed(precision, recall, 2 * precision * recall / (precision + recall))


def link_average_precision(
    scores: Iterable[tuple[Hashable, Hashable, float]], true_links: Iterable[tuple[Hashable, Hashable]]
) -> float:
    """Average precision of ranked authorship links.

    `AP = (1 / #true links) sum over the ranks r of correct links of correct(r) / r`. Links are undirected. Of
    several entries for one pair the first counts; self-pairs are dropped; true links never listed add 0;
    equal scores rank in the order listed.

    Args:
        scores: (document, document, score), highest score = most likely one author; may be empty (AP 0).
        true_links: all pairs of documents by one author.
    Raises:
        ValueError: no true links, a true self-pair, or a score that is not finite.
    Source: star.md, Metrics (Link AP; PAN16 evaluator).
    """
    truth = {frozenset(link) for link in true_links}
    if not truth:
        raise ValueError("there are no true links; average precision needs at least one")
    if any(len(link) < 2 for link in truth):
        raise ValueError("true_links pairs a document with itself; list pairs of different documents only")
    ranked: dict[frozenset, float] = {}
    for first, second, score in scores:
        if not np.isfinite(score):
            raise ValueError(f"the score of link ({first!r}, {second!r}) is {score}; scores must be finite")
        if first != second:
            ranked.setdefault(frozenset((first, second)), float(score))
    order = sorted(ranked, key=lambda link: -ranked[link])  # stable: equal scores stay in the order listed
    correct = np.array([link in truth for link in order], dtype=np.float64)
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return float((precision * correct).sum() / len(truth))


def cosine_links(embeddings: Float[ArrayLike, "n dim"]) -> list[tuple[int, int, float]]:
    """Every pair of rows i < j with its cosine, as `link_average_precision` reads it.

    Raises:
        ValueError: not [n, D], NaN, or a zero row.
    Source: star.md, section 2.6 (link scores = cosine).
    """
    unit = _unit_rows(embeddings)
    first, second = np.triu_indices(len(unit), k=1)
    cosines = np.clip((unit @ unit.T)[first, second], -1.0, 1.0)
    return list(zip(first.tolist(), second.tolist(), cosines.tolist(), strict=True))


def links_within_classes(labels: Sequence | Shaped[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """Every pair of positions i < j with equal labels: the true links of a labelled collection.

    Raises:
        ValueError: not a non-empty vector.
    """
    codes, _ = class_codes("labels", labels)
    first, second = np.nonzero(np.triu(codes[:, None] == codes[None, :], k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class TunedThreshold:
    """The clustering threshold chosen on training problems.

    Attributes:
        threshold: cosine distance.
        f: mean BCubed F over the training problems at that threshold.
        thresholds, mean_f: [t] the whole curve.
    """

    threshold: float
    f: float
    thresholds: Float[np.ndarray, "t"] = field(repr=False)
    mean_f: Float[np.ndarray, "t"] = field(repr=False)


def tune_threshold(
    problems: Sequence[tuple[Float[ArrayLike, "n dim"], Labelling]],
    *,
    linkage: Linkage = "average",
    thresholds: Float[ArrayLike, "t"] | None = None,
) -> TunedThreshold:
    """The threshold with the best mean BCubed F over problems; the middle of the first best stretch on ties.

    Pass training problems only: a threshold tuned on the test problems is not zero-shot (star.md, Traps).

    Args:
        problems: (embeddings [n, D], author labels [n]) of each training problem, n >= 2.
        linkage: as in `agglomerative_cosine`.
        thresholds: [t] candidates, >= 0; default 0, 0.01, ..., 2.
    Raises:
        ValueError: no problems; in a problem wrong shapes, NaN, zero rows, or a single text; negative
            thresholds.
    Source: star.md, section 2.6 (threshold tuned on the training problems).
    """
    if not len(problems):
        raise ValueError("there are no training problems; pass at least one (embeddings, labels) pair")
    grid = np.arange(201) / 100 if thresholds is None else finite_array("thresholds", thresholds, ndim=1)
    grid = np.unique([_checked_threshold(threshold) for threshold in grid])
    curves = []
    for number, (embeddings, labels) in enumerate(problems):
        tree = _cosine_tree(embeddings, linkage)
        if not len(tree):
            raise ValueError(f"training problem {number} has a single text; give it at least two")
        same_length(embeddings=embeddings, labels=labels)
        curves.append([bcubed(labels, _cut(tree, threshold)).f for threshold in grid])
    mean_f = np.mean(curves, axis=0)
    best = mean_f >= mean_f.max() - 1e-12
    start = int(np.argmax(best))
    stretch = int(np.argmin(best[start:])) if not best[start:].all() else len(best) - start
    chosen = start + (stretch - 1) // 2
    return TunedThreshold(float(grid[chosen]), float(mean_f[chosen]), grid, mean_f)


def _unit_rows(embeddings: Any) -> Float[np.ndarray, "n dim"]:
    rows = finite_array("embeddings", embeddings, ndim=2)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        zero = int(np.flatnonzero(norms[:, 0] == 0)[0])
        raise ValueError(f"embeddings has a zero vector (row {zero}), whose cosine is undefined; drop that text")
    return rows / norms


def _cosine_tree(embeddings: Any, linkage: str) -> Float[np.ndarray, "merges 4"]:
    """scipy's merge tree; without rows for a single text."""
    if linkage not in ("average", "complete", "single"):
        raise ValueError(f"linkage must be 'average', 'complete' or 'single', got {linkage!r}")
    unit = _unit_rows(embeddings)
    if len(unit) < 2:
        return np.empty((0, 4))
    # |u - v|^2 / 2 = 1 - cosine, and exactly 0 for equal rows, which 1 - u . v is not.
    return build_tree(pdist(unit, "sqeuclidean") / 2, method=linkage)


def _cut(tree: Float[np.ndarray, "merges 4"], threshold: float) -> Int[np.ndarray, "n"]:
    if not len(tree):
        return np.zeros(1, dtype=np.int64)
    labels = fcluster(tree, threshold, criterion="distance")
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes.reshape(-1)]


def _checked_threshold(threshold: float) -> float:
    if not threshold >= 0:
        raise ValueError(f"threshold must be a cosine distance >= 0, got {threshold!r}")
    return float(threshold)


def _parallel_labels(true: Any, predicted: Any) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Codes of both labellings over the documents of `true`, missing predictions as new singletons."""
    if isinstance(true, Mapping) != isinstance(predicted, Mapping):
        raise ValueError("true and predicted must both be mappings, or both be lists of labels; one is a mapping")
    if isinstance(true, Mapping):
        strangers = [document for document in predicted if document not in true]
        if strangers:
            raise ValueError(
                f"{len(strangers)} predicted documents are not in true (first: {strangers[0]!r}); drop them"
            )
        documents = list(true)
        true, predicted = [true[d] for d in documents], [predicted.get(d) for d in documents]
    else:
        true, predicted = _as_list(true), _as_list(predicted)
    same_length(true=true, predicted=predicted)
    if not true or any(label is None for label in true):
        raise ValueError(f"true must hold a label for every document and at least one document, got {len(true)}")
    return _codes_in_order(true), _codes_in_order(
        [("missing", i) if label is None else ("cluster", label) for i, label in enumerate(predicted)]
    )


def _as_list(labels: Any) -> list:
    return list(labels) if isinstance(labels, list | tuple) else np.asarray(labels).tolist()


def _codes_in_order(labels: list) -> Int[np.ndarray, "n"]:
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.int64)
