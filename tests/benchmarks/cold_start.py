"""How long a newcomer waits: `run star --preset smoke` in a fresh process, without and with the compilation cache.

    python tests/benchmarks/cold_start.py [--rounds 3]

Prints medians of wall time and their ratio. Goals on two cores: under 25 s with an empty cache, under 12 s with the
cache that the first run left.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).parents[2]


def seconds(run_dir: pathlib.Path, cache: pathlib.Path) -> float:
    """Wall time of one smoke run in a process of its own."""
    command = [sys.executable, "-m", "experiments", "run", "star", "--preset", "smoke", "--run-dir", str(run_dir)]
    started = time.perf_counter()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXCORE_CACHE_DIR": str(cache)}
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    cold, warm = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            cold.append(seconds(path / "cold", path / "cache"))
            warm.append(seconds(path / "warm", path / "cache"))
        print(f"round {number}: empty cache {cold[-1]:.1f} s, filled cache {warm[-1]:.1f} s", flush=True)
    first, second = statistics.median(cold), statistics.median(warm)
    print(f"median: empty cache {first:.1f} s (goal 25), filled {second:.1f} s (goal 12), ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
