"""Explaining queries: whose centroid is the target, and attributions scored against markers that are known."""

import numpy as np
import pytest

from jaxcore.attribution import TokenAttributions
from jaxcore.data import AuthorBatchConfig, AuthorshipDataConfig, AuthorWorldConfig, open_authorship_task
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation import AuthorshipEvaluationConfig, explain_queries, query_targets

CONFIG = AuthorshipEvaluationConfig(supports=(1, 4), explained=20)


@pytest.fixture(scope="module")
def task():
    world = AuthorWorldConfig(num_training_authors=30, num_test_authors=20)
    data = AuthorshipDataConfig(world=world, texts_per_author=12, batches=AuthorBatchConfig(8, 2))
    return open_authorship_task(data, seed=0)


def author_vectors(pool, noise, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((pool.num_authors, 32))
    vectors = centres[pool.authors] + noise * rng.standard_normal((len(pool.authors), 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_targets_name_the_author_and_the_likeliest_other(task):
    vectors = author_vectors(task.test, 0.02)
    targets = query_targets(task.test, vectors, count=15, num_support=4, seed=0)
    np.testing.assert_array_equal(targets["author"], task.test.authors[targets["rows"]])
    assert task.test.is_query[targets["rows"]].all()
    assert targets["correct"].all() and not np.any(targets["runner_up"] == targets["author"])
    scores = vectors[targets["rows"]]
    own, other = np.sum(scores * targets["own"], axis=1), np.sum(scores * targets["other"], axis=1)
    assert np.all(own > other)
    np.testing.assert_allclose(np.linalg.norm(targets["own"], axis=1), 1, rtol=1e-5)


def explained_by(task, attribute):
    """`explain_queries` with a stand-in for the jitted step: ``attribute(ids, target) -> attributions``."""

    def step(params, batch):
        values = attribute(np.asarray(batch["input_ids"]), np.asarray(batch["target"]))
        return TokenAttributions(values, np.zeros(len(values)))

    vectors = author_vectors(task.test, 0.02)
    return explain_queries(CONFIG, task, vectors, step, None, mesh=make_mesh(MeshConfig(data=8)), seed=0)


def test_true_markers_score_one_and_noise_scores_chance(task):
    targets = query_targets(task.test, author_vectors(task.test, 0.02), count=20, num_support=4, seed=0)
    author_of = {task.test.input_ids[r].tobytes(): a for r, a in zip(targets["rows"], targets["author"], strict=True)}
    truth = lambda ids, _: np.stack([task.markers(author_of[row.tobytes()], row) for row in ids]) * 1.0  # noqa: E731
    perfect = explained_by(task, truth).metrics
    for question in ("similarity", "contrast"):
        assert perfect[f"explanation/{question}/auprc"] == pytest.approx(1.0)
        assert perfect[f"explanation/{question}/auroc_against_topic_words"] == pytest.approx(1.0)
        assert perfect[f"explanation/{question}/top_token_is_marker"] == 1.0
    noise = np.random.default_rng(0)
    random = explained_by(task, lambda ids, _: noise.standard_normal(ids.shape)).metrics
    assert abs(random["explanation/similarity/auprc_above_chance"]) < 0.06
    assert random["explanation/similarity/auroc"] == pytest.approx(0.5, abs=0.06)


def test_the_contrast_asks_for_the_difference_of_two_centroids(task):
    seen = []
    explained_by(task, lambda ids, target: (seen.append(target), np.random.default_rng(0).random(ids.shape))[1])
    norms = [np.linalg.norm(np.concatenate(part)[:20], axis=1) for part in (seen[:1], seen[1:])]
    np.testing.assert_allclose(norms[0], 1, rtol=1e-5)
    assert norms[1].min() > 0.5 and not np.allclose(norms[1], 1)


def test_nothing_is_explained_when_none_is_asked_for(task):
    config = AuthorshipEvaluationConfig(explained=0)
    mesh = make_mesh(MeshConfig(data=8))
    assert explain_queries(config, task, author_vectors(task.test, 0.1), None, None, mesh=mesh, seed=0).metrics == {}
