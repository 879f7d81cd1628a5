"""Explaining an authorship embedding: which tokens made a text its author's, and do they match the known markers?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxcore.data import AuthorshipTask, TextPool
from jaxcore.evaluation.attribution_accuracy import centroid_attribution
from jaxcore.evaluation.authorship import AuthorshipEvaluationConfig
from jaxcore.evaluation.row_map import Tick, map_rows
from jaxcore.evaluation.token_attribution import marker_auprc, pointing_game


@dataclasses.dataclass(frozen=True)
class AuthorshipExplanations:
    """Attributed test texts.

    Attributes:
        metrics: completeness errors and, where markers are known, how well attributions rank them.
        targets: from `query_targets`.
        attributions: [texts, length] by question: ``similarity`` (what makes it this author's?) and ``contrast`` (why
            not the runner-up's?).
    """

    metrics: dict[str, float]
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)
    attributions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def explain_queries(
    config: AuthorshipEvaluationConfig,
    task: AuthorshipTask,
    embeddings: Float[np.ndarray, "n dim"],
    explain: Any,
    params: Any,
    *,
    mesh: Mesh,
    seed: int,
    tick: Tick = lambda step: False,
) -> AuthorshipExplanations:
    """Attribute ``config.explained`` test queries to their tokens, for both questions, and score against the markers.

    Args:
        embeddings: unit embeddings of ``task.test`` by the model that is explained.
        explain: jitted ``(params, {input_ids, attention_mask, target}) -> TokenAttributions``.
        seed: of the choice of queries and support texts.
    """
    if config.explained == 0:
        return AuthorshipExplanations({})
    targets = query_targets(task.test, embeddings, count=config.explained, num_support=max(config.supports), seed=seed)
    texts = {name: value[targets["rows"]] for name, value in task.test.rows().items()}
    shards = mesh.size // mesh.shape["tensor"]
    batch_size = min(-(-len(targets["rows"]) // shards) * shards, config.batch_size)
    metrics: dict[str, float] = {}
    attributions: dict[str, np.ndarray] = {}
    for question, target in (("similarity", targets["own"]), ("contrast", targets["own"] - targets["other"])):
        rows = {**texts, "target": target.astype(np.float32)}
        found = map_rows(explain, params, rows, batch_size=batch_size, mesh=mesh, tick=tick)
        attributions[question] = found.attributions
        metrics[f"explanation/{question}/completeness_error"] = float(np.abs(found.completeness_error).max())
        for name, value in marker_metrics(task, targets, found.attributions).items():
            metrics[f"explanation/{question}/{name}"] = value
    return AuthorshipExplanations(metrics, targets, attributions)


def query_targets(
    pool: TextPool, embeddings: Float[np.ndarray, "n dim"], *, count: int, num_support: int, seed: int
) -> dict[str, Any]:
    """Query texts to explain, each with its author's centroid and the runner-up's.

    Returns:
        rows: [count] text numbers in `pool`; author, runner_up: [count] author numbers, the runner-up being the
        likeliest *other* author; own, other: [count, dim] unit centroids; correct: [count] whether the own author
        comes first.
    """
    rng = np.random.default_rng([seed, 5])
    names = np.unique(pool.authors)
    support = [rng.permutation(np.flatnonzero((pool.authors == name) & ~pool.is_query))[:num_support] for name in names]
    fewest = min(len(rows) for rows in support)
    centroids = np.stack([embeddings[rows[:fewest]].mean(axis=0) for rows in support])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    rows = rng.permutation(np.flatnonzero(pool.is_query))[:count]
    scores = np.array(centroid_attribution(centroids[:, None], embeddings[rows]))
    own = np.searchsorted(names, pool.authors[rows])
    correct = scores.argmax(axis=1) == own
    scores[np.arange(len(rows)), own] = -np.inf
    runner_up = scores.argmax(axis=1)
    return {
        "rows": rows,
        "author": names[own],
        "runner_up": names[runner_up],
        "own": centroids[own],
        "other": centroids[runner_up],
        "correct": correct,
    }


def marker_metrics(
    task: AuthorshipTask, targets: Mapping[str, Any], attributions: Float[np.ndarray, "texts length"]
) -> dict[str, float]:
    """How well attributions rank the author's true markers above all tokens, and above the topic's words alone.

    Nothing where the task does not know its markers.
    """
    if task.markers is None or task.topic_words is None:
        return {}
    ids, topics = task.test.input_ids[targets["rows"]], task.test.topics[targets["rows"]]
    markers = np.stack([task.markers(a, row) for a, row in zip(targets["author"], ids, strict=True)])
    topical = np.stack([task.topic_words(t, row) for t, row in zip(topics, ids, strict=True)])
    everything = marker_auprc(attributions, markers)
    against_topic = marker_auprc(attributions, markers, markers | topical)
    return {
        "auprc": everything.auprc,
        "auprc_chance": everything.chance,
        "auprc_above_chance": everything.auprc - everything.chance,
        "auroc": everything.auroc,
        "auroc_against_topic_words": against_topic.auroc,
        "top_token_is_marker": pointing_game(attributions, markers).hit_rate,
    }
