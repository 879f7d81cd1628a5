"""A compiler that gives wrong numbers is kept from it, and nobody's own flags are touched."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from jaxcore.compiler_bugs import avoid_wrong_fusions

RIGHT = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def test_the_gradients_of_many_outputs_through_a_layer_norm_are_right():
    """With jaxlib 0.10.2's own fusions, all but the first are off by several per cent."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((300, 256), (256, 256)))
    chosen = jnp.asarray(rng.normal(size=(16, 300, 256)), jnp.float32)

    def normed(x):
        x = x @ weight
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)

    def gradient(cotangent):
        return jax.vjp(normed, x)[1](cotangent)[0]

    together = jax.jit(jax.vmap(gradient))(chosen)
    alone = jax.lax.map(gradient, chosen)
    np.testing.assert_allclose(together, alone, atol=1e-5 * float(jnp.abs(alone).max()))


@pytest.mark.parametrize(
    ("before", "version", "after"),
    [
        ("", "0.10.2", RIGHT),
        ("--xla_force_host_platform_device_count=8", "0.10.2", f"--xla_force_host_platform_device_count=8 {RIGHT}"),
        ("--xla_cpu_experimental_ynn_fusion_type=", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type="),
        ("--xla_a=1", "0.10.1", "--xla_a=1"),
        ("--xla_a=1", "0.12.0.1", "--xla_a=1"),
    ],
)
@pytest.mark.filterwarnings("ignore:JAX computed before")
def test_the_flag_is_added_where_it_is_needed_alone(before, version, after):
    environment = {"XLA_FLAGS": before}
    avoid_wrong_fusions(environment, version)
    assert environment["XLA_FLAGS"] == after


def test_importing_jaxcore_too_late_warns():
    if jaxlib.__version__ != "0.10.2":
        pytest.skip("this jaxlib has no such bug")
    code = "import jax; jax.devices(); import jaxcore"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "import jaxcore first" in run.stderr
