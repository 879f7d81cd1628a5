"""Progress watchdog: a process that stands still says where, and ends with code 76.

A rank that is alive but stuck blocks all others for ever without an error: heartbeats go on. So each process
watches its own ticks. Ranks blocked by the stuck one end too; the host with the lowest last tick is the one
to blame.
"""

import collections
import dataclasses
import faulthandler
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxcore.distributed.exit_codes import ExitCode

__all__ = ["PHASE_LIMITS", "Watchdog", "WatchdogConfig"]

PHASE_LIMITS = {"compile": 3600.0, "restore": 1800.0, "evaluate": 3600.0, "save": 1800.0}
"""Seconds without progress that each named phase may take, unless the caller says otherwise."""

_STOPPED_SECONDS = 5.0  # a poll that comes this late means that the process itself did not run


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When standing still counts as stuck."""

    enabled: bool = True
    """Whether to watch at all."""
    first_step_timeout: float = 3600.0
    """Seconds before the first tick (start-up, data, compilation)."""
    minimum_timeout: float = 600.0
    """Seconds between ticks that are always allowed."""
    median_factor: float = 20.0
    """Also allowed: this many times the median step."""


class Watchdog:
    """Thread that ends the process when no `beat` comes within the limit.

    Limit: ``first_step_timeout`` before the first beat; inside a `phase` its own; else
    ``max(minimum_timeout, median_factor * median step)``. Time for which the whole process was stopped (a
    shell's Ctrl-Z, a sleeping laptop) is not counted.
    """

    def __init__(self, config: WatchdogConfig, *, rank: int = 0, report_dir: str | os.PathLike[str] | None = None):
        self._config = config
        self._rank = rank
        self._report_dir = Path(report_dir) if report_dir is not None else None
        self._lock = threading.Lock()
        self._steps: collections.deque[float] = collections.deque(maxlen=100)
        self._progress = time.monotonic()
        self._beaten = False
        self._clean_interval = False
        self._last_step: int | None = None
        self._phases: list[tuple[str, float]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> "Watchdog":
        """Starts the thread (a daemon); does nothing if disabled or running."""
        if self._config.enabled and self._thread is None:
            self._progress = time.monotonic()
            self._thread = threading.Thread(target=self._watch, name="jaxcore-watchdog", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; the process is no longer watched."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stop.clear()

    def beat(self, step: int | None = None) -> None:
        """Progress was made."""
        now = time.monotonic()
        with self._lock:
            # An interval that crosses a phase (an evaluation, a save) says nothing about the length of a
            # step.
            if self._clean_interval and not self._phases:
                self._steps.append(now - self._progress)
            self._progress, self._last_step = now, step
            self._beaten = self._clean_interval = True

    @contextmanager
    def phase(self, name: str, limit_seconds: float | None = None) -> Iterator[None]:
        """Inside the block, `limit_seconds` without progress are allowed (default by name:
        `PHASE_LIMITS`)."""
        limit = PHASE_LIMITS.get(name, self._config.first_step_timeout) if limit_seconds is None else limit_seconds
        with self._lock:
            self._phases.append((name, limit))
            self._progress, self._clean_interval = time.monotonic(), False
        try:
            yield
        finally:
            with self._lock:
                self._phases.pop()
                self._progress, self._clean_interval = time.monotonic(), False

    def limit(self) -> float:
        """Seconds without progress allowed at this moment."""
        with self._lock:
            return self._limit()

    def _limit(self) -> float:
        if self._phases:
            return self._phases[-1][1]
        if not self._beaten:
            return self._config.first_step_timeout
        median = statistics.median(self._steps) if self._steps else 0.0
        return max(self._config.minimum_timeout, self._config.median_factor * median)

    def _watch(self) -> None:
        interval = min(max(self._config.minimum_timeout / 20.0, 0.02), 1.0)
        last_poll = time.monotonic()
        while True:
            if self._stop.wait(interval):
                return
            now = time.monotonic()
            stopped = now - last_poll - interval
            last_poll = now
            with self._lock:
                if stopped > _STOPPED_SECONDS:
                    self._progress += stopped
                waited, limit = now - self._progress, self._limit()
                phase = self._phases[-1][0] if self._phases else ("step" if self._beaten else "before the first step")
            if waited > limit:
                self._give_up(waited, limit, phase)

    def _give_up(self, waited: float, limit: float, phase: str) -> None:
        words = {
            "rank": self._rank,
            "last_tick": self._last_step,
            "phase": phase,
            "waited_seconds": round(waited, 1),
            "limit_seconds": round(limit, 1),
        }
        print(
            f"watchdog: process {self._rank} made no progress for {waited:.1f} s (limit {limit:.1f} s) in "
            "phase "
            f"'{phase}', last tick {self._last_step}; Python stacks follow, then exit {ExitCode.WATCHDOG:d}",
            file=sys.stderr,
            flush=True,
        )
        try:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            if self._report_dir is not None:
                self._report_dir.mkdir(parents=True, exist_ok=True)
                (self._report_dir / f"watchdog_{self._rank}.json").write_text(json.dumps(words) + "\n")
                with open(self._report_dir / f"watchdog_{self._rank}.stacks", "w") as stacks:
                    faulthandler.dump_traceback(file=stacks, all_threads=True)
        finally:
            os._exit(ExitCode.WATCHDOG)
