"""Controls keep what they should: values and sizes, not places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.evaluation import permuted_scores, random_spans


@given(seed=st.integers(0, 2**32 - 1))
def test_permuted_maps_have_the_same_values_at_tokens_and_none_elsewhere(seed):
    rng = np.random.default_rng(seed)
    scores, mask = rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.7
    given_scores = scores.copy()
    permuted = permuted_scores(scores, mask, rng)
    for values, before, tokens in zip(permuted, scores, mask, strict=True):
        np.testing.assert_array_equal(np.sort(values[tokens]), np.sort(before[tokens]))
    assert not permuted[~mask].any()
    np.testing.assert_array_equal(scores, given_scores)


def test_places_are_uniform():
    rng = np.random.default_rng(0)
    scores = np.tile([1.0, 0.0, 0.0, 0.0], (4000, 1))
    places = permuted_scores(scores, np.ones_like(scores, bool), rng).mean(axis=0)
    np.testing.assert_allclose(places, 0.25, atol=0.03)
    starts = random_spans(np.ones((4000, 4), bool), np.full(4000, 2), rng).argmax(axis=1)
    np.testing.assert_allclose(np.bincount(starts) / 4000, 1 / 3, atol=0.03)


@given(seed=st.integers(0, 2**32 - 1))
def test_spans_have_their_sizes_and_skip_no_token(seed):
    rng = np.random.default_rng(seed)
    mask, sizes = rng.random((6, 9)) < 0.7, rng.integers(0, 12, 6)
    spans = random_spans(mask, sizes, rng)
    np.testing.assert_array_equal(spans.sum(1), np.minimum(sizes, mask.sum(1)))
    assert not np.any(spans & ~mask)
    for span, tokens in zip(spans, mask, strict=True):
        assert np.all(np.diff(np.flatnonzero(span[tokens])) == 1)


def test_shapes_that_differ_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one shape"):
        permuted_scores(np.zeros((2, 3)), np.ones((2, 4), bool), rng)
    with pytest.raises(ValueError, match="a size is needed for each text"):
        random_spans(np.ones((2, 4), bool), np.array([1]), rng)
