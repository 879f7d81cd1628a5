"""The evaluation of an authorship embedding: attribution over growing author sets, verification, clustering.

Everything star.md 2.6 lists, from the embeddings of an `AuthorshipTask`'s two pools; nothing is fitted on test
authors.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from jaxcore.data import AuthorshipTask, TextPool
from jaxcore.evaluation.attribution_accuracy import NWayResult, nway_grid
from jaxcore.evaluation.author_pairs import sample_author_pairs
from jaxcore.evaluation.clustering import (
    agglomerative_cosine,
    bcubed,
    cosine_links,
    link_average_precision,
    links_within_classes,
    tune_threshold,
)
from jaxcore.evaluation.verification import fit_verification_head, pair_features, verification_metrics

AccuracyGrid = Mapping[tuple[int, int], NWayResult]


@dataclasses.dataclass(frozen=True)
class AuthorshipEvaluationConfig:
    """What is measured."""

    batch_size: int = 512
    """Texts embedded at once over all devices."""
    candidates: tuple[int, ...] = (20, 50, 100, 200)
    """Numbers of candidate authors N; larger ones than there are test authors become that number."""
    supports: tuple[int, ...] = (1, 2, 4, 8)
    """Support texts per author, S."""
    draws: int = 100
    """Draws of candidate authors."""
    pairs: int = 2000
    """Verification pairs, half of them by one author; as many training pairs fit the head."""
    clustered_authors: int = 20
    """Authors of a clustering problem, eight texts each."""
    explained: int = 64
    """Test texts explained and scored; 0 for none."""
    shown: int = 6
    """Of these, heatmaps in the report."""
    integration_steps: int = 32
    """Gradient evaluations along the path of an explanation."""

    def __post_init__(self) -> None:
        if not self.candidates or not self.supports or min(*self.candidates, *self.supports, self.draws) < 1:
            raise ValueError(
                "evaluation.candidates, supports and draws must be positive numbers: got "
                f"{self.candidates}, {self.supports} and {self.draws}"
            )


@dataclasses.dataclass(frozen=True)
class AuthorshipMeasurements:
    """Metrics by name, the draws that claims pair, and the accuracy grids by model."""

    metrics: dict[str, float]
    samples: dict[str, list[float]]
    grids: dict[str, AccuracyGrid]


def evaluate_authorship(
    config: AuthorshipEvaluationConfig,
    task: AuthorshipTask,
    *,
    trained: Float[np.ndarray, "n dim"],
    untrained: Float[np.ndarray, "n dim"],
    training_pool: Float[np.ndarray, "m dim"],
    seed: int,
) -> AuthorshipMeasurements:
    """Metrics of the trained encoder under plain names, of the untrained one and of raw token counts under theirs.

    Args:
        trained, untrained: embeddings of ``task.test`` after and before training.
        training_pool: embeddings of ``task.training`` after training, for the verification head and the
            clustering threshold.
        seed: of draws, pairs and clustering problems; the same seed draws the same for every model.
    """
    vectors = {"trained": trained, "untrained": untrained, "raw_counts": token_counts(task.test)}
    grids = {name: accuracy_grid(config, task.test, value, seed=seed) for name, value in vectors.items()}
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for name, grid in grids.items():
        prefix = "" if name == "trained" else f"{name}/"
        for (candidates, support), result in grid.items():
            key = f"n{candidates}_s{support}"
            metrics[f"{prefix}accuracy/{key}"] = result.mean
            metrics[f"{prefix}accuracy_top5/{key}"] = result.top5
            samples[f"{prefix}accuracy/{key}"] = result.per_draw.tolist()
    metrics |= smallest_gains(grids["trained"])
    metrics |= verification_of_pools(config, task, trained, training_pool, seed=seed)
    metrics |= clustering_of_pools(config, task, trained, training_pool, seed=seed)
    return AuthorshipMeasurements(metrics, samples, grids)


def accuracy_grid(
    config: AuthorshipEvaluationConfig, pool: TextPool, vectors: Float[np.ndarray, "n dim"], *, seed: int
) -> AccuracyGrid:
    """Accuracy@(N, S) with support and query texts from different topics or works.

    Raises:
        ValueError: fewer than two authors have the support and query texts asked for.
    """
    support, query = (
        np.bincount(pool.authors[pool.is_query == side], minlength=pool.num_authors) for side in (False, True)
    )
    supports = [count for count in config.supports if np.sum((support >= count) & (query >= 1)) >= 2]
    if not supports:
        raise ValueError(
            f"fewer than two test authors have {min(config.supports)} support texts and a query text: "
            "give more or longer texts, or lower evaluation.supports"
        )
    available = int(np.sum((support >= max(supports)) & (query >= 1)))
    return nway_grid(
        vectors,
        pool.authors,
        candidate_counts=sorted({min(count, available) for count in config.candidates}),
        support_counts=supports,
        draws=config.draws,
        rng=seed,
        support_mask=~pool.is_query,
        query_mask=pool.is_query,
    )


def smallest_gains(grid: AccuracyGrid) -> dict[str, float]:
    """The least that accuracy gains from the next larger S (at the largest N) and from the next smaller N (at the
    largest S): positive when it rises with support and falls with candidates, as it must."""
    candidates, supports = sorted({n for n, _ in grid}), sorted({s for _, s in grid})
    by_support = np.diff([grid[candidates[-1], s].mean for s in supports])
    by_candidates = -np.diff([grid[n, supports[-1]].mean for n in candidates])
    gains = {"more_support": by_support, "fewer_candidates": by_candidates}
    return {f"smallest_gain/{name}": float(values.min()) for name, values in gains.items() if len(values)}


def token_counts(pool: TextPool, *, buckets: int = 4096) -> Float[np.ndarray, "n used"]:
    """Raw token counts (ids modulo `buckets`, buckets that occur): the baseline that nothing is trained for."""
    flat = np.arange(len(pool.input_ids))[:, None] * buckets + pool.input_ids % buckets
    counts = np.bincount(flat[pool.attention_mask > 0], minlength=len(pool.input_ids) * buckets)
    counts = counts.reshape(len(pool.input_ids), buckets)
    return counts[:, counts.any(axis=0)].astype(np.float32)


def verification_of_pools(
    config: AuthorshipEvaluationConfig,
    task: AuthorshipTask,
    test: Float[np.ndarray, "n dim"],
    training: Float[np.ndarray, "m dim"],
    *,
    seed: int,
) -> dict[str, float]:
    """Same author or not: one dense layer on pair features, fitted on training authors, asked about test authors."""
    rng = np.random.default_rng([seed, 3])
    features, labels = {}, {}
    for name, pool, vectors in (("training", task.training, training), ("test", task.test, test)):
        left, right, labels[name] = sample_author_pairs(pool.authors, pool.is_query, num_pairs=config.pairs, rng=rng)
        features[name] = np.asarray(pair_features(vectors[left], vectors[right], mode="concat"))
    head = fit_verification_head(features["training"], labels["training"])
    scores = verification_metrics(labels["test"], head.probabilities(features["test"]))
    return {f"verification/{name}": float(scores[name]) for name in VERIFICATION_METRICS}


VERIFICATION_METRICS = ("auc", "c_at_1", "f1", "f05u", "brier", "overall")


def clustering_of_pools(
    config: AuthorshipEvaluationConfig,
    task: AuthorshipTask,
    test: Float[np.ndarray, "n dim"],
    training: Float[np.ndarray, "m dim"],
    *,
    seed: int,
) -> dict[str, float]:
    """Texts of a few authors without labels; the distance threshold is tuned on training authors only."""

    def problem(pool: TextPool, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, 4])
        chosen = rng.permutation(pool.num_authors)[: config.clustered_authors]
        rows = np.concatenate([rng.permutation(np.flatnonzero(pool.authors == a))[:8] for a in chosen])
        return vectors[rows], pool.authors[rows]

    tuned = tune_threshold([problem(task.training, training)])
    vectors, authors = problem(task.test, test)
    score = bcubed(authors, agglomerative_cosine(vectors, threshold=tuned.threshold))
    return {
        "clustering/bcubed_precision": score.precision,
        "clustering/bcubed_recall": score.recall,
        "clustering/bcubed_f": score.f,
        "clustering/link_average_precision": link_average_precision(
            cosine_links(vectors), links_within_classes(authors)
        ),
    }
