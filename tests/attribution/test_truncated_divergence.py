"""The released divergence: exact where nothing is cut, and the artefact that it has where something is."""

import numpy as np
import pytest
from scipy import special, stats

from jaxcore.attribution.truncated_divergence import truncated_divergence


def test_without_truncation_it_is_the_exact_divergence():
    base, masked = np.random.default_rng(0).normal(size=(2, 30))
    expected = stats.entropy(special.softmax(base / 0.6), special.softmax(masked / 0.6))
    assert truncated_divergence(base, masked, mass=1.0) == pytest.approx(expected)


def test_a_token_that_one_list_lacks_costs_what_was_measured():
    """A base token of probability 2e-4 that misses the masked list gives a divergence of about 4e5, logarithm 12.9."""
    base = np.log(np.array([1 - 2e-4, 2e-4, 1e-12])) * 0.6  # at temperature 0.6 these are its probabilities
    masked = np.array([0.0, -30.0, -40.0])
    found = truncated_divergence(base, masked)
    exact = stats.entropy(special.softmax(base / 0.6), special.softmax(masked / 0.6))
    assert np.log(found) == pytest.approx(12.9, abs=0.2) and exact < 0.1


def test_lists_are_cut_by_mass_and_by_number():
    base = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    masked = np.log(np.array([0.4, 0.4, 0.1, 0.1]))
    two = stats.entropy(special.softmax(base[:2] / 0.6), special.softmax(masked[:2] / 0.6))
    assert truncated_divergence(base, masked, most=2) == pytest.approx(two)
    assert truncated_divergence(base, masked, mass=0.75) == pytest.approx(two)
    with pytest.raises(ValueError, match="temperature above 0"):
        truncated_divergence(base, masked, temperature=0)
    with pytest.raises(ValueError, match=r"\[vocab\]"):
        truncated_divergence(base, masked[:3])
