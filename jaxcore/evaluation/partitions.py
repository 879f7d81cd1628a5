"""Do embeddings fall into the known classes by themselves: k-means, linkage clustering, and scores of a partition.

Clustering with a tuned distance threshold, and BCubed, are in `jaxcore.evaluation.clustering`; here the number of
clusters is given.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxcore.evaluation.clustering import Labelling, Linkage
from jaxcore.evaluation.input_checks import class_codes, finite_array, positive_integer, same_length


class PartitionScores(NamedTuple):
    """Agreement of a partition with the classes; 1 where they are equal.

    Attributes:
        v_measure: ``2 h c / (h + c)``, equal to mutual information over the mean of the two entropies (NMI with the
            arithmetic mean).
        homogeneity: ``h = 1 - H(class | cluster) / H(class)``.
        completeness: ``c = 1 - H(cluster | class) / H(cluster)``.
        normalized_mutual_information: ``I / sqrt(H(class) H(cluster))``, the geometric mean of h and c.
        adjusted_mutual_information: ``(I - E I) / (mean(H, H) - E I)``: 0 for a random partition, however fine.
        adjusted_rand_index: ``(pairs agreed - expected) / (largest - expected)``: 0 for a random partition.
        purity: share of rows whose class is the most frequent of their cluster; rises to 1 as clusters shrink.
        assignment_accuracy: share of rows of the best one-to-one assignment of clusters to classes.
    """

    v_measure: float
    homogeneity: float
    completeness: float
    normalized_mutual_information: float
    adjusted_mutual_information: float
    adjusted_rand_index: float
    purity: float
    assignment_accuracy: float


def partition_scores(true: Labelling, predicted: Labelling) -> PartitionScores:
    """Scores of cluster labels against classes; neither the names of clusters nor their order matter.

    A side with a single value has entropy 0: homogeneity (one class) or completeness (one cluster) is then 1, the
    normalised mutual information of two single values 1 and of one single value 0.

    Args:
        true, predicted: [n] labels of any sortable type.
    Raises:
        ValueError: not vectors, empty, lengths differ, NaN labels.
    Source: Rosenberg and Hirschberg 2007 (V-measure); Hubert and Arabie 1985 (adjusted Rand); Vinh et al. 2010 (AMI).
    """
    from sklearn import metrics  # it takes more than a second to import

    (classes, _), (clusters, _) = class_codes("true", true), class_codes("predicted", predicted)
    same_length(true=classes, predicted=clusters)
    table = np.zeros((classes.max() + 1, clusters.max() + 1), dtype=np.int64)
    np.add.at(table, (classes, clusters), 1)
    homogeneity, completeness, v_measure = metrics.homogeneity_completeness_v_measure(classes, clusters)
    # With one class h is 1 by convention, and h * c would credit the partition with information that does not exist.
    informative = len(table) > 1 and table.shape[1] > 1
    normalized = np.sqrt(max(homogeneity * completeness, 0.0)) if informative else float(table.size == 1)
    matched = table[scipy.optimize.linear_sum_assignment(table, maximize=True)].sum()
    return PartitionScores(
        v_measure=float(v_measure),
        homogeneity=float(homogeneity),
        completeness=float(completeness),
        normalized_mutual_information=float(normalized),
        adjusted_mutual_information=float(metrics.adjusted_mutual_info_score(classes, clusters)),
        adjusted_rand_index=float(metrics.adjusted_rand_score(classes, clusters)),
        purity=float(table.max(axis=0).sum() / len(classes)),
        assignment_accuracy=float(matched / len(classes)),
    )


def kmeans_clusters(
    embeddings: Float[ArrayLike, "n dim"],
    *,
    num_clusters: int,
    restarts: int = 10,
    batch_size: int | None = None,
    normalize: bool = True,
    seed: int = 0,
) -> Int[np.ndarray, "n"]:
    """Labels 0..num_clusters-1 of the best of several k-means runs, ``min sum_i |x_i - centre(i)|^2``.

    Args:
        embeddings: [n, dim], finite.
        num_clusters: 1 <= num_clusters <= n.
        restarts: runs from new k-means++ seeds; the one of smallest sum of squares is kept.
        batch_size: None for Lloyd's algorithm on all rows; a number for mini-batches of so many rows (faster from about
            10^5 rows on, slightly worse optima).
        normalize: unit rows first, so that distance falls with cosine; a zero row stays zero.
        seed: of the initial centres.
    Raises:
        ValueError: not [n, dim], NaN, fewer rows than clusters, a number out of range.
    Source: Arthur and Vassilvitskii 2007 (k-means++).
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # it takes more than a second to import

    rows = _rows(embeddings, num_clusters, normalize=normalize)
    runs = positive_integer("restarts", restarts)
    if batch_size is None:
        return KMeans(num_clusters, n_init=runs, random_state=seed).fit_predict(rows).astype(np.int64)
    size = positive_integer("batch_size", batch_size)
    model = MiniBatchKMeans(num_clusters, n_init=runs, batch_size=size, random_state=seed)
    return model.fit_predict(rows).astype(np.int64)


def linkage_clusters(
    embeddings: Float[ArrayLike, "n dim"],
    *,
    num_clusters: int,
    linkage: Linkage | Literal["ward"] = "average",
) -> Int[np.ndarray, "n"]:
    """Labels 0..num_clusters-1 of agglomerative clustering, stopped at that many clusters.

    Args:
        embeddings: [n, dim], finite; memory grows with n^2.
        num_clusters: 1 <= num_clusters <= n.
        linkage: "average", "complete" or "single" on 1 - cosine (1 to a zero row), or "ward" on unit rows.
    Raises:
        ValueError: not [n, dim], NaN, fewer rows than clusters, unknown linkage.
    """
    from sklearn.cluster import AgglomerativeClustering  # it takes more than a second to import

    if linkage not in ("average", "complete", "single", "ward"):
        raise ValueError(f"linkage must be 'average', 'complete', 'single' or 'ward', got {linkage!r}")
    rows = _rows(embeddings, num_clusters, normalize=True)
    if len(rows) == 1:
        return np.zeros(1, dtype=np.int64)
    metric = "euclidean" if linkage == "ward" else "cosine"
    model = AgglomerativeClustering(num_clusters, metric=metric, linkage=linkage)
    return model.fit_predict(rows).astype(np.int64)


def evaluate_partitions(
    embeddings: Float[ArrayLike, "n dim"],
    labels: Labelling,
    *,
    num_clusters: int | None = None,
    restarts: int = 10,
    batch_size: int | None = None,
    linkages: tuple[Linkage | Literal["ward"], ...] = ("average",),
    seed: int = 0,
) -> dict[str, PartitionScores]:
    """Scores of k-means ("kmeans") and of each linkage (by its name), with as many clusters as classes.

    Args:
        embeddings, restarts, batch_size, seed: as in `kmeans_clusters`, on unit rows.
        labels: [n] classes.
        num_clusters: None for the number of classes.
        linkages: as in `linkage_clusters`; empty above some 10^4 rows.
    Raises:
        ValueError: as the functions above.
    """
    classes, names = class_codes("labels", labels)
    same_length(embeddings=embeddings, labels=classes)
    count = len(names) if num_clusters is None else num_clusters
    partitions = {
        "kmeans": kmeans_clusters(embeddings, num_clusters=count, restarts=restarts, batch_size=batch_size, seed=seed)
    }
    for linkage in linkages:
        partitions[linkage] = linkage_clusters(embeddings, num_clusters=count, linkage=linkage)
    return {name: partition_scores(classes, clusters) for name, clusters in partitions.items()}


def _rows(embeddings: Any, num_clusters: int, *, normalize: bool) -> Float[np.ndarray, "n dim"]:
    rows = finite_array("embeddings", embeddings, ndim=2)
    if positive_integer("num_clusters", num_clusters) > len(rows):
        raise ValueError(f"{len(rows)} rows cannot form {num_clusters} clusters; lower num_clusters")
    if not normalize:
        return rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1.0, norms)
