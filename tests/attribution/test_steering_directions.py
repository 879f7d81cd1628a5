"""Directions against numpy and scikit-learn, token sets by hand, heads that are known to tell responses apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxcore.attribution.preference_score import ResponsePairs, response_states
from jaxcore.attribution.steering_directions import (
    MaskingEffects,
    class_difference,
    cosine,
    direction,
    grains_direction,
    head_shifts,
    in_context_vector,
    mask_tokens,
    masking_effects,
    mean_difference,
    random_direction,
    top_k_tokens,
    with_lengths,
)
from jaxcore.models import Decoder, DecoderConfig

RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(14, 3, 6)) * [3, 1, 1, 1, 1, 0.5] + [0.6, 0, 0.4, 0, 0, 0], jnp.float32)


def test_sets_of_tokens_by_hand():
    scores = jnp.array([[9.0, 1.0, -2.0, 3.0, 0.5, -7.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    eligible = jnp.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], bool)
    positive, negative = top_k_tokens(scores, eligible, 2)
    assert positive.tolist() == [[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]  # 9 and -7 are not eligible
    assert negative.tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]  # no sign is asked for; ties: the earlier
    more = top_k_tokens(scores, eligible, 5)
    assert [mask.sum(1).tolist() for mask in more] == [[2, 1]] * 2 and not (more[0] & more[1]).any()
    with pytest.raises(ValueError, match="k must be at least 1: got 0"):
        top_k_tokens(scores, eligible, 0)
    with pytest.raises(ValueError, match="must have one shape"):
        top_k_tokens(scores, eligible[:1], 1)


def test_masking_replaces_vectors_and_nothing_else():
    values, fill = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32), jnp.arange(4.0)
    masked = mask_tokens(values, jnp.array([[True, False, False], [False, False, True]]), fill)
    expected = np.array(values)
    expected[0, 0] = expected[1, 2] = [0, 1, 2, 3]
    np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize("aggregate", ("pca", "pca_uncentered"))
def test_components_are_those_of_an_independent_decomposition(aggregate):
    found = np.asarray(direction(ROWS, aggregate=aggregate))
    for layer in range(3):
        rows = np.asarray(ROWS[:, layer], np.float64)
        expected = PCA(1).fit(rows).components_[0] if aggregate == "pca" else np.linalg.svd(rows)[2][0]
        expected *= np.sign(expected @ rows.mean(0))
        np.testing.assert_allclose(found[layer], expected, atol=1e-4)


@pytest.mark.parametrize("aggregate", ("pca", "pca_uncentered", "mean"))
def test_the_sign_is_that_of_the_rows(aggregate):
    """Negated rows give the negated direction, which a bare decomposition does not promise; and lengths do."""
    found = direction(ROWS, aggregate=aggregate)
    np.testing.assert_allclose(direction(-ROWS, aggregate=aggregate), -found, atol=1e-5)
    assert np.all(jnp.sum(found * ROWS.mean(0), axis=1) > 0)
    scale = 1000.0 if aggregate == "mean" else 1.0
    np.testing.assert_allclose(direction(1000 * ROWS, aggregate=aggregate), scale * found, rtol=1e-3, atol=1e-5)
    assert not np.any(direction(jnp.zeros_like(ROWS), aggregate=aggregate))


def test_more_dimensions_than_rows_and_more_rows_than_dimensions():
    for shape in ((5, 1, 40), (40, 1, 5)):
        rows = RNG.normal(size=shape)
        found = direction(jnp.asarray(rows, jnp.float32))
        expected = PCA(1).fit(rows[:, 0]).components_[0]
        assert abs(float(found[0] @ expected)) == pytest.approx(1, abs=1e-4)


def test_the_direction_of_the_paper_is_a_difference():
    effects = MaskingEffects(ROWS, ROWS[::-1] * 0.5 + 1)
    both = grains_direction(effects, aggregate="mean")
    np.testing.assert_allclose(both, ROWS.mean(0) - effects.negative.mean(0), atol=1e-5)
    np.testing.assert_allclose(grains_direction(effects, aggregate="mean", sides="positive"), ROWS.mean(0), atol=1e-6)
    for call, message in (
        (lambda: grains_direction(effects, sides="negative"), "sides must be both or positive"),
        (lambda: direction(ROWS, aggregate="median"), "aggregate must be pca, pca_uncentered or mean"),
        (lambda: direction(ROWS[0]), r"must be \[rows, layers, hidden\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_mean_difference_and_the_component_over_all_layers():
    states = jnp.asarray(RNG.normal(size=(9, 2, 3, 4)) + np.array([0.5, 0.0])[:, None, None], jnp.float32)
    differences = np.asarray(states[:, 0] - states[:, 1], np.float64)
    np.testing.assert_allclose(mean_difference(states), differences.mean(0), atol=1e-5)
    expected = PCA(1).fit(differences.reshape(9, -1)).components_[0]
    expected *= np.sign(expected @ differences.reshape(9, -1).mean(0))
    np.testing.assert_allclose(in_context_vector(states).ravel(), expected, atol=1e-4)


def test_heads_that_tell_responses_apart_are_found_and_shifted_towards_the_chosen():
    states = RNG.normal(size=(60, 2, 2, 3, 4))
    states[:, 0, 1, 2, 0] += 6  # head 2 of layer 1 knows, along its first coordinate
    shifts = np.asarray(head_shifts(jnp.asarray(states, jnp.float32), num_heads=1))
    assert np.flatnonzero(np.abs(shifts).sum(-1)).tolist() == [1 * 3 + 2]
    own = states[:, :, 1, 2]
    theta = own[:, 0].mean(0) - own[:, 1].mean(0)
    theta /= np.linalg.norm(theta)
    np.testing.assert_allclose(shifts[1, 2], (own @ theta).std() * theta, atol=1e-4)
    with pytest.raises(ValueError, match="num_heads must be 1 to 6: got 7"):
        head_shifts(jnp.asarray(states), num_heads=7)
    with pytest.raises(ValueError, match="leaves none on one side"):
        head_shifts(jnp.asarray(states[:2]), num_heads=1)


def test_random_directions_have_the_given_lengths():
    like = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32).at[1].set(0)
    drawn = [random_direction(jax.random.key(seed), like) for seed in (0, 1)]
    for one in drawn:
        np.testing.assert_allclose(jnp.linalg.norm(one, axis=1), jnp.linalg.norm(like, axis=1), rtol=1e-5)
    assert abs(float(cosine(drawn[0], drawn[1])[0])) < 0.999
    stretched = with_lengths(like, jnp.array([2.0, 3.0, 0.5]))
    np.testing.assert_allclose(jnp.linalg.norm(stretched, axis=1), [2, 0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(cosine(stretched, like), [1, 0, 1], atol=1e-5)


def test_the_difference_of_known_classes():
    states, signs = RNG.normal(size=(7, 2, 3)), np.array([1, 0, -1, 1, 1, -1, 0])
    expected = states[signs == 1].mean(0) - states[signs == -1].mean(0)
    np.testing.assert_allclose(class_difference(jnp.asarray(states), jnp.asarray(signs)), expected, atol=1e-6)


def test_effects_are_states_less_masked_states_of_both_responses():
    config = DecoderConfig(
        vocab_size=9, num_layers=2, hidden_size=8, num_heads=2, num_key_value_heads=2, head_size=4,
        intermediate_size=12, max_positions=8,
    )  # fmt: skip
    model = Decoder(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * RNG.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes))
    ids, ones = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]), jnp.ones((2, 1), jnp.int32)
    pairs = ResponsePairs(jnp.ones((2, 4), jnp.int32), jnp.array([[2], [3]]), ones, jnp.array([[4], [5]]), ones)
    positive = jnp.array([[1, 0, 0, 0], [0, 1, 1, 0]], bool)
    negative = jnp.array([[0, 0, 1, 0], [0, 0, 0, 1]], bool)

    def embed(ids):
        return model.apply({"params": params}, ids, method="embed")

    @jax.jit
    def compute(ids):
        fill = embed(jnp.zeros((1, 1), jnp.int32))[0, 0]
        masked = [jnp.where(tokens, 0, ids) for tokens in (positive, negative)]  # id 0 in the token's place
        states = [response_states(model, params, embed(each), pairs) for each in (ids, *masked)]
        return masking_effects(model, params, embed(ids), pairs, positive, negative, fill=fill), states

    effects, (whole, *masked) = compute(ids)
    for found, states in zip(effects, masked, strict=True):
        np.testing.assert_allclose(found, np.asarray(whole - states).reshape(4, 2, 8), atol=1e-4)
        assert np.abs(found).max() > 0.1
