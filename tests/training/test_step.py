"""State and step: sharded birth, donation, one compilation, no transfers, and steps that refuse bad numbers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcore.distributed import MeshConfig, make_mesh, shard_local_batch
from jaxcore.training import (
    OptimizerConfig,
    abstract_state,
    create_state,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
    one_shot_gradients,
)


def initialize(key):
    weights = jax.random.normal(key, (8, 16))
    return {"dense": {"kernel": nn.LogicallyPartitioned(weights, ("embed", "mlp")), "bias": jnp.zeros(16)}}


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    hidden = (batch["x"] + noise) @ params["dense"]["kernel"] + params["dense"]["bias"]
    return jnp.mean((jnp.sum(hidden, axis=1) - batch["y"]) ** 2)


def batches(count, rows=16):
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((rows, 8)).astype(np.float32),
            "y": rng.standard_normal(rows).astype(np.float32),
        }
        for _ in range(count)
    ]


def build(mesh_config, optimizer=None):
    mesh = make_mesh(mesh_config)
    optimizer = optimizer or optax.adamw(1e-2)
    state = create_state(initialize, optimizer, mesh, seed=0)
    return mesh, state, make_train_step(one_shot_gradients(loss), optimizer, state, mesh)


def losses_on(mesh_config, count=20):
    mesh, state, step = build(mesh_config)
    values = []
    for batch in batches(count):
        state, metrics = step(state, shard_local_batch(mesh, batch))
        values.append(float(metrics["loss"]))
    return values, state


def test_eight_devices_give_the_losses_of_one():
    one = losses_on(MeshConfig(data=1, tensor=8))[0]  # every device does the same work
    for config in (MeshConfig(data=8), MeshConfig(data=2, fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)):
        np.testing.assert_allclose(losses_on(config)[0], one, rtol=1e-5)


def test_parameters_and_their_moments_are_born_sharded():
    mesh, state, _ = build(MeshConfig(data=2, fsdp=4))
    kernel = state.params["dense"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16)}
    moment = state.opt_state[0].mu["dense"]["kernel"]
    assert moment.sharding == kernel.sharding
    abstract = abstract_state(initialize, optax.adamw(1e-2), mesh)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)


def test_adafactor_has_a_layout_for_its_factored_moments():
    optimizer = make_optimizer(OptimizerConfig(name="adafactor", learning_rate=1e-2), 10)
    mesh, state, step = build(MeshConfig(data=4, fsdp=2), optimizer)
    before = np.asarray(state.params["dense"]["kernel"])
    state, _ = step(state, shard_local_batch(mesh, batches(1)[0]))
    assert np.abs(np.asarray(state.params["dense"]["kernel"]) - before).max() > 1e-4


def test_amsgrad_is_that_of_torch():
    """Gradients that shrink, where the maximum matters; biases decay, too."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    peer = torch.optim.Adam(weights.values(), lr=1e-2, weight_decay=0.1, amsgrad=True)
    optimizer = make_optimizer(
        OptimizerConfig(
            name="amsgrad", learning_rate=1e-2, schedule="constant", warmup_fraction=0, weight_decay=0.1
        ), 1,
    )  # fmt: skip
    params = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    state = optimizer.init(params)
    for step in range(30):
        gradient = {name: rng.normal(size=value.shape) / (1 + step) for name, value in start.items()}
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradient[name])
        peer.step()
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)
    for name, weight in weights.items():
        np.testing.assert_allclose(params[name], weight.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_one_trace_for_all_steps_and_no_transfer_in_a_step():
    chex.clear_trace_counter()
    mesh = make_mesh(MeshConfig(data=8))
    optimizer = optax.adamw(1e-2)
    state = create_state(initialize, optimizer, mesh, seed=0)
    counted = one_shot_gradients(chex.assert_max_traces(loss, n=1))
    step = make_train_step(counted, optimizer, state, mesh)
    for batch in batches(5):
        on_device = shard_local_batch(mesh, batch)
        with jax.transfer_guard("disallow"):
            state, _ = step(state, on_device)
    assert int(state.step) == 5


def test_the_state_is_donated():
    mesh, state, step = build(MeshConfig(data=8))
    step(state, shard_local_batch(mesh, batches(1)[0]))
    assert state.params["dense"]["kernel"].is_deleted()


def test_a_step_that_is_not_finite_changes_nothing_nor_does_any_later_one():
    mesh, state, step = build(MeshConfig(data=8))
    good, bad = batches(2)
    bad["y"][3] = np.inf
    state, metrics = step(state, shard_local_batch(mesh, good))
    kernel = np.asarray(state.params["dense"]["kernel"])
    assert bool(metrics["finite"])
    state, metrics = step(state, shard_local_batch(mesh, bad))
    assert not bool(metrics["finite"])
    state, _ = step(state, shard_local_batch(mesh, good))
    np.testing.assert_array_equal(state.params["dense"]["kernel"], kernel)
    assert (int(state.step), int(state.nonfinite_step)) == (1, 1)


def test_each_step_has_its_own_key_and_each_seed_its_own_run():
    mesh, state, _ = build(MeshConfig(data=8))
    later = state.replace(step=state.step + 1)
    other = create_state(initialize, optax.adamw(1e-2), mesh, seed=1)
    keys = [jax.random.key_data(s.step_key).tolist() for s in (state, later, other)]
    assert len({tuple(key) for key in keys}) == 3


def test_schedule_rises_to_its_peak_and_ends_at_zero():
    config = OptimizerConfig(learning_rate=0.1, schedule="linear", warmup_steps=10)
    schedule = learning_rate_schedule(config, 110)
    np.testing.assert_allclose([schedule(0), schedule(9), schedule(10)], [0.01, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose([schedule(60), schedule(110)], [0.05, 0.0], atol=1e-7)
    cosine = learning_rate_schedule(OptimizerConfig(learning_rate=0.1, warmup_fraction=0.0), 100)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [0.1, 0.05, 0.0], atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_weight_decay_spares_biases(name):
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4), "norm": {"scale": jnp.ones(4)}}
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.5, warmup_fraction=0.0), 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert float(jnp.abs(updates["kernel"]).max()) > 0
    np.testing.assert_array_equal(updates["bias"], 0)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)


def test_bad_optimizer_settings_are_named():
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be positive: got 0"):
        OptimizerConfig(learning_rate=0.0)
    with pytest.raises(ValueError, match="warmup_fraction"):
        OptimizerConfig(warmup_fraction=1.0)
