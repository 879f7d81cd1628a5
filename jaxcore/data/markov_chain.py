"""Sequences of a known Markov chain: a language whose every conditional probability is exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Chain(NamedTuple):
    """A first-order Markov chain: log-probabilities of transitions (from row to column) and of the stationary law."""

    log_transitions: Float[Array, "states states"]
    log_marginal: Float[Array, " states"]


def make_chain(key: Array, *, num_states: int, transition_spread: float, marginal_spread: float) -> Chain:
    """A random chain: transition logits are normal, one for each pair of states plus one for each target state.

    Args:
        key: PRNG key.
        num_states: at least 2.
        transition_spread: standard deviation of the pairs' logits; 0 makes successive states independent.
        marginal_spread: standard deviation of the targets' logits; how unequally often states occur.

    Raises:
        ValueError: fewer than two states, a negative spread.
    """
    if num_states < 2 or transition_spread < 0 or marginal_spread < 0:
        raise ValueError(
            f"a chain needs at least 2 states and spreads >= 0: got {num_states}, {transition_spread}, "
            f"{marginal_spread}"
        )
    of_pairs, of_states = jax.random.split(key)
    logits = transition_spread * jax.random.normal(of_pairs, (num_states, num_states))
    logits += marginal_spread * jax.random.normal(of_states, (num_states,))
    transitions = jax.nn.softmax(logits)
    return Chain(jnp.log(transitions), jnp.log(jnp.linalg.matrix_power(transitions, 128)[0]))


def sample_chain(chain: Chain, key: Array, *, rows: int, length: int) -> Int[Array, "rows length"]:
    """Stationary sequences of the chain."""
    of_first, of_others = jax.random.split(key)
    cumulative = jnp.cumsum(jnp.exp(chain.log_transitions), axis=1)
    first = jax.random.categorical(of_first, chain.log_marginal, shape=(rows,))

    def follow(state: Array, uniform: Array) -> tuple[Array, Array]:
        state = jnp.minimum(jnp.sum(uniform[:, None] > cumulative[state], axis=1), cumulative.shape[0] - 1)
        return state, state

    _, others = jax.lax.scan(follow, first, jax.random.uniform(of_others, (length - 1, rows)))
    return jnp.concatenate([first[None], others]).T


def chain_conditionals(chain: Chain, tokens: Int[Array, "rows length"]) -> Float[Array, "rows length"]:
    """The exact ``log p(x_t | all others)``: by the Markov property, of both neighbours."""
    rows, states = tokens.shape[0], chain.log_marginal.shape[0]
    first = jnp.broadcast_to(chain.log_marginal, (rows, 1, states))
    before = jnp.concatenate([first, chain.log_transitions[tokens[:, :-1]]], axis=1)
    after = jnp.concatenate([chain.log_transitions.T[tokens[:, 1:]], jnp.zeros((rows, 1, states))], axis=1)
    return jnp.take_along_axis(jax.nn.log_softmax(before + after), tokens[..., None], axis=2)[..., 0]
