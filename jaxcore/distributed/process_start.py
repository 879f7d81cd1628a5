"""How a process joins its job: one call, before anything touches a device.

The order matters: environment and compiler options, compilation cache, initialise, fingerprint; then the
caller makes its mesh while the watchdog already runs. jax.distributed is always initialised, even for one
process on a free loopback port, because without its client a preemption notice is never seen.
"""

import dataclasses
import importlib.util
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxcore.distributed import coordination
from jaxcore.distributed.compilation_cache import enable_compilation_cache
from jaxcore.distributed.compiler_options import (
    add_multislice_init_args,
    check_compiler_options,
    check_flag_environment,
)
from jaxcore.distributed.fingerprint import compare_fingerprints, hardware_fingerprint, software_fingerprint
from jaxcore.distributed.preemption import Ticker, install_ticker
from jaxcore.distributed.watchdog import Watchdog, WatchdogConfig

__all__ = ["ProcessInfo", "StartConfig", "start"]

_SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_LOOPBACK = "127.0.0.1"
_NO_GRPC_PROXY = "no_grpc_proxy"
_ATTEMPTS = 5

_held_ports: list[socket.socket] = []


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """How this process finds the others. Everything may be left out on a laptop, a TPU pod and under SLURM."""

    coordinator: str | None = None
    """host:port of process 0 (or JAXCORE_COORDINATOR)."""
    num_processes: int | None = None
    """Processes of the job (or JAXCORE_NUM_PROCESSES)."""
    process_id: int | None = None
    """Rank of this process (or JAXCORE_PROCESS_ID)."""
    initialization_timeout: int | None = None
    """Seconds to wait for the others; default 1800, several slices 3600."""
    heartbeat_timeout: int | None = None
    """Seconds without a sign of life after which a process counts as dead; default 100, above 64 processes 300."""
    shutdown_timeout: int = 60
    """Seconds a finished process waits for the others."""
    compilation_cache: bool = True
    """Keep compiled programs on disk."""
    cache_dir: str | None = None
    """Where (or JAXCORE_CACHE_DIR; default: the user's cache folder)."""
    cache_min_compile_seconds: float = 0.1
    """Programs that compile faster are not kept."""
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    """When standing still counts as stuck."""


@dataclasses.dataclass(frozen=True)
class _Explicit:
    """A job described by hand: all three values given."""

    coordinator: str
    num_processes: int
    process_id: int


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """What `start` found out.

    Attributes:
      process_id: rank of this process.
      num_processes: processes of the job.
      method: "explicit", "tpu", "slurm", "loopback", "existing job" (initialised before) or "existing
        backend" (a device was touched before, so there is no client, and no preemption notice either).
      cache_dir: the compilation cache in use, or None.
      ticker: its `tick` belongs into every loop.
      seconds: how long the start took.
    """

    process_id: int
    num_processes: int
    method: str
    cache_dir: str | None
    ticker: Ticker
    seconds: float

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for the job (prints, writes summaries)."""
        return self.process_id == 0


def start(
    config: StartConfig | None = None,
    *,
    config_hash: str = "",
    compiler_options: Mapping[str, object] | None = None,
    report_dir: str | os.PathLike[str] | None = None,
) -> ProcessInfo:
    """Joins the job and starts the watchdog, which ends the process when no `tick` comes: a process that goes on
    after its loops calls `stop_watching` (the command lines do).

    If a device has been touched already (a notebook, a test), the process goes on alone and without a
    coordination
    client: everything works, `tick` feeds the watchdog, but a SIGTERM ends the process at once.

    Args:
      config: see `StartConfig`.
      config_hash: of the run's configuration; must agree between processes.
      compiler_options: the run's compiler options; must agree too.
      report_dir: where the watchdog leaves its last words.

    Raises:
      ValueError: settings that contradict each other, or an environment that would hang or abort later.
      FingerprintMismatch: processes differ; end with its `exit_code`.
    """
    began = time.monotonic()
    config = config or StartConfig()
    options = dict(compiler_options or {})
    check_compiler_options(options)
    check_flag_environment()
    explicit = _explicit_settings(config)
    cache_dir = None
    if config.compilation_cache:
        cache_dir = enable_compilation_cache(config.cache_dir, min_compile_seconds=config.cache_min_compile_seconds)
    method = _join(config, explicit)
    if coordination.process_count() > 1:
        compare_fingerprints("software", software_fingerprint(config_hash=config_hash, compiler_options=options))
        compare_fingerprints("hardware", hardware_fingerprint())
    watchdog = Watchdog(config.watchdog, rank=coordination.process_id(), report_dir=report_dir).start()
    return ProcessInfo(
        process_id=coordination.process_id(),
        num_processes=coordination.process_count(),
        method=method,
        cache_dir=str(cache_dir) if cache_dir is not None else None,
        ticker=install_ticker(Ticker(watchdog)),
        seconds=time.monotonic() - began,
    )


def _join(config: StartConfig, explicit: _Explicit | None) -> str:
    """Initialises jax.distributed in the way that fits the place; returns the way."""
    if coordination.has_client():
        return "existing job"
    if coordination.backend_exists():
        if explicit is not None and explicit.num_processes > 1:
            raise ValueError(
                f"process {explicit.process_id} of {explicit.num_processes} touched a device before joining "
                "its job; call jaxcore.distributed.start() first"
            )
        return "existing backend"
    if explicit is not None:
        _join_explicit(config, explicit)
        return "explicit"
    if coordination.on_cloud_tpu() and _platform_allows("tpu"):
        _join_tpu(config)
        return "tpu"
    if all(name in os.environ for name in _SLURM_VARIABLES) and int(os.environ["SLURM_NTASKS"]) > 1:
        _refuse_proxies(None)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _initialize(config, int(os.environ["SLURM_NTASKS"]), cluster_detection_method="slurm")
        return "slurm"
    _join_alone(config)
    return "loopback"


def _initialize(config: StartConfig, size: int, **settings: Any) -> None:
    several_slices = int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1
    jax.distributed.initialize(
        initialization_timeout=config.initialization_timeout or (3600 if several_slices else 1800),
        heartbeat_timeout_seconds=config.heartbeat_timeout or (300 if size > 64 else 100),
        shutdown_timeout_seconds=config.shutdown_timeout,
        **settings,
    )


def _join_explicit(config: StartConfig, explicit: _Explicit) -> None:
    """Every value is given, and detection is off: under SLURM it would hide all GPUs but one."""
    if explicit.num_processes > 1:
        _refuse_proxies(explicit.coordinator)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _initialize(
        config,
        explicit.num_processes,
        coordinator_address=explicit.coordinator,
        num_processes=explicit.num_processes,
        process_id=explicit.process_id,
        cluster_detection_method="deactivate",
    )


def _explicit_settings(config: StartConfig) -> _Explicit | None:
    """Coordinator, count and rank from arguments or JAXCORE_* variables: all three or none."""
    address = config.coordinator or os.environ.get("JAXCORE_COORDINATOR")
    count = config.num_processes if config.num_processes is not None else _number("NUM_PROCESSES")
    rank = config.process_id if config.process_id is not None else _number("PROCESS_ID")
    if address is None and count is None and rank is None:
        return None
    if address is None or count is None or rank is None:
        given = {"coordinator": address, "num_processes": count, "process_id": rank}
        missing = [name for name, value in given.items() if value is None]
        variables = ", ".join(f"JAXCORE_{name.upper()}" for name in missing)
        raise ValueError(f"{' and '.join(missing)} missing for an explicit start; give all three or none ({variables})")
    if not re.fullmatch(r"\S+:\d+", address):
        raise ValueError(f"coordinator {address!r} is not host:port, for example 10.0.0.1:8476")
    if not 0 <= rank < count:
        raise ValueError(
            f"process_id {rank} is not in 0 .. num_processes - 1 = {count - 1}; number the processes from 0"
        )
    return _Explicit(address, count, rank)


def _number(name: str) -> int | None:
    text = os.environ.get(f"JAXCORE_{name}")
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"JAXCORE_{name}={text!r} is not a number; set it to an integer or unset it")
    return int(text)


def _platform_allows(platform: str) -> bool:
    chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
    return not chosen or platform in chosen.split(",")


def _refuse_proxies(coordinator: str | None) -> None:
    """Proxy variables can hang the connection to the coordinator, unless ``no_proxy`` names its host."""
    proxies = [name for name in os.environ if re.fullmatch(r"(?!no_)\w+_proxy", name.lower()) and os.environ[name]]
    exempt = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY", _NO_GRPC_PROXY))
    host = (coordinator or "").rsplit(":", 1)[0]
    if proxies and not (host and host in exempt.replace(" ", "").split(",")):
        raise ValueError(
            f"{', '.join(sorted(proxies))} set in a job of several processes: the connection to the "
            "coordinator would go "
            f"through the proxy and hang; unset it, or name {host or 'the coordinator'} in no_proxy"
        )


def _join_tpu(config: StartConfig) -> None:
    """Cloud TPU machine: address, count and rank come from its metadata."""
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        raise ValueError(
            "TPU_SKIP_MDS_QUERY is set on a real TPU machine (left over from compiling ahead of time?): the "
            "other hosts would not be found; unset it"
        )
    # jax moved its port to 8482; the firewall rule that Google creates opens 8476.
    os.environ.setdefault("JAX_COORDINATOR_PORT", "8476")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))
    if slices > 1:
        add_multislice_init_args()
    if hosts * slices > 1:
        _refuse_proxies(None)
    try:
        _initialize(config, hosts * slices)
    except ValueError:
        # A TPU machine without Google's metadata (a hosted notebook): one host, so a job of one.
        if hosts * slices > 1:
            raise
        _join_alone(config)


def _join_alone(config: StartConfig) -> None:
    """A job of one process, with the coordinator on a free port of the loopback interface."""
    _avoid_absent_tpu()
    _bypass_proxy_for_loopback()
    for attempt in range(_ATTEMPTS):
        address = f"{_LOOPBACK}:{_reserve_port()}"
        try:
            _initialize(
                dataclasses.replace(config, initialization_timeout=config.initialization_timeout or 60),
                1,
                coordinator_address=address,
                coordinator_bind_address=address,
                num_processes=1,
                process_id=0,
                cluster_detection_method="deactivate",
            )
            return
        except jax.errors.JaxRuntimeError:
            jax.distributed.shutdown()
            if attempt == _ATTEMPTS - 1:
                raise


def _reserve_port() -> int:
    """A free port of the loopback interface, kept out of other processes' reach.

    The coordinator's server shares its port with sockets that allow it (SO_REUSEPORT), so two runs that draw
    the same number would silently share it. The socket that drew the number stays open, bound but not
    listening: nobody else draws it, and no connection goes to it.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if hasattr(socket, "SO_REUSEPORT"):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((_LOOPBACK, 0))
    port = holder.getsockname()[1]
    if hasattr(socket, "SO_REUSEPORT"):
        _held_ports.append(holder)
    else:
        holder.close()
    return port


def _bypass_proxy_for_loopback() -> None:
    """A connection of this process with itself must not go through a proxy; nobody needs a warning about it."""
    jax.config.update("jax_check_proxy_envs", False)
    exempt = os.environ.get(_NO_GRPC_PROXY) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if _LOOPBACK not in exempt.split(","):
        os.environ[_NO_GRPC_PROXY] = ",".join(filter(None, [exempt, _LOOPBACK, "localhost"]))


def _avoid_absent_tpu() -> None:
    """libtpu installed for ahead-of-time compilation, but no TPU: keep jax from trying it, loudly and in vain."""
    chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
    if chosen or coordination.on_cloud_tpu() or importlib.util.find_spec("libtpu") is None:
        return
    gpu_plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")
    if not any(importlib.util.find_spec(plugin) for plugin in gpu_plugins):
        jax.config.update("jax_platforms", "cpu")
