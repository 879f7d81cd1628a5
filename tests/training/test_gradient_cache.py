"""Cached gradients are the one-shot gradients: with dropout, on meshes, whatever the micro-batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxcore.distributed import MeshConfig, batch_sharding, make_mesh
from jaxcore.losses import supervised_contrastive
from jaxcore.models import Encoder, EncoderConfig
from jaxcore.training import cached_gradients

CONFIG = EncoderConfig(
    vocab_size=50, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=12,
    dropout=0.2, attention_dropout=0.1, pooler="mean",
)  # fmt: skip
MODEL = Encoder(CONFIG)
ROWS = 32


def encode(params, batch, key):
    return MODEL.apply({"params": params}, batch["ids"], deterministic=False, rngs={"dropout": key}).pooled


def loss(embeddings, batch):
    return supervised_contrastive(embeddings, batch["labels"], temperature=0.1)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    batch = {
        "ids": jnp.asarray(rng.integers(0, 50, (ROWS, 12)), jnp.int32),
        "labels": jnp.asarray(np.repeat(np.arange(8), 4), jnp.int32),
    }
    params = meta.unbox(MODEL.init(jax.random.key(0), batch["ids"][:1])["params"])
    return params, batch


def one_shot(params, batch, key, num_chunks):
    """The whole batch at once, each micro-batch's rows with the key that the cache gives them."""

    def whole(params):
        embeddings = jnp.zeros((ROWS, CONFIG.hidden_size))
        for chunk in range(num_chunks):
            rows = jax.tree.map(lambda x, c=chunk: x[c::num_chunks], batch)
            embeddings = embeddings.at[chunk::num_chunks].set(encode(params, rows, jax.random.fold_in(key, chunk)))
        return loss(embeddings, batch)

    return jax.value_and_grad(whole)(params)


@pytest.mark.parametrize("micro_batch", [8, 32])
def test_equals_the_one_shot_gradient_with_dropout(problem, micro_batch):
    params, batch = problem
    key = jax.random.key(7)
    value, gradient = jax.jit(cached_gradients(encode, loss, micro_batch=micro_batch))(params, batch, key)
    expected_value, expected = jax.jit(lambda p: one_shot(p, batch, key, ROWS // micro_batch))(params)
    assert value == pytest.approx(float(expected_value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_a_mesh_changes_nothing(problem):
    params, batch = problem
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    step = jax.jit(cached_gradients(encode, loss, micro_batch=16))
    value, gradient = step(params, batch, jax.random.key(1))
    sharded = jax.device_put(batch, batch_sharding(mesh))
    mesh_value, mesh_gradient = step(params, sharded, jax.random.key(1))
    assert mesh_value == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mesh_gradient, gradient)


def test_cutting_a_sharded_batch_needs_no_communication_of_rows(problem):
    """Rows are dealt with a stride, so no device has to send token ids to another one."""
    params, batch = problem
    mesh = make_mesh(MeshConfig(data=8))
    sharded = jax.device_put(batch, batch_sharding(mesh))
    step = jax.jit(cached_gradients(encode, loss, micro_batch=8))
    text = step.lower(params, sharded, jax.random.key(1)).compile().as_text()
    moved = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
    assert not [line for line in moved if "s32[4,12]" in line or "s32[32,12]" in line]


def test_activation_memory_is_that_of_a_micro_batch(problem):
    params, batch = problem
    big = jax.tree.map(lambda x: jnp.concatenate([x] * 16), batch)

    def temporaries(micro_batch):
        step = jax.jit(cached_gradients(encode, loss, micro_batch=micro_batch))
        return step.lower(params, big, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(32) < temporaries(512) / 4


def test_a_micro_batch_that_does_not_divide_is_named(problem):
    params, batch = problem
    with pytest.raises(ValueError, match="micro_batch 5 does not divide the batch of 32 rows"):
        cached_gradients(encode, loss, micro_batch=5)(params, batch, jax.random.key(0))


def test_a_loss_with_parameters_of_its_own_gets_their_gradient():
    """A learnt temperature and a head after the encoder, as one parameter tree."""
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.standard_normal((6, 6)), jnp.float32) for name in ("encoder", "head")}
    params["log_temperature"] = jnp.float32(-1.0)
    batch = {"x": jnp.asarray(rng.standard_normal((16, 6)), jnp.float32), "labels": jnp.arange(16) // 4}

    def encode_rows(params, rows, key):
        return jnp.tanh(rows["x"] @ params["encoder"])

    def loss_with_params(embeddings, batch, params):
        temperature = jnp.exp(params["log_temperature"])
        return supervised_contrastive(embeddings @ params["head"], batch["labels"], temperature=temperature)

    key = jax.random.key(0)
    value, gradient = cached_gradients(encode_rows, loss_with_params, micro_batch=4)(params, batch, key)
    expected, whole = jax.value_and_grad(lambda p: loss_with_params(encode_rows(p, batch, key), batch, p))(params)
    assert value == pytest.approx(float(expected), rel=1e-6)
    for name in params:
        np.testing.assert_allclose(gradient[name], whole[name], rtol=1e-4, atol=1e-6)
