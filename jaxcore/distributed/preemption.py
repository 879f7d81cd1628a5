"""Preemption notices: SIGTERM on any process makes ``tick()`` True on all of them, at the same tick.

The notice travels through the coordination service, whose own (native) SIGTERM handler is installed by
``jax.distributed.initialize``. Install no Python SIGTERM handler: one installed before initialisation is
replaced, one installed after it silently disables the notice. Since SIGTERM alone no longer ends the process,
whoever stops a run must escalate to SIGKILL after the grace period. During compilation nothing can be saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxcore.distributed import coordination
from jaxcore.distributed.watchdog import Watchdog

__all__ = ["Ticker", "current_ticker", "install_ticker", "stop_watching", "tick"]


class Ticker:
    """The heartbeat of a process: every loop (train, evaluation, attribution, rollouts) calls `tick` once per
    turn.

    All processes must tick equally often. Without a coordination client the sync point is never reached and
    only the watchdog is fed.
    """

    def __init__(self, watchdog: Watchdog | None = None):
        self.counter = 0
        self.preempted = False
        self.watchdog = watchdog

    def tick(self, step: int | None = None) -> bool:
        """One turn of a loop.

        Args:
          step: the loop's own step, recorded for the watchdog's last words; the counter that processes agree
            on is the ticker's, which rises across loops.

        Returns:
          True from the tick on at which every process agreed to stop: leave the loop, save, wait until the
          save is committed, and exit with ``ExitCode.PREEMPTED``.
        """
        self.counter += 1
        if self.watchdog is not None:
            self.watchdog.beat(self.counter if step is None else step)
        if not self.preempted:
            self.preempted = coordination.reached_sync_point(self.counter)
        return self.preempted

    @contextmanager
    def phase(self, name: str, limit_seconds: float | None = None) -> Iterator[None]:
        """A stretch with its own time limit (compile, restore, evaluate, save); see `Watchdog.phase`."""
        if self.watchdog is None:
            yield
            return
        with self.watchdog.phase(name, limit_seconds):
            yield


_current: list[Ticker] = []


def install_ticker(ticker: Ticker) -> Ticker:
    """Makes `ticker` the one that the module-level `tick` uses; the one before it is no longer watched."""
    if _current and _current[0] is not ticker:
        stop_watching()
    _current[:] = [ticker]
    return ticker


def stop_watching() -> None:
    """Ends the watchdog that `start` began: whoever goes on after a run (a notebook, a test) may stand still."""
    if _current and _current[0].watchdog is not None:
        _current[0].watchdog.stop()


def current_ticker() -> Ticker:
    """The process's ticker: the one `start` installed, or one without a watchdog."""
    return _current[0] if _current else install_ticker(Ticker())


def tick(step: int | None = None) -> bool:
    """`Ticker.tick` of the process's ticker, for loops that were not handed one."""
    return current_ticker().tick(step)
