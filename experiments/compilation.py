"""``compile NAME --topology v5e:16x16``: every jitted step, compiled for a TPU topology on a machine without one."""

import dataclasses
from typing import Any

import jax

from experiments import protocol
from jaxcore.distributed import compile_step, describe_topology, format_report


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """What `compile` takes besides the configuration."""

    topology: str = "v5e:16x16"
    """Chip and shape: v5e:16x16, v5p:4x4x4, v6e:8x8, or v5e:16x16:2 for two slices."""
    step: str = ""
    """Only this step (train, embed, explain); empty for all."""


def compile_experiment(name: str, options: CompileOptions, config: Any) -> bool:
    """Compile and print each step's memory, FLOPs, collectives and predicted time; True when all fit.

    Raises:
        ValueError: unknown topology or step, a mesh or batch that does not fit the topology's chips.
    """
    jax.config.update("jax_platforms", "cpu")  # the topology is described, not present
    described = describe_topology(options.topology)
    program = protocol.load(name).build(config, described.devices)
    if options.step and options.step not in program.steps:
        raise ValueError(f"unknown step {options.step!r}: expected one of {', '.join(program.steps)}")
    fits = True
    for step_name, step in program.steps.items():
        if options.step and step_name != options.step:
            continue
        compiled = compile_step(
            step.function, step.arguments, mesh=program.mesh, topology=described.topology, name=step_name
        )
        print(format_report(compiled, experiment=name, preset=config.preset), flush=True)
        rows_per_chip = step.rows / program.mesh.size
        print(f"rows     {step.rows:,} per call, {rows_per_chip:g} per chip", end="\n\n", flush=True)
        fits &= compiled.fits
    return fits
