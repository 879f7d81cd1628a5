"""Feature groups: numbering, masking, spreading and summing, each against the arrays written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.attribution.feature_groups import (
    FeatureGroups,
    feature_groups,
    masked_inputs,
    num_features,
    present_features,
    spread_over_inputs,
    sum_per_feature,
    token_groups,
)


def test_tokens_are_numbered_wherever_the_padding_lies():
    groups = token_groups(jnp.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 1]]))
    assert num_features(groups) == 2
    np.testing.assert_array_equal(groups.ids[..., 0], [[0, 1, -1], [-1, 0, 1], [0, -1, 1], [-1, -1, 0]])
    np.testing.assert_array_equal(present_features(groups, 4), [[1, 1], [1, 1], [1, 1], [1, 0]])


def test_tokens_of_a_pair_share_no_feature():
    left, right = jnp.array([[1, 1], [1, 0]]), jnp.array([[1, 1, 0], [1, 1, 1]])
    groups = token_groups((left, right))
    assert num_features(groups) == 4
    np.testing.assert_array_equal(groups.ids[0][..., 0], [[0, 1], [0, -1]])
    np.testing.assert_array_equal(groups.ids[1][..., 0], [[2, 3, -1], [1, 2, 3]])


def test_inside_jit_the_width_of_the_mask_is_the_number_of_features():
    mask = jnp.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert num_features(token_groups(mask)) == 2
    jitted = jax.jit(token_groups)(mask)
    assert num_features(jitted) == 4
    np.testing.assert_array_equal(jitted.ids, token_groups(mask).ids)


def test_without_groups_every_coordinate_is_a_feature():
    inputs = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 2, 2))}
    groups = feature_groups(None, inputs)
    assert num_features(groups) == 7
    np.testing.assert_array_equal(groups.ids["a"], [[0, 1, 2]])
    np.testing.assert_array_equal(groups.ids["b"], [[[3, 4], [5, 6]]])


def test_dropped_features_take_the_baseline_and_others_stay():
    inputs, baseline = jnp.arange(12.0).reshape(2, 3, 2) + 1, -jnp.ones((2, 3, 2))
    groups = feature_groups(token_groups(jnp.array([[1, 1, 0], [1, 1, 1]])), inputs)
    masked = masked_inputs(inputs, baseline, groups, jnp.array([[False, True, False], [True, False, False]]))
    np.testing.assert_array_equal(masked[0], [[-1, -1], [3, 4], [5, 6]])
    np.testing.assert_array_equal(masked[1], [[7, 8], [-1, -1], [-1, -1]])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shared=st.booleans(), batch=st.integers(1, 3))
def test_spreading_and_summing_are_what_loops_do(seed, shared, batch):
    rng = np.random.default_rng(seed)
    inputs = (rng.standard_normal((batch, 4, 3)).astype(np.float32), rng.standard_normal((batch, 2)).astype(np.float32))
    rows = 1 if shared else batch
    ids = (rng.integers(-1, 5, (rows, 4, 1)), rng.integers(-1, 5, (rows, 2)))
    ids[1][:, 0] = 4  # every example has a feature, and all five numbers are used
    groups = feature_groups(FeatureGroups(ids, 5), inputs)
    values = rng.standard_normal((batch, 5)).astype(np.float32)
    spread = spread_over_inputs(jnp.asarray(values), groups, inputs)
    expected = np.zeros((batch, 5))
    for leaf, leaf_ids, leaf_spread in zip(inputs, ids, spread, strict=True):
        full = np.broadcast_to(leaf_ids, leaf.shape)
        for place in np.ndindex(leaf.shape):
            number = full[place]
            assert leaf_spread[place] == (values[place[0], number] if number >= 0 else 0)
            if number >= 0:
                expected[place[0], number] += leaf[place]
    np.testing.assert_allclose(sum_per_feature(inputs, groups), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (jnp.zeros((3,)), "groups must be integers"),
        (jnp.zeros((2, 3), jnp.int32), r"groups of shape \(2, 3\) do not broadcast"),
        ((jnp.zeros(2, jnp.int32),), "structure of the inputs"),
        (jnp.full((3, 2), -2), "got -2 to -2"),
        (FeatureGroups(jnp.full((3, 2), 7), 4), "number features 0 to 3"),
        (jnp.array([[[0], [1], [-1]], [[-1], [-1], [-1]]]), r"leaves nothing to attribute in 1 of 2 examples \(rows 1"),
    ],
)
def test_bad_groups_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        feature_groups(groups, jnp.zeros((2, 3, 2)))


def test_bad_masks_are_named():
    with pytest.raises(ValueError, match=r"leaves nothing to attribute in 1 of 2 examples \(rows 1\)"):
        token_groups(jnp.array([[1, 1], [0, 0]]))
    with pytest.raises(ValueError, match="must be \\[batch, time\\]"):
        token_groups(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="the number of features is unknown inside jit"):
        jax.jit(lambda ids: feature_groups(ids, jnp.zeros((2, 3))).ids)(jnp.arange(3))
