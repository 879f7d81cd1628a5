"""Marker finding against hand-worked rankings, scikit-learn document by document, and chance."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxcore.evaluation import marker_auprc, pointing_game


def test_hand_worked_rankings():
    # Markers at ranks 1 and 3 of 4: AP = (1/1 + 2/3)/2; AUROC: 3 of 4 (marker, other) pairs in order.
    ranking = marker_auprc([[0.9, 0.8, 0.7, 0.1]], [[1, 0, 1, 0]])
    assert ranking.auprc == pytest.approx((1 + 2 / 3) / 2)
    assert ranking.auroc == pytest.approx(3 / 4)
    assert ranking.chance == ranking.pooled_chance == 0.5
    assert (ranking.pooled_auprc, ranking.pooled_auroc) == (ranking.auprc, ranking.auroc)


def test_pooling_ranks_the_tokens_of_all_documents_together():
    attributions, markers = [[0.9, 0.1], [0.05, 0.01]], [[1, 0], [1, 0]]
    ranking = marker_auprc(attributions, markers)
    assert (ranking.auprc, ranking.auroc) == (1.0, 1.0)
    assert ranking.pooled_auroc == pytest.approx(3 / 4)  # .05 lies below the other document's .1
    assert ranking.pooled_auprc == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_documents_that_cannot_be_scored_are_left_out_and_counted():
    attributions = np.arange(16.0).reshape(4, 4)
    markers = [[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    ranking, game = marker_auprc(attributions, markers), pointing_game(attributions, markers)
    for result in (ranking, game):
        assert (result.num_documents, result.num_without_markers, result.num_all_markers) == (1, 2, 1)
        np.testing.assert_array_equal(result.documents, [0])
    assert ranking.auprc == 1.0 and game.hit_rate == 1.0
    assert ranking.chance == game.chance == 0.25


def random_documents(seed, batch=6, tokens=20):
    rng = np.random.default_rng(seed)
    mask = np.arange(tokens) < rng.integers(8, tokens + 1, size=(batch, 1))
    markers = (rng.random((batch, tokens)) < 0.3) & mask
    markers[:, 0], markers[:, 1] = True, False
    return rng.normal(size=(batch, tokens)) + markers, markers, mask


def test_every_document_scores_as_in_sklearn_on_its_own_tokens():
    attributions, markers, mask = random_documents(0)
    ranking = marker_auprc(attributions, markers, mask)
    for i, (a, m, k) in enumerate(zip(attributions, markers, mask, strict=True)):
        assert ranking.document_auprc[i] == pytest.approx(average_precision_score(m[k], a[k]))
        assert ranking.document_auroc[i] == pytest.approx(roc_auc_score(m[k], a[k]))
        assert ranking.document_chance[i] == pytest.approx(m[k].mean())
    assert ranking.auprc == pytest.approx(ranking.document_auprc.mean())
    assert ranking.pooled_auprc == pytest.approx(average_precision_score(markers[mask], attributions[mask]))


def test_padding_is_ignored_whatever_it_holds():
    attributions, markers, mask = random_documents(1)
    for fill, marked in ((1e9, False), (-1e9, True), (np.nan, True), (np.inf, False)):
        spoiled = np.where(mask, attributions, fill)
        marks = np.where(mask, markers, marked)
        assert marker_auprc(spoiled, marks, mask).auprc == marker_auprc(attributions, markers, mask).auprc
        assert pointing_game(spoiled, marks, mask).hit_rate == pointing_game(attributions, markers, mask).hit_rate


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_order_of_tokens_and_documents_and_monotone_maps_do_not_matter(seed, scale, shift):
    attributions, markers, mask = random_documents(seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(attributions.shape[0]), rng.permutation(attributions.shape[1])
    here, game = marker_auprc(attributions, markers, mask), pointing_game(attributions, markers, mask)

    def moved(array):
        return array[rows][:, columns]

    there = marker_auprc(shift + scale * moved(attributions), moved(markers), moved(mask))
    assert (there.auprc, there.auroc) == pytest.approx((here.auprc, here.auroc))
    assert (there.pooled_auprc, there.chance) == pytest.approx((here.pooled_auprc, here.chance))
    replayed = pointing_game(shift + scale * moved(attributions), moved(markers), moved(mask))
    assert replayed.hit_rate == pytest.approx(game.hit_rate)
    # Flipping the sign mirrors the ROC curve.
    assert marker_auprc(-attributions, markers, mask).auroc == pytest.approx(1 - here.auroc)


def test_random_attributions_score_chance_and_perfect_ones_score_one():
    rng = np.random.default_rng(2)
    markers = rng.random((150, 80)) < 0.2
    noise = marker_auprc(rng.normal(size=markers.shape), markers)
    assert noise.pooled_auprc == pytest.approx(noise.pooled_chance, abs=0.02)
    assert noise.auroc == pytest.approx(0.5, abs=0.02)
    perfect = marker_auprc(markers + 0.1 * rng.random(markers.shape), markers)
    assert perfect.auprc == perfect.auroc == perfect.pooled_auprc == 1.0


def test_constant_attributions_score_exactly_chance():
    _, markers, mask = random_documents(3)
    ranking, game = (
        marker_auprc(np.zeros(markers.shape), markers, mask),
        pointing_game(np.ones(markers.shape), markers, mask),
    )
    assert ranking.auprc == pytest.approx(ranking.chance) and ranking.auroc == 0.5
    assert game.hit_rate == pytest.approx(game.chance)


def test_pointing_game_hand_worked():
    attributions = [[0.1, 0.9, 0.3], [-0.1, -0.5, -0.2], [0.7, 0.7, 0.1]]
    markers = [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    game = pointing_game(attributions, markers)
    np.testing.assert_allclose(game.hits, [1, 0, 0.5])
    assert game.hit_rate == pytest.approx(0.5) and game.chance == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_arrays_are_accepted(dtype):
    attributions = jnp.array([[0.9, 0.8, 0.7, 0.1]], dtype=dtype)
    assert marker_auprc(attributions, jnp.array([[1, 0, 1, 0]])).auroc == pytest.approx(3 / 4)


@pytest.mark.parametrize("measure", [marker_auprc, pointing_game])
@pytest.mark.parametrize(
    ("attributions", "markers", "mask", "message"),
    [
        ([[1.0, 2.0]], [[1, 0, 0]], None, r"\(1, 2\), \(1, 3\)"),
        ([[1.0, 2.0]], [[1, 0]], [[1, 1, 1]], r"\(1, 2\) and \(1, 3\)"),
        ([1.0, 2.0], [1, 0], None, "markers must have 2 axes"),
        ([[np.nan, 2.0]], [[1, 0]], None, r"attributions \(at tokens\) has 1 NaN"),
        ([[1.0, 2.0]], [[2, 0]], None, "markers must be 0 or 1"),
        ([[1.0, 2.0]], [[1, 0]], [[1, 3]], "mask must be 0 or 1"),
        ([[1.0, 2.0], [0.0, 1.0]], [[0, 0], [1, 1]], None, "of 2, 1 hold no marker and 1 hold nothing else"),
    ],
)
def test_bad_input_is_refused(measure, attributions, markers, mask, message):
    with pytest.raises(ValueError, match=message):
        measure(attributions, markers, mask)
