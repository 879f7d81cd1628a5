import json
import threading
import time

from jaxcore.distributed import Watchdog, WatchdogConfig

STUCK = """
    import os, sys, time
    from jaxcore.distributed import StartConfig, WatchdogConfig, start, tick
    limits = WatchdogConfig(first_step_timeout=20.0, minimum_timeout=1.0, median_factor=2.0)
    info = start(StartConfig(compilation_cache=False, watchdog=limits), report_dir="report")

    def a_function_that_hangs():
        time.sleep(60)

    for step in range(5):
        tick(step)
        time.sleep(0.02)
    with info.ticker.phase("evaluate", 30.0):
        time.sleep(1.5)   # longer than a step may take, and allowed here
    tick(5)
    print("ALIVE")
    a_function_that_hangs()
"""


def test_standing_still_ends_with_76_and_says_where(launch):
    job = launch(STUCK, explicit=False)
    job.wait_for_text(0, "ALIVE")
    began = time.monotonic()
    assert job.wait(timeout=20) == [76]
    assert 0.5 < time.monotonic() - began < 8
    errors = job.errors(0)
    assert "no progress" in errors and "last tick 5" in errors and "a_function_that_hangs" in errors
    words = json.loads((job.folder / "report" / "watchdog_0.json").read_text())
    assert words["rank"] == 0 and words["last_tick"] == 5 and words["phase"] == "step"
    assert "a_function_that_hangs" in (job.folder / "report" / "watchdog_0.stacks").read_text()


def test_a_stuck_rank_ends_the_other_too(launch):
    """Rank 1 sleeps; rank 0 blocks in a barrier that never comes. Both end with 76."""
    job = launch(
        """
        import time
        from jaxcore.distributed import StartConfig, WatchdogConfig, coordination, start, tick
        limits = WatchdogConfig(minimum_timeout=1.0, median_factor=2.0)
        info = start(StartConfig(compilation_cache=False, watchdog=limits))
        tick(0)
        time.sleep(60) if info.process_id == 1 else coordination.barrier("step 1", 60)
        """,
        count=2,
    )
    codes = job.wait(timeout=30)
    # Whichever fires first takes its connection with it; the runtime may end the other one before its own
    # watchdog.
    assert 76 in codes and set(codes) <= {76, -6}, (codes, job.errors(0)[-500:], job.errors(1)[-500:])


def test_limits():
    watchdog = Watchdog(WatchdogConfig(first_step_timeout=100.0, minimum_timeout=0.05, median_factor=20.0))
    assert watchdog.limit() == 100.0
    for _ in range(4):
        watchdog.beat()
        time.sleep(0.02)
    watchdog.beat()
    assert 0.4 <= watchdog.limit() < 2.0  # twenty times a step of about 0.02 s
    steps = watchdog.limit()
    with watchdog.phase("save", 7.0):
        assert watchdog.limit() == 7.0
        with watchdog.phase("compile"):
            assert watchdog.limit() == 3600.0
        time.sleep(0.2)
    watchdog.beat()
    assert watchdog.limit() == steps  # the interval across the phase is not a step


def test_a_process_that_was_stopped_is_not_stuck(launch):
    """SIGSTOP for longer than the limit, then SIGCONT: it goes on."""
    import signal

    job = launch(
        """
        import time
        from jaxcore.distributed import Watchdog, WatchdogConfig
        watchdog = Watchdog(WatchdogConfig(minimum_timeout=4.0)).start()
        for step in range(15):
            watchdog.beat(step)
            print("STEP", step)
            time.sleep(0.2)
        """
    )
    job.wait_for_text(0, "STEP 2")
    job.processes[0].send_signal(signal.SIGSTOP)
    time.sleep(6.0)
    job.processes[0].send_signal(signal.SIGCONT)
    assert job.wait(timeout=30) == [0], job.errors(0)


def test_disabled_watches_nothing():
    before = set(threading.enumerate())
    for enabled in (True, False):
        watchdog = Watchdog(WatchdogConfig(enabled=enabled)).start()
        assert bool(set(threading.enumerate()) - before) == enabled
        watchdog.stop()
