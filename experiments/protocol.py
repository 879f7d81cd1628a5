"""The protocol in `experiments`: its types, what every paper does alike, and how its modules are found."""

import dataclasses
import importlib
import pathlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import experiments
from jaxcore.distributed import MeshConfig, batch_sharding, check_batch, make_mesh
from jaxcore.evaluation import Claims
from jaxcore.training import Results, describe_device, package_versions, params_digest

PRESET_NAMES = ("smoke", "cpu", "gpu", "pod")
Devices = Sequence[jax.Device]


@dataclasses.dataclass(frozen=True)
class Paper:
    """What ``list`` shows of a paper."""

    title: str
    year: int
    claim: str
    """What the paper claims, in one sentence."""
    needs: str
    """What a run needs beyond the embedded data (files, accelerators)."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function with abstract arguments: enough to compile it anywhere.

    Attributes:
        function: what `jax.jit` returned.
        arguments: trees of `jax.ShapeDtypeStruct` with shardings.
        rows: examples of one call over all devices, for per-chip figures.
    """

    function: Any
    arguments: tuple[Any, ...]
    rows: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What `build` returns: the mesh and the steps by name: ``train`` where the configuration trains a model."""

    mesh: Mesh
    steps: Mapping[str, Step]


class Experiment(Protocol):
    """A module of `experiments`, as far as the command line needs to know it."""

    PAPER: Paper
    Config: type
    PRESETS: Mapping[str, Any]
    CLAIMS: Claims
    build: Callable[..., Program]
    run: Callable[..., Results]


def checked_mesh(config: MeshConfig, devices: Devices | None, *batch_sizes: int) -> Mesh:
    """The mesh of a configuration; ValueError for a batch that does not divide over it and its processes."""
    mesh = make_mesh(config, devices)
    processes = len({device.process_index for device in mesh.devices.flat})
    for rows in batch_sizes:
        check_batch(mesh, rows, processes)
    return mesh


def abstract_rows(
    mesh: Mesh, count: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, Any] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `count` rows without data, split over the mesh, for a `Step`.

    Args:
        shapes: of one row, by name.
        dtypes: of arrays that are not int32.
    """
    dtypes, split = dtypes or {}, batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((count, *shape), dtypes.get(name, jnp.int32), sharding=split)
        for name, shape in shapes.items()
    }


def results_of(
    experiment: str,
    config: Any,
    *,
    started: float,
    steps: int,
    metrics: Mapping[str, float],
    params: Any,
    samples: Mapping[str, Sequence[float]] | None = None,
) -> Results:
    """What a finished run reports of itself.

    Args:
        config: a `Config`, with its preset and seed.
        started: `time.perf_counter()` at the start of `run`.
        steps: updates made.
        params: what `params_digest` is of.
    """
    return Results(
        experiment=experiment,
        preset=config.preset,
        seed=config.seed,
        steps=steps,
        seconds=round(time.perf_counter() - started, 2),
        device=describe_device(),
        versions=package_versions(),
        metrics=metrics,
        samples=samples or {},
        params_digest=params_digest(params),
    )


def single_run_note(experiment: str) -> str:
    """What stands over the verdicts of one run."""
    return f"What this run alone says, one seed. The command 'verify {experiment}' judges over seeds."


def names() -> list[str]:
    """Names of the papers: every module of the package that is not part of the command line."""
    support = {"protocol", "__main__", "arguments", "verification", "compilation"}
    found = pkgutil.iter_modules([str(pathlib.Path(p)) for p in experiments.__path__])
    return sorted(module.name for module in found if module.name not in support)


def load(name: str) -> Experiment:
    """The module of a paper; ValueError with the known names for any other name."""
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}: expected one of {', '.join(names())}")
    return importlib.import_module(f"experiments.{name}")  # type: ignore[return-value]


def violations(module: Any) -> list[str]:
    """What a module lacks of the protocol, a sentence each; empty when it conforms."""
    missing = [name for name in Experiment.__annotations__ if not hasattr(module, name)]
    if missing:
        return [f"{name} is missing" for name in missing]
    problems = []
    parameters = getattr(module.Config, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        problems.append("Config is not a frozen dataclass")
        return problems
    fields = {field.name for field in dataclasses.fields(module.Config)}
    problems += [f"Config has no field {name!r}" for name in ("preset", "seed", "mesh") if name not in fields]
    if tuple(module.PRESETS) != PRESET_NAMES:
        problems.append(f"PRESETS has {list(module.PRESETS)}, not {list(PRESET_NAMES)}")
    for name, preset in module.PRESETS.items():
        if not isinstance(preset, module.Config) or preset.preset != name:
            problems.append(f"PRESETS[{name!r}] is not a Config with preset={name!r}")
    if not isinstance(module.CLAIMS, Claims) or not module.CLAIMS.claims:
        problems.append("CLAIMS states no claim")
    if not (module.__doc__ or "").strip():
        problems.append("the module has no docstring")
    return problems
