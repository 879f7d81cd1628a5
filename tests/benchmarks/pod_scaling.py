"""Weak scaling of STAR's pod preset, read from real TPU executables: 16 against 256 chips at the same rows per chip.

    python tests/benchmarks/pod_scaling.py [--chip v5e]

Compiles the training step ahead of time for CHIP:4x4 with 64 authors and for CHIP:16x16 with 1024 (64 texts per chip
in both; needs libtpu, no TPU) and prints matrix FLOPs per chip, loops multiplied out, memory and collective bytes.
The encoder's FLOPs per chip must agree within 1 %; the loss's grow with the batch and are printed beside them.
"""

import argparse
import dataclasses
import os
import subprocess
import sys

AUTHORS = {"4x4": 64, "16x16": 1024}
MICRO_BATCH_PER_CHIP = 16


def compile_one(chip: str, shape: str) -> None:
    """Compile and print one topology; a process of its own, because libtpu is loaded once."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from experiments import star
    from jaxcore.distributed import compile_step, describe_topology

    described = describe_topology(f"{chip}:{shape}")
    pod = star.PRESETS["pod"]
    batches = dataclasses.replace(pod.data.batches, authors_per_batch=AUTHORS[shape])
    config = dataclasses.replace(
        pod,
        data=dataclasses.replace(pod.data, batches=batches),
        micro_batch=MICRO_BATCH_PER_CHIP * len(described.devices),
        evaluation=dataclasses.replace(pod.evaluation, batch_size=16 * len(described.devices)),
    )
    program = star.build(config, described.devices)
    step = program.steps["train"]
    compiled = compile_step(step.function, step.arguments, mesh=program.mesh, topology=described.topology)
    rows = step.rows // program.mesh.size
    loss = 6 * rows * step.rows * config.model.hidden_size
    moved = sum(total.bytes for total in compiled.collective_totals.values())
    print(
        f"{shape} {compiled.compiled_flops_per_chip} {loss} {compiled.needed_bytes} {moved:.0f} "
        f"{compiled.compile_seconds:.0f} {compiled.fits}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e")
    parser.add_argument("--shape", default="")
    arguments = parser.parse_args()
    if arguments.shape:
        compile_one(arguments.chip, arguments.shape)
        return
    encoder = {}
    for shape in AUTHORS:
        command = [sys.executable, __file__, "--chip", arguments.chip, "--shape", shape]
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(__file__)))}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        _, flops, loss, memory, moved, seconds, fits = output.strip().splitlines()[-1].split()
        encoder[shape] = int(flops) - int(loss)
        print(
            f"{arguments.chip}:{shape:6s} encoder {encoder[shape] / 1e12:.3f} TFLOP/chip, loss {int(loss) / 1e9:.3f} "
            f"GFLOP/chip, {int(memory) / 2**30:.2f} GiB (fits: {fits}), collectives {float(moved) / 1e9:.2f} GB/chip, "
            f"compiled in {seconds} s",
            flush=True,
        )
    small, large = encoder.values()
    print(f"encoder FLOPs per chip, 256 chips over 16: {large / small:.4f} (goal: within 1 %)")


if __name__ == "__main__":
    main()
