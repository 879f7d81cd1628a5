import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxcore.distributed import MeshConfig, gather_to_host, make_mesh, shard_local_batch, tree_shardings
from jaxcore.distributed.sharding import partition_spec


class Block(nn.Module):
    """A layer for nn.scan."""

    @nn.compact
    def __call__(self, x, _):
        up = nn.Dense(16, kernel_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp")))(x)
        return nn.Dense(8, kernel_init=nn.with_logical_partitioning(nn.initializers.ones, ("mlp", "embed")))(up), None


class Model(nn.Module):
    """Embedding, scanned blocks, an unannotated head."""

    @nn.compact
    def __call__(self, ids):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("vocab", "embed"))
        x = nn.Embed(31, 8, embedding_init=init)(ids)
        x, _ = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(name="blocks")(x, None)
        return nn.Dense(4, name="head")(x)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def boxed():
    return jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))["params"]


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def test_parameters(mesh, boxed):
    found = specs(tree_shardings(boxed, mesh))
    assert found["blocks"]["Dense_0"]["kernel"] == P(None, "fsdp", "tensor")
    assert found["blocks"]["Dense_1"]["kernel"] == P(None, "tensor", "fsdp")
    assert found["Embed_0"]["embedding"] == P(None, "fsdp")  # 31 rows do not divide over tensor=2
    assert found["head"]["kernel"] == P()
    unboxed = nn.meta.unbox(boxed)
    chex.assert_trees_all_equal_structs(tree_shardings(boxed, mesh), unboxed)


def test_parameters_really_shard(mesh, boxed):
    """jit accepts the tree as out_shardings, and a device holds a quarter of a doubly sharded kernel."""
    model = Model()

    def init(key):
        return nn.meta.unbox(model.init(key, jnp.zeros((2, 3), jnp.int32))["params"])

    params = jax.jit(init, out_shardings=tree_shardings(boxed, mesh))(jax.random.key(0))
    kernel = params["blocks"]["Dense_0"]["kernel"]
    assert kernel.shape == (3, 8, 16) and kernel.addressable_shards[0].data.shape == (3, 4, 8)


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.adafactor(1e-3, min_dim_size_to_factor=2)])
def test_optimizer_state(mesh, boxed, optimizer):
    state = jax.eval_shape(optimizer.init, boxed)
    shardings = tree_shardings(state, mesh)
    unboxed = nn.meta.unbox(state)
    chex.assert_trees_all_equal_structs(shardings, unboxed)
    kernel_specs = set()
    for (path, sharding), array in zip(
        jax.tree_util.tree_leaves_with_path(shardings), jax.tree.leaves(unboxed), strict=True
    ):
        sharding.shard_shape(array.shape)  # raises where a dimension does not divide
        if "Dense_0" in jax.tree_util.keystr(path) and "kernel" in jax.tree_util.keystr(path):
            kernel_specs.add((array.shape, sharding.spec))
    if hasattr(state[0], "mu"):
        assert kernel_specs == {((3, 8, 16), P(None, "fsdp", "tensor"))}
    else:  # factored moments lost a dimension: replicated
        assert all(spec == P() for shape, spec in kernel_specs if len(shape) != 3) and len(kernel_specs) > 1


def test_each_mesh_axis_once_per_array(mesh):
    assert partition_spec(("embed", "embed"), (8, 8), mesh) == P("fsdp")
    assert partition_spec(("batch", None, "embed"), (8, 3, 8), mesh) == P(("replica", "data", "fsdp"))


def test_an_indivisible_dimension_leaves_the_axis_to_the_next(mesh):
    assert partition_spec(("embed", "embed"), (7, 8), mesh) == P(None, "fsdp")


def test_unknown_axis_is_named(mesh):
    with pytest.raises(ValueError, match="'embd' has no rule; known: batch, vocab"):
        partition_spec(("embd",), (8,), mesh)


def test_local_batch_becomes_global(mesh):
    batch = {"ids": np.arange(24).reshape(8, 3), "step": np.float32(2.0)}
    placed = shard_local_batch(mesh, batch)
    np.testing.assert_array_equal(placed["ids"], batch["ids"])
    assert placed["ids"].addressable_shards[0].data.shape == (2, 3)  # four batch shards, tensor copies
    assert placed["step"].sharding.is_fully_replicated
    with pytest.raises(ValueError, match=r"\['ids'\] has 6 rows.*multiple of 4"):
        shard_local_batch(mesh, {"ids": np.zeros((6, 3))})


def test_gather_to_host(mesh):
    key = jax.random.key(3)
    tree = {"a": shard_local_batch(mesh, np.arange(8.0)), "key": key, "n": 3, "x": np.ones(2)}
    host = gather_to_host(tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))
    np.testing.assert_array_equal(host["a"], np.arange(8.0))
    np.testing.assert_array_equal(host["key"], jax.random.key_data(key))


def test_two_processes_share_a_batch(launch):
    """Each process gives its rows; the global mean is of all rows; both gather the same whole."""
    job = launch(
        """
        import jax, jax.numpy as jnp, numpy as np
        from jaxcore.distributed import *
        info = start()
        mesh = make_mesh(MeshConfig())
        check_batch(mesh, 8, info.num_processes)
        rows = np.arange(4.0) + 10 * info.process_id
        batch = shard_local_batch(mesh, {"x": rows})
        mean = jax.jit(lambda x: jnp.mean(x), out_shardings=replicated(mesh))(batch["x"])
        doubled = jax.jit(lambda x: 2 * x)(batch["x"])
        print("RESULT", jax.device_count(), float(mean), gather_to_host(doubled).tolist())
        """,
        count=2,
    )
    assert job.wait() == [0, 0], job.errors(0)
    expected = [2.0 * value for value in (0, 1, 2, 3, 10, 11, 12, 13)]
    for rank in (0, 1):
        assert f"RESULT 2 6.5 {expected}" in job.output(rank)
