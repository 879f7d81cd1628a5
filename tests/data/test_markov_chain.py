"""The Markov chain: its samples follow it, and its conditionals are those of the joint, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxcore.data.markov_chain import chain_conditionals, make_chain, sample_chain

CHAIN = make_chain(jax.random.key(0), num_states=4, transition_spread=1.0, marginal_spread=1.0)
TRANSITIONS, MARGINAL = (np.exp(np.asarray(x, np.float64)) for x in CHAIN)


def test_the_marginal_is_stationary():
    np.testing.assert_allclose(TRANSITIONS.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(MARGINAL @ TRANSITIONS, MARGINAL, rtol=1e-4)
    assert MARGINAL.max() / MARGINAL.min() > 1.5


def test_spreads_do_what_they_say():
    chain = make_chain(jax.random.key(1), num_states=6, transition_spread=0.0, marginal_spread=1.0)
    np.testing.assert_allclose(np.ptp(chain.log_transitions, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(chain.log_transitions[0], chain.log_marginal, atol=1e-4)


def test_samples_follow_the_chain():
    tokens = np.asarray(sample_chain(CHAIN, jax.random.key(2), rows=20_000, length=3))
    for column in range(3):
        counts = np.bincount(tokens[:, column], minlength=4)
        assert scipy.stats.chisquare(counts, MARGINAL / MARGINAL.sum() * len(tokens)).pvalue > 1e-3
    for state in range(4):
        counts = np.bincount(tokens[tokens[:, 0] == state, 1], minlength=4)
        expected = TRANSITIONS[state] / TRANSITIONS[state].sum() * counts.sum()
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_conditionals_are_those_of_the_enumerated_joint():
    length = 4
    sequences = np.array(list(itertools.product(range(4), repeat=length)))
    joint = MARGINAL[sequences[:, 0]] * np.prod(TRANSITIONS[sequences[:, :-1], sequences[:, 1:]], axis=1)
    joint = joint.reshape((4,) * length)
    exact = np.stack(
        [np.broadcast_to(np.log(joint / joint.sum(axis=t, keepdims=True)), joint.shape).ravel() for t in range(length)],
        1,
    )
    np.testing.assert_allclose(chain_conditionals(CHAIN, jnp.asarray(sequences)), exact, atol=1e-5)


@pytest.mark.parametrize("change", [{"num_states": 1}, {"transition_spread": -1.0}])
def test_bad_input(change):
    options = {"num_states": 4, "transition_spread": 1.0, "marginal_spread": 1.0, **change}
    with pytest.raises(ValueError, match="at least 2 states and spreads >= 0"):
        make_chain(jax.random.key(0), **options)
