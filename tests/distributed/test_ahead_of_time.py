import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from jaxcore.distributed import MeshConfig, batch_sharding, compile_step, make_mesh, replicated
from jaxcore.distributed import ahead_of_time as room

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")

SCRIPT = """
    import json, sys
    import jax, jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P
    from jaxcore.distributed import *

    described = describe_topology(NAME)
    mesh = make_mesh(MeshConfig(*SHAPE), described.devices)
    LAYERS, WIDTH, ROWS = 3, 512, 128 * mesh.size

    def loss(w, x):
        def layer(x, w):
            return jnp.tanh(jnp.tanh(x @ w) @ w), None
        return (jax.lax.scan(jax.checkpoint(layer), x, w)[0].astype(jnp.float32) ** 2).mean()

    def step(w, x):
        value, gradient = jax.value_and_grad(loss)(w, x)
        return w - 0.1 * gradient, value

    sharded = NamedSharding(mesh, P(None, "fsdp"))
    jitted = jax.jit(step, in_shardings=(sharded, batch_sharding(mesh)),
                     out_shardings=(sharded, replicated(mesh)), donate_argnums=0)
    w = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)
    small = compile_step(jitted, (w, x), mesh=mesh, topology=described.topology, name="train step")
    print(format_report(small, experiment="toy", preset="pod"))
    side = 120_000
    whole = replicated(mesh)
    huge = compile_step(
        jax.jit(lambda a: jnp.sin(a @ a).sum(), in_shardings=whole, out_shardings=whole),
        (jax.ShapeDtypeStruct((side, side), jnp.bfloat16),), mesh=mesh, topology=described.topology,
        name="huge")
    print(format_report(huge))
    print("JSON", json.dumps({
        "fits": [small.fits, huge.fits],
        "arguments": small.argument_bytes, "aliased": small.alias_bytes, "devices": small.num_devices,
        "model": small.model_flops_per_chip, "hardware": small.hardware_flops_per_chip,
        "compiled": small.compiled_flops_per_chip,
        "totals": {kind: [total.count, total.bytes] for kind, total in small.collective_totals.items()},
        "groups": sorted({len(item.group) for item in small.collectives}),
        "huge": [huge.needed_bytes, huge.usable_bytes, huge.refusal],
    }))
"""


@needs_libtpu
@pytest.mark.parametrize(("name", "shape"), [("v5e:4x4", (1, 4, 4, 1)), ("v5e:4x4:2", (2, 4, 4, 1))])
def test_a_small_step_on_a_pod_that_is_not_here(launch, name, shape):
    job = launch(SCRIPT.replace("NAME", repr(name)).replace("SHAPE", repr(shape)), explicit=False)
    assert job.wait(timeout=90) == [0], job.errors(0)[-2000:]
    report, _, facts = job.output(0).partition("JSON")
    facts = json.loads(facts)
    matmul = 2 * 128 * 512 * 512  # rows of one chip
    assert facts["devices"] == 16 * shape[0] and facts["fits"] == [True, False]
    # Two matmuls per layer: forward, recomputed, and twice in the backward pass.
    assert facts["model"] == 3 * 3 * 2 * matmul
    assert facts["compiled"] == facts["hardware"] == 4 * 3 * 2 * matmul
    weights = 3 * 512 * 512 * 2
    assert facts["aliased"] == weights // 4 and facts["arguments"] == weights // 4 + 128 * 512 * 2
    # FSDP: every layer's weights are gathered forward and backward over groups of 4.
    gathers, gathered = facts["totals"]["all-gather"]
    assert gathered >= 2 * weights and gathers >= 6 and 4 in facts["groups"]
    if shape[0] == 1:
        assert facts["totals"]["all-gather"] == [6, 2 * weights]
        assert facts["totals"]["reduce-scatter"] == [3, weights]
    needed, usable, sentence = facts["huge"]
    assert usable == int(15.75 * 2**30) and needed > usable and "exceeds available HBM" in sentence
    assert "DOES NOT FIT" in report and "predict " in report and "warning" not in report
    assert ("dcn-all-reduce" in facts["totals"]) == (shape[0] == 2)


def test_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'jaxcore\[tpu\]'"):
        room.describe_topology("v5e:4x4")


def test_a_process_that_runs_on_a_tpu_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(room.coordination, "tpu_backend_exists", lambda: True)
    with pytest.raises(ValueError, match="process of its own"):
        room.describe_topology("v5e:4x4")


def test_own_devices_too():
    """Without a topology the step compiles for the devices at hand; there is no limit to compare with."""
    mesh = make_mesh(MeshConfig())
    step = jax.jit(
        lambda w, x: (x @ w).sum(),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    w, x = jax.ShapeDtypeStruct((32, 32), jnp.float32), jax.ShapeDtypeStruct((64, 32), jnp.float32)
    compiled = compile_step(step, (w, x), mesh=mesh, model_flops=1000)
    assert compiled.fits and compiled.usable_bytes == 0 and compiled.argument_bytes == 32 * 32 * 4 + 8 * 32 * 4
    assert compiled.flops.hardware == 2 * 64 * 32 * 32 and compiled.flops.model == 1000
    assert compiled.collective_totals["all-reduce"].bytes == 4


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, (26.50G) exceeds available HBM (15.75G).",
            26.5,
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: Oom: Ran out of memory: (512.0M) exceeds available HBM (1G)",
            0.5,
        ),
        ("RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm. Exceeded hbm capacity by 4.3G.", 20.0),
    ],
)
def test_refusals_for_memory(message, needed):
    sentence, found = room._memory_refusal(jax.errors.JaxRuntimeError(message))
    assert found == int(needed * 2**30) and sentence


def test_other_failures_are_not_swallowed():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        room._memory_refusal(jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: 'x'"))
