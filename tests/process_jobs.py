"""Running small jobs of real processes, each a fresh interpreter."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Job:
    """Processes of one job; output goes to files, so that no pipe can fill up."""

    processes: list[subprocess.Popen]
    folder: pathlib.Path

    def output(self, rank: int) -> str:
        return (self.folder / f"{rank}.out").read_text()

    def errors(self, rank: int) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def wait_for_text(self, rank: int, text: str, timeout: float = 40.0) -> None:
        """Waits until the process has printed `text`."""
        end = time.monotonic() + timeout
        while text not in self.output(rank):
            assert self.processes[rank].poll() is None, f"rank {rank} ended early: {self.errors(rank)[-2000:]}"
            assert time.monotonic() < end, f"rank {rank} never printed {text!r}: {self.errors(rank)[-2000:]}"
            time.sleep(0.02)

    def wait(self, timeout: float = 60.0) -> list[int]:
        """Exit codes, in order of rank."""
        end = time.monotonic() + timeout
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without what a test machine may carry into a job: simulated devices, proxies,
    ranks."""
    dropped = ("XLA_FLAGS", "PYTEST_CURRENT_TEST")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped
        and not name.lower().endswith("_proxy")
        and not name.startswith(("JAXCORE_", "SLURM_", "TPU_", "MEGASCALE_", "JAX_"))
    }
    quick = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return {**kept, **quick, **extra}


@pytest.fixture
def launch(tmp_path: pathlib.Path) -> Iterator[Callable[..., Job]]:
    """``launch(script, count=2, environments={rank: {...}}, explicit=True)`` starts a job; killed at the
    end."""
    started: list[subprocess.Popen] = []

    def run(
        script: str,
        *,
        count: int = 1,
        explicit: bool = True,
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> Job:
        folder = tmp_path / f"job{len(started)}"
        folder.mkdir()
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        processes = []
        for rank in range(count):
            settings = {"JAXCORE_CACHE_DIR": str(folder / "cache")}
            if explicit:
                settings |= {
                    "JAXCORE_COORDINATOR": f"127.0.0.1:{port}",
                    "JAXCORE_NUM_PROCESSES": str(count),
                    "JAXCORE_PROCESS_ID": str(rank),
                }
            settings |= dict((environments or {}).get(rank, {}))
            with open(folder / f"{rank}.out", "w") as out, open(folder / f"{rank}.err", "w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-c", textwrap.dedent(script)],
                    env=clean_environment(**settings),
                    stdout=out,
                    stderr=err,
                    cwd=folder,
                )
            processes.append(process)
            started.append(process)
        return Job(processes, folder)

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
