"""Masks, normalisation, fusion and shuffling of attribution priors, against loops and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.attribution_priors import (
    fuse_priors,
    normalised_prior,
    prior_mass,
    shuffled_prior,
    word_masks,
)

PRESENT = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)


def test_masks_hold_the_whole_text_and_every_leave_one_out_copy():
    masks = np.asarray(word_masks(jax.random.key(0), PRESENT, num_masks=12))
    assert masks.shape == (3, 12, 5)
    np.testing.assert_array_equal(masks[:, 0], PRESENT)
    for word in range(5):
        np.testing.assert_array_equal(masks[0, 1 + word], np.arange(5) != word)
    for word in range(3):
        np.testing.assert_array_equal(masks[1, 1 + word], (np.arange(5) != word) & (np.arange(5) < 3))


def test_no_mask_keeps_padding_and_none_drops_every_word():
    masks = np.asarray(word_masks(jax.random.key(1), PRESENT, num_masks=400, keep_probability=0.1))
    assert not masks[:, :, :][~np.broadcast_to(np.asarray(PRESENT)[:, None], masks.shape)].any()
    assert masks.any(axis=2).all()
    survivors = masks[0][masks[0].sum(axis=1) == 1].sum(axis=0)
    assert (survivors > 0).all(), "the word that is kept is drawn among all"


def test_random_masks_keep_words_at_the_stated_rate():
    present = jnp.ones((20, 10), bool)
    masks = np.asarray(word_masks(jax.random.key(2), present, num_masks=100, leave_one_out=False))
    assert masks.mean() == pytest.approx(0.7, abs=0.02)  # 20,000 draws: standard error 0.003
    other = np.asarray(word_masks(jax.random.key(3), present, num_masks=100, leave_one_out=False))
    assert (masks != other).any()


def test_a_prior_is_the_positive_part_as_a_distribution():
    values = jnp.array([[1.0, -2.0, 3.0, 0.0, 0.0], [-1.0, -2.0, 0.0, 9.0, 9.0], [5.0, 7.0, 7.0, 7.0, 7.0]])
    prior = np.asarray(normalised_prior(values, PRESENT))
    np.testing.assert_allclose(prior[0], [0.25, 0, 0.75, 0, 0])
    np.testing.assert_allclose(
        prior[1], [1 / 3, 1 / 3, 1 / 3, 0, 0], rtol=1e-6, err_msg="uniform where none is positive"
    )
    np.testing.assert_allclose(prior[2], [1, 0, 0, 0, 0])


def test_fusion_is_the_mean_or_the_renormalised_maximum():
    a, b = jnp.array([[0.5, 0.5, 0.0]]), jnp.array([[0.1, 0.1, 0.8]])
    np.testing.assert_allclose(fuse_priors([a, b]), [[0.3, 0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(fuse_priors([a, b], fusion="max"), np.array([[0.5, 0.5, 0.8]]) / 1.8, rtol=1e-6)


def test_unnormalised_components_are_refused():
    """In log-probability units integrated gradients would swamp a prior in probabilities."""
    with pytest.raises(ValueError, match=r"sums to 7.*normalise each with normalised_prior"):
        fuse_priors([jnp.array([[0.5, 0.5]]), jnp.array([[3.0, 4.0]])])
    with pytest.raises(ValueError, match="must not be negative"):
        fuse_priors([jnp.array([[1.5, -0.5]])])


def test_shuffling_permutes_the_words_of_each_text_and_nothing_else():
    prior = normalised_prior(jax.random.uniform(jax.random.key(0), (3, 5)), PRESENT)
    moved = 0
    for seed in range(8):
        shuffled = np.asarray(shuffled_prior(jax.random.key(seed), prior, PRESENT))
        np.testing.assert_allclose(np.sort(shuffled, axis=1), np.sort(np.asarray(prior), axis=1))
        assert (shuffled[~np.asarray(PRESENT)] == 0).all()
        moved += (shuffled[0] != np.asarray(prior)[0]).any()
    assert moved >= 6


def test_mass_is_what_lies_on_the_marked_words():
    mass = prior_mass(jnp.array([[0.2, 0.3, 0.5]]), jnp.array([[True, False, True]]))
    np.testing.assert_allclose(mass, [0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: word_masks(jax.random.key(0), PRESENT, num_masks=5), "at least 6"),
        (lambda: word_masks(jax.random.key(0), PRESENT, num_masks=9, keep_probability=1.0), r"\(0, 1\): got 1"),
        (lambda: word_masks(jax.random.key(0), jnp.zeros((2, 3), bool), num_masks=9), "text 0 has none"),
        (lambda: normalised_prior(jnp.ones((2, 3)), PRESENT), "share one shape"),
        (lambda: fuse_priors([]), "one or more arrays"),
        (lambda: fuse_priors([jnp.array([[1.0]])], fusion="median"), "unknown fusion 'median'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
