"""The authorship evaluation on embeddings whose quality is known: perfect, random, and topic instead of author."""

import dataclasses

import numpy as np
import pytest

from jaxcore.data import AuthorBatchConfig, AuthorshipDataConfig, AuthorWorldConfig, open_authorship_task
from jaxcore.evaluation import AuthorshipEvaluationConfig, evaluate_authorship
from jaxcore.evaluation.authorship import smallest_gains, token_counts

CONFIG = AuthorshipEvaluationConfig(candidates=(5, 20, 500), supports=(1, 4), draws=30, pairs=300, clustered_authors=6)


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


@pytest.fixture(scope="module")
def measured(task):
    return evaluate_authorship(
        CONFIG,
        task,
        trained=author_vectors(task.test, 0.05),
        untrained=np.random.default_rng(1).standard_normal((len(task.test.authors), 32)).astype(np.float32),
        training_pool=author_vectors(task.training, 0.05),
        seed=0,
    )


def test_embeddings_of_the_author_score_perfectly(measured):
    metrics = measured.metrics
    assert metrics["accuracy/n20_s4"] == 1.0
    assert metrics["verification/auc"] > 0.95
    assert metrics["clustering/bcubed_f"] > 0.95 and metrics["clustering/link_average_precision"] > 0.99


def test_random_embeddings_score_chance_and_the_largest_n_is_what_there_is(measured):
    assert measured.metrics["untrained/accuracy/n20_s4"] == pytest.approx(1 / 20, abs=0.05)
    assert max(measured.grids["trained"]) == (20, 4)


def test_draws_are_kept_for_pairing(measured):
    draws = measured.samples["accuracy/n20_s4"]
    assert len(draws) == 30 and np.mean(draws) == measured.metrics["accuracy/n20_s4"]


def test_smallest_gains_are_the_worst_steps():
    grid = {
        (n, s): dataclasses.make_dataclass("R", ["mean"])(mean)
        for (n, s), mean in {(5, 1): 0.5, (5, 4): 0.9, (20, 1): 0.2, (20, 2): 0.5, (20, 4): 0.45}.items()
    }
    grid[5, 2] = grid[5, 1]
    gains = smallest_gains(grid)
    assert gains["smallest_gain/more_support"] == pytest.approx(-0.05)
    assert gains["smallest_gain/fewer_candidates"] == pytest.approx(0.45)


def test_token_counts_count_only_real_tokens(task):
    pool = dataclasses.replace(
        task.test,
        input_ids=np.array([[5, 5, 7, 0], [4101, 7, 7, 7]]),
        attention_mask=np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
    )
    np.testing.assert_array_equal(token_counts(pool), [[2, 1], [1, 3]])  # 4101 folds onto 5


def test_too_few_support_texts_are_named(task):
    config = dataclasses.replace(CONFIG, supports=(50,))
    with pytest.raises(ValueError, match="fewer than two test authors have 50 support texts"):
        evaluate_authorship(
            config,
            task,
            trained=author_vectors(task.test, 0.1),
            untrained=author_vectors(task.test, 0.1),
            training_pool=author_vectors(task.training, 0.1),
            seed=0,
        )
