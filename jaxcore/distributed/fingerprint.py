"""Processes of one job must run the same software, code, configuration and hardware.

Different wheels or a different configuration on one host show up as a hang in the first collective, hours
into a debugging session. Every process publishes what it is; process 0 compares; a difference ends all of
them with code 78 and a line that names hosts and fields.
"""

import collections
import hashlib
import importlib.metadata
import json
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcore.distributed import coordination
from jaxcore.distributed.exit_codes import ExitCode

__all__ = [
    "FingerprintMismatch",
    "code_version",
    "compare_fingerprints",
    "hardware_fingerprint",
    "hash_config",
    "software_fingerprint",
]


class FingerprintMismatch(RuntimeError):
    """Processes of the job differ; the process ends with `exit_code`."""

    exit_code = ExitCode.BAD_CONFIG


def code_version() -> str:
    """SHA-256 (12 digits) over the package's Python sources, in path order."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def hash_config(config: Any) -> str:
    """SHA-256 (12 digits) of a plain configuration (dicts, lists, numbers, strings), whatever its key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def software_fingerprint(
    *, config_hash: str = "", compiler_options: Mapping[str, object] | None = None
) -> dict[str, str]:
    """What must agree before a device is touched: versions, code, configuration, compiler options."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "libtpu": _version("libtpu"),
        "code": code_version(),
        "config": config_hash,
        "compiler options": json.dumps(dict(compiler_options or {}), sort_keys=True, default=str),
    }


def hardware_fingerprint() -> dict[str, str]:
    """What must agree before the first collective: chip kind and devices per process. Touches the devices."""
    devices = jax.local_devices()
    return {"chip": devices[0].device_kind, "local devices": str(len(devices))}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def compare_fingerprints(stage: str, fields: Mapping[str, str], *, timeout_seconds: float = 300.0) -> None:
    """Publishes `fields`, and returns on every process only if all published the same.

    Args:
      stage: name of the comparison, alike on all processes and used once.
      fields: what to compare.
      timeout_seconds: bound on the wait for the slowest process.

    Raises:
      FingerprintMismatch: on every process, with the hosts and fields that differ from the majority.
      BarrierTimeout: a process did not publish.
    """
    if coordination.process_count() == 1:
        return
    prefix = f"jaxcore/fingerprint/{stage}/"
    rank = coordination.process_id()
    coordination.publish(f"{prefix}{rank}", json.dumps({"host": socket.gethostname(), "fields": dict(fields)}))
    coordination.barrier(f"fingerprint {stage} published", timeout_seconds)
    verdict_key = f"jaxcore/fingerprint-verdict/{stage}"
    if rank == 0:
        published = {
            int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in coordination.read_all(prefix).items()
        }
        coordination.publish(verdict_key, json.dumps(differences(published)))
    problems = json.loads(coordination.wait_for(verdict_key, timeout_seconds))
    # Nobody leaves (and takes the coordinator with it) before everybody has read the verdict.
    coordination.barrier(f"fingerprint {stage} read", timeout_seconds)
    if problems:
        raise FingerprintMismatch(
            f"processes of this job differ ({stage}): {'; '.join(problems)}. Install the same lock file, "
            "code and "
            "configuration on every host and start again"
        )


def differences(published: Mapping[int, Mapping]) -> list[str]:
    """One line per process and field that differs from the majority (process 0 breaks a tie)."""
    problems = []
    names = sorted({name for entry in published.values() for name in entry["fields"]})
    for name in names:
        values = {rank: entry["fields"].get(name, "absent") for rank, entry in sorted(published.items())}
        usual = collections.Counter(values.values()).most_common(1)[0][0]  # ties: first seen, which is process 0's
        problems += [
            f"process {rank} on {published[rank]['host']}: {name} is {value!r}, elsewhere {usual!r}"
            for rank, value in values.items()
            if value != usual
        ]
    return problems
