"""Mapping a jitted function over rows: order, padding, one compilation, meshes and notices."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, jit_on_mesh, make_mesh
from jaxcore.evaluation import Interrupted, map_rows


@pytest.mark.parametrize("num_rows", [1, 7, 16, 41])
@pytest.mark.parametrize("mesh_config", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_equals_the_function_on_all_rows(num_rows, mesh_config):
    chex.clear_trace_counter()
    mesh = make_mesh(mesh_config)
    rows = {"x": np.random.default_rng(0).standard_normal((num_rows, 3)).astype(np.float32)}
    traced = chex.assert_max_traces(lambda params, batch: {"y": batch["x"] @ params}, n=1)
    result = map_rows(jit_on_mesh(traced, mesh), jnp.ones((3, 2)), rows, batch_size=16, mesh=mesh)
    np.testing.assert_allclose(result["y"], rows["x"] @ np.ones((3, 2)), rtol=1e-5)


def test_a_notice_interrupts():
    mesh = make_mesh(MeshConfig(data=8))
    rows = {"x": np.ones((40, 1), np.float32)}
    double = jit_on_mesh(lambda params, batch: 2 * batch["x"], mesh)
    with pytest.raises(Interrupted):
        map_rows(double, None, rows, batch_size=8, mesh=mesh, tick=lambda step: step == 2)
