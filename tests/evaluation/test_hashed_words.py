"""Hashed words: what decides a vector, and what a state has of its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.evaluation.hashed_words import document_frequency_weights, hashed_vectors, mixed_states, word_hash


def test_forms_of_a_word_share_a_hash_and_the_hash_is_fixed():
    assert word_hash("Governments") == word_hash("governing") != word_hash("gold")
    assert word_hash("a") == 0xE8B7BE43  # CRC-32 of "a"


def test_rare_words_weigh_more():
    documents = [[1, 2], [1, 3], [1, 3], [1, 1]]
    weights = document_frequency_weights([1, 2, 3, 9], documents)
    np.testing.assert_allclose(weights, [0.1, np.log(4), np.log(2), np.log(4)], rtol=1e-6)
    with pytest.raises(ValueError, match="no documents"):
        document_frequency_weights([1], [])


def test_a_vector_depends_on_key_and_hash_alone():
    hashes, weights = jnp.asarray([5, 6, 5], jnp.uint32), jnp.asarray([1.0, 1.0, 2.0])
    vectors = hashed_vectors(jax.random.key(0), hashes, weights, dim=2000)
    np.testing.assert_allclose(vectors[2], 2 * vectors[0], rtol=1e-6)
    assert abs(float(vectors[0].mean())) < 0.1 and float(vectors[0].std()) == pytest.approx(1, abs=0.1)
    assert abs(float(vectors[0] @ vectors[1])) / 2000 < 0.1
    other = hashed_vectors(jax.random.key(1), hashes[:1], weights[:1], dim=2000)
    assert abs(float(other[0] @ vectors[0])) / 2000 < 0.1


def test_states_are_unit_mixtures_of_neighbours_and_padding_is_nothing():
    vectors = jnp.eye(4) * jnp.asarray([[1.0], [2.0], [3.0], [50.0]])
    ids = jnp.asarray([[0, 1, 2, 3, 3], [0, 1, 2, 0, 0]])
    mask = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]], bool)
    states = np.asarray(mixed_states(vectors, ids, mask))
    expected = np.asarray([[1, 1, 0.75, 0], [0.5, 2, 1.5, 0], [0.25, 1, 3, 0]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(states[0, :3], expected, atol=1e-6)
    np.testing.assert_allclose(states[1], states[0], atol=1e-6)
