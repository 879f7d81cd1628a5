"""The best state of a run is kept, also across a resumption; equal values keep the first; patience runs out."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.training import abstract_state, create_state
from jaxcore.training.model_selection import best_state, keeping_best

OPTIMIZER = optax.sgd(1.0)


def initialize(key):
    return {"w": jnp.zeros(())}


def count_up(state, batch):
    """Step k leaves w = k + 1."""
    return state.replace(step=state.step + 1, params={"w": state.params["w"] + 1}), {}


@pytest.fixture
def start():
    mesh = make_mesh(MeshConfig(data=1, tensor=-1))
    return create_state(initialize, OPTIMIZER, mesh, seed=0), abstract_state(initialize, OPTIMIZER, mesh)


def run(state, directory, values, steps):
    """Steps in twos, measured by a table of values at w."""
    step, _ = keeping_best(count_up, lambda params: values[int(params["w"])], every=2, directory=directory)
    for _ in range(steps):
        state, _ = step(state, None)
    return state


def test_the_first_of_the_best_is_kept(start, tmp_path):
    run(start[0], tmp_path, {2: 0.5, 4: 0.9, 6: 0.9, 8: 0.1}, 8)
    kept = best_state(tmp_path, start[1])
    assert int(kept.step) == 4 and np.asarray(kept.params["w"]) == 4


def test_a_resumed_run_measures_at_the_same_steps_and_knows_what_was_best(start, tmp_path):
    values = {2: 0.5, 4: 0.9, 6: 0.7}
    state = run(start[0], tmp_path, values, 5)
    run(state, tmp_path, values, 1)
    assert int(best_state(tmp_path, start[1]).step) == 4


def test_nothing_is_kept_before_the_first_measurement(start, tmp_path):
    run(start[0], tmp_path, {}, 1)
    assert best_state(tmp_path, start[1]) is None
    with pytest.raises(ValueError, match="every 1 or more"):
        keeping_best(count_up, lambda params: 0.0, every=0, directory=tmp_path)


def test_patience_is_counted_from_the_best_also_by_a_resumed_run(start, tmp_path):
    """Measured at 2, 4, 6, ...: the best is at 4, so that two measurements without a better one end it at 8."""
    values = {2: 0.5, 4: 0.9, 6: 0.9, 8: 0.1, 10: 1.0}
    arguments = {"every": 2, "directory": tmp_path, "patience": 2}
    step, stop = keeping_best(count_up, lambda params: values[int(params["w"])], **arguments)
    state, done = start[0], 0
    while not stop(done):
        state, done = step(state, None)[0], done + 1
    assert done == 8 and int(best_state(tmp_path, start[1]).step) == 4
    _, resumed = keeping_best(count_up, lambda params: 0.0, **arguments)
    assert resumed(8) and not resumed(7)
    _, never = keeping_best(count_up, lambda params: 0.0, every=2, directory=tmp_path)
    assert not never(10**6)
