"""What a run reports: measured numbers by name, and what is needed to say where they came from."""

import dataclasses
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence

import jax

from jaxcore.training.run_directory import as_plain, write_json

VERSIONED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "jaxcore")


@dataclasses.dataclass(frozen=True)
class Results:
    """A finished run.

    Attributes:
        experiment, preset, seed: what was run.
        steps: updates made.
        seconds: wall time from the start of `run` to the end of evaluation, this process.
        device: platform, kind and number of devices.
        versions: of Python and the packages that decide the numbers.
        metrics: every measured number by name; names group with ``/``.
        samples: repeated measurements (draws) by name, where a claim pairs them.
        params_digest: SHA-256 over the final parameters, see `params_digest`.
    """

    experiment: str
    preset: str
    seed: int
    steps: int
    seconds: float
    device: str
    versions: Mapping[str, str]
    metrics: Mapping[str, float]
    params_digest: str
    samples: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


def write_results(path: pathlib.Path, results: Results) -> None:
    """``results.json``, atomically; a metric that is not a number is an error, not a NaN in a file."""
    bad = [name for name, value in results.metrics.items() if value != value]
    if bad:
        raise ValueError(f"these metrics are not numbers: {', '.join(sorted(bad))}")
    write_json(path, as_plain(results))


def describe_device() -> str:
    """For example ``cpu x 1`` or ``TPU v5 lite x 256``."""
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}"


def package_versions() -> dict[str, str]:
    """Python's version and those of the packages that decide a run's numbers, where installed."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
