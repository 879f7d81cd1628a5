"""The processes of one job talk to each other here: key-value store, barriers, preemption notices.

The coordination client is private to jax, so this is the only file of the project that touches it (and the
other private facts about process start). Everything is usable before any device is touched.
"""

import time

import jax
from jax._src import cloud_tpu_init, distributed, xla_bridge

__all__ = [
    "BarrierTimeout",
    "backend_exists",
    "barrier",
    "has_client",
    "on_cloud_tpu",
    "process_count",
    "process_id",
    "publish",
    "reached_sync_point",
    "read_all",
    "tpu_backend_exists",
    "wait_for",
]


class BarrierTimeout(TimeoutError):
    """A barrier was not reached in time; `missing` names the process ids that never came (empty if unknown)."""

    def __init__(self, name: str, timeout_seconds: float, missing: list[int]):
        who = f"process(es) {', '.join(map(str, missing))} did not arrive" if missing else "not every process arrived"
        super().__init__(f"barrier {name!r}: {who} within {timeout_seconds:g} s; look at the logs of those hosts first")
        self.missing = missing


def has_client() -> bool:
    """Whether this process is part of an initialised job (a job of one counts)."""
    return distributed.global_state.client is not None


def backend_exists() -> bool:
    """Whether some device has been touched already, after which initialisation is impossible."""
    return xla_bridge.backends_are_initialized()


def tpu_backend_exists() -> bool:
    """Whether this process already runs on a TPU."""
    return backend_exists() and "tpu" in xla_bridge.backends()


def on_cloud_tpu() -> bool:
    """Whether TPU chips are attached to this machine."""
    return cloud_tpu_init.running_in_cloud_tpu_vm


def process_id() -> int:
    """This process's rank, without touching a device."""
    return distributed.global_state.process_id if has_client() else 0


def process_count() -> int:
    """Processes of the job, without touching a device."""
    return distributed.global_state.num_processes if has_client() else 1


def _client() -> distributed._jax.DistributedRuntimeClient:
    if not has_client():
        raise RuntimeError("no coordination client; call jaxcore.distributed.start() before touching a device")
    return distributed.global_state.client


def publish(key: str, value: str) -> None:
    """Writes a key that every process can read; a key is written once.

    Raises:
      RuntimeError: the key exists, or there is no client.
    """
    _client().key_value_set(key, value)


def wait_for(key: str, timeout_seconds: float) -> str:
    """The value of a key, waiting until some process has written it.

    Raises:
      TimeoutError: nobody wrote it in time.
    """
    try:
        return _client().blocking_key_value_get(key, int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            raise TimeoutError(f"no process wrote {key!r} within {timeout_seconds:g} s") from error
        raise


def read_all(prefix: str) -> dict[str, str]:
    """Every key under `prefix` (which ends with a slash) that has been written so far."""
    return dict(_client().key_value_dir_get(prefix))


def barrier(name: str, timeout_seconds: float) -> None:
    """Waits for all processes, and on failure says which were missing.

    Args:
      name: the same on every process and used once; put the step into it, never a counter of this process.
      timeout_seconds: bound on the wait.

    Raises:
      BarrierTimeout: not everybody came.
    """
    client = _client()
    arrivals = f"jaxcore/barrier/{name}/"
    client.key_value_set(f"{arrivals}{process_id()}", f"{time.time():.3f}")
    try:
        client.wait_at_barrier(name, int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        came = {int(key.rsplit("/", 1)[1]) for key in read_all(arrivals)}
        raise BarrierTimeout(name, timeout_seconds, sorted(set(range(process_count())) - came)) from error


def reached_sync_point(counter: int) -> bool:
    """Whether a preemption notice has been agreed on for exactly this value of the counter.

    False without a client. The counter rises by one per call, alike on every process.
    """
    manager = distributed.global_state.preemption_sync_manager
    return manager is not None and bool(manager.reached_sync_point(counter))
