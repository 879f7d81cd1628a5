"""The latent world: its kinds, its teacher, its test pairs, its determinism."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from jaxcore.data.latent_pairs import LatentPairsConfig, generate_latent_pairs

CONFIG = LatentPairsConfig(num_anchors=300)
WORLD = generate_latent_pairs(CONFIG, seed=0)


def test_kinds_have_their_shares_and_their_features():
    """Known from the noise-free teacher vectors: [z; u / 2] up to scale."""
    teacher = WORLD.teacher * np.sqrt(1.25)
    anchors, others = teacher[:300, None], teacher[300:].reshape(300, 48, 16)
    cos_meaning = (anchors[..., :8] * others[..., :8]).sum(-1)
    cos_surface = 4 * (anchors[..., 8:] * others[..., 8:]).sum(-1)
    near = {"meaning": cos_meaning > 0.85, "surface": cos_surface > 0.85}
    shares = [
        (near["meaning"] & near["surface"]).mean(),
        (near["meaning"] & ~near["surface"]).mean(),
        (~near["meaning"] & near["surface"]).mean(),
        (~near["meaning"] & ~near["surface"]).mean(),
    ]
    np.testing.assert_allclose(shares, [0.5, 0.1, 0.15, 0.25], atol=0.03)
    candidates = WORLD.candidates
    np.testing.assert_allclose(candidates.surface, np.clip(cos_surface, 0, 1), atol=2e-3)
    error = candidates.meaning.astype(float) - (cos_meaning + 0.25 * cos_surface) / 1.25
    assert abs(error.mean()) < 0.002 and error.std() == pytest.approx(0.05, rel=0.05)
    np.testing.assert_array_equal(candidates.ids, 300 + np.arange(300 * 48).reshape(300, 48))


def test_observations_hold_meaning_and_surface_at_their_scales():
    quiet = generate_latent_pairs(dataclasses.replace(CONFIG, noise=0.0), seed=0)
    teacher = quiet.teacher * np.sqrt(1.25)
    meaning, surface = teacher[:, :8], 2 * teacher[:, 8:]
    expected = meaning @ meaning[:50].T + 1.5**2 * surface @ surface[:50].T
    np.testing.assert_allclose(quiet.observations @ quiet.observations[:50].T, expected, atol=1e-4)
    noise = WORLD.observations.var(0).sum() - quiet.observations.var(0).sum()
    assert noise == pytest.approx(32 * 0.15**2, rel=0.15)


def test_test_pairs_have_independent_uniform_similarities():
    world = generate_latent_pairs(dataclasses.replace(CONFIG, noise=0.0, num_test_pairs=4000), seed=1)
    for cosine in (world.test_meaning, world.test_surface):
        assert scipy.stats.kstest(cosine, "uniform", (-1, 2)).pvalue > 1e-3
    assert abs(scipy.stats.spearmanr(world.test_meaning, world.test_surface).statistic) < 0.05
    product = (world.test_first * world.test_second).sum(1)
    np.testing.assert_allclose(product, world.test_meaning + 2.25 * world.test_surface, atol=1e-5)


def test_random_pairs_are_those_of_anchors():
    assert np.abs(WORLD.random_surface[WORLD.random_surface > 0].mean() - 0.28) < 0.03  # half-normal of 1 / sqrt 8
    assert (WORLD.random_surface == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert WORLD.random_meaning.mean() == pytest.approx(0, abs=0.02)


def test_the_seed_decides_everything():
    again, other = generate_latent_pairs(CONFIG, seed=0), generate_latent_pairs(CONFIG, seed=1)
    np.testing.assert_array_equal(again.observations, WORLD.observations)
    np.testing.assert_array_equal(again.candidates.meaning, WORLD.candidates.meaning)
    assert not np.allclose(other.observations, WORLD.observations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_anchors": 1}, "must be at least 2"),
        ({"observed_size": 15}, "must hold meaning and surface, 16"),
        ({"kinds": (0.5, 0.5, 0.5, 0.5)}, "sum to 1"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LatentPairsConfig(**change)
