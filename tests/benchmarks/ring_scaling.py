"""The pair engine's ring: memory per device over 1 to 8 devices, and a TPU pod compiled for without one.

    JAX_PLATFORMS=cpu python tests/benchmarks/ring_scaling.py [--rows 65536] [--dim 256]
    JAX_PLATFORMS=cpu python tests/benchmarks/ring_scaling.py --topology v5e:16x16 --rows 1048576 --dim 768

Symmetric InfoNCE, value and gradients. Without a topology: the peak per device (arguments, outputs, temporaries, from
the compiler's memory analysis) on simulated devices. A ring's devices hold their part of inputs and gradients and some
three travelling shards, whatever the global batch: from a few devices on the peak falls as 1/P, and 8 devices with a
fixed part each take 8 times the batch. With a topology: does it fit the chip, and are the bytes that each device sends
the ring's minimum: P - 1 hops of its columns forward; backward as many again of columns, and of their float32 gradients
(labels and per-column numbers add a few bytes per row).
"""

import argparse
import os

SIMULATED = 8
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={SIMULATED}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jaxcore.distributed import (  # noqa: E402
    MeshConfig,
    batch_sharding,
    compile_step,
    describe_topology,
    make_mesh,
    replicated,
)
from jaxcore.losses import symmetric_info_nce  # noqa: E402


def jitted_loss(mesh, exchange):
    """Value and gradients of the loss with everything split over the mesh."""
    split = batch_sharding(mesh)

    def loss(queries, keys):
        return symmetric_info_nce(queries, keys, temperature=0.05, normalize=False, mesh=mesh, exchange=exchange)

    return jax.jit(
        jax.value_and_grad(loss, (0, 1)),
        in_shardings=(split, split),
        out_shardings=(replicated(mesh), (split, split)),
    )


def simulated(rows: int, dim: int, exchange: str) -> dict[int, int]:
    """Peak bytes per device by number of devices."""
    vectors = jax.ShapeDtypeStruct((rows, dim), jnp.float32)
    peaks = {}
    for count in (1, 2, 4, 8):
        mesh = make_mesh(MeshConfig(data=count), jax.devices()[:count])
        memory = jitted_loss(mesh, exchange).lower(vectors, vectors).compile().memory_analysis()
        peaks[count] = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return peaks


def on_topology(name: str, rows: int, dim: int, dtype: str) -> None:
    """Compile for a pod and compare its traffic with the minimum."""
    described = describe_topology(name)
    mesh = make_mesh(MeshConfig(data=-1), described.devices)
    vectors = jax.ShapeDtypeStruct((rows, dim), dtype)
    step = jitted_loss(mesh, "ring")
    compiled = compile_step(step, (vectors, vectors), mesh=mesh, topology=described.topology, name="ring")
    size = vectors.dtype.itemsize
    minimum = (mesh.size - 1) * (rows // mesh.size) * dim * (size + size + 4)
    totals = compiled.collective_totals
    permuted = totals["collective-permute"].bytes
    others = {kind: total.bytes for kind, total in totals.items() if kind != "collective-permute"}
    print(
        f"{name}, N {rows}, d {dim}, {dtype}: {compiled.needed_bytes / 2**30:.2f} of "
        f"{compiled.usable_bytes / 2**30:.2f} GiB per device (fits: {compiled.fits}), compiled in "
        f"{compiled.compile_seconds:.0f} s; permuted {permuted / 1e9:.3f} GB per device, the ring's minimum "
        f"{minimum / 1e9:.3f} GB: ratio {permuted / minimum:.4f}; other collectives: {others}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="")
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    if options.topology:
        on_topology(options.topology, options.rows, options.dim, options.dtype)
        return
    for exchange in ("ring", "gather"):
        peaks = simulated(options.rows, options.dim, exchange)
        shown = ", ".join(f"{count}: {peak / 2**20:.1f} MiB" for count, peak in peaks.items())
        print(
            f"{exchange}, N {options.rows}, d {options.dim}: {shown}; 8 devices take {peaks[8] / peaks[1]:.3f} of one"
        )


if __name__ == "__main__":
    main()
