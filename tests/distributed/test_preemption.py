import contextlib
import signal
from typing import cast

import pytest

from jaxcore.distributed import Ticker, Watchdog, current_ticker, tick
from jaxcore.distributed.preemption import install_ticker

LOOP = """
    import signal, sys, time
    from jaxcore.distributed import ExitCode, StartConfig, start, tick
    info = start(StartConfig(compilation_cache=False))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for step in range(600):
        if tick(step):
            print("STOPPED", step, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
            assert tick(step + 1)  # stays true
            sys.exit(ExitCode.PREEMPTED)
        print("STEP", step)
        time.sleep(0.05)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_to_one_stops_all_at_the_same_step(launch, count):
    job = launch(LOOP, count=count, explicit=count > 1)
    for rank in range(count):
        job.wait_for_text(rank, "STEP 3")
    job.processes[-1].send_signal(signal.SIGTERM)
    assert job.wait(timeout=40) == [75] * count, job.errors(0)
    stopped = {line for rank in range(count) for line in job.output(rank).splitlines() if "STOPPED" in line}
    assert len(stopped) == 1 and stopped.pop().endswith("True")


def test_module_tick_uses_the_installed_ticker():
    previous = current_ticker()
    try:
        ticker = install_ticker(Ticker())
        assert tick(5) is False and tick() is False and ticker.counter == 2 and current_ticker() is ticker
    finally:
        install_ticker(previous)


def test_tick_feeds_the_watchdog_and_phases_pass_through():
    class Recorder:
        def __init__(self):
            self.beats, self.phases = [], []

        def beat(self, step):
            self.beats.append(step)

        def phase(self, name, limit_seconds):
            self.phases.append((name, limit_seconds))
            return contextlib.nullcontext()

    recorder = Recorder()
    ticker = Ticker(cast(Watchdog, recorder))
    ticker.tick(40)
    with ticker.phase("evaluate", 9.0):
        ticker.tick()
    assert recorder.beats == [40, 2] and recorder.phases == [("evaluate", 9.0)]
