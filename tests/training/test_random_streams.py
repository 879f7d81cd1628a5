"""Streams by name: the same name gives the same numbers, another name or key others."""

import jax

from jaxcore.training.random_streams import random_stream


def test_names_and_keys_decide_the_stream():
    def bits(seed, name):
        return tuple(jax.random.key_data(random_stream(jax.random.key(seed), name)).tolist())

    uses = [(seed, name) for seed in (0, 1) for name in ("lime", "shap", "masks", "")]
    assert len({bits(*use) for use in uses}) == len(uses)
    assert bits(0, "lime") == bits(0, "lime")
