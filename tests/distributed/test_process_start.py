import socket

import jax
import pytest

from jaxcore.distributed import StartConfig, coordination, start
from jaxcore.distributed import process_start as room


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAXCORE_{name}", raising=False)


def test_one_process_starts_quickly_quietly_and_with_a_client(launch):
    job = launch(
        """
        import signal
        from jaxcore.distributed import coordination, start
        info = start()
        assert coordination.has_client() and not coordination.backend_exists()
        print(info.method, info.process_id, info.num_processes, info.seconds < 0.5, bool(info.cache_dir))
        assert info.ticker.tick(1) is False
        import jax
        jax.numpy.ones(2).sum().block_until_ready()
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        """,
        explicit=False,
        # A proxy that leads nowhere must not matter to a process that talks to itself.
        environments={0: {"http_proxy": "http://10.255.255.1:9", "https_proxy": "http://10.255.255.1:9"}},
    )
    assert job.wait() == [0], job.errors(0)
    assert job.output(0).split() == ["loopback", "0", "1", "True", "True", "True"]
    assert job.errors(0) == ""


def test_many_single_processes_at_once_do_not_meet(launch):
    """Two runs on one machine never share a coordinator, whatever ports they draw."""
    script = """
        from jaxcore.distributed import coordination, start
        import os, time
        start()
        coordination.publish("owner", str(os.getpid()))   # fails if another run wrote to the same store
        time.sleep(0.5)
        assert coordination.wait_for("owner", 1) == str(os.getpid())
    """
    jobs = [launch(script, explicit=False) for _ in range(3)]
    assert [job.wait() for job in jobs] == [[0]] * 3


def test_a_reserved_port_is_not_drawn_again():
    port = room._reserve_port()
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("127.0.0.1", port))


def test_collision_is_retried(monkeypatch):
    attempts = []

    def initialize(**settings):
        attempts.append(settings["coordinator_address"])
        if len(attempts) < 3:
            raise jax.errors.JaxRuntimeError("UNKNOWN: address already in use")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    room._join_alone(StartConfig())
    assert len(set(attempts)) == 3


def test_existing_backend_goes_on_alone(tmp_path):
    jax.devices()
    info = start(StartConfig(compilation_cache=False))
    assert info.method == "existing backend" and info.num_processes == 1 and info.is_first
    assert info.ticker.tick(1) is False
    assert info.ticker.watchdog is not None
    info.ticker.watchdog.stop()


def test_existing_backend_refuses_several_processes():
    jax.devices()
    with pytest.raises(ValueError, match="touched a device before joining"):
        start(StartConfig(compilation_cache=False, coordinator="127.0.0.1:1", num_processes=2, process_id=0))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StartConfig(coordinator="a:1"), "num_processes and process_id missing"),
        (StartConfig(coordinator="host", num_processes=2, process_id=0), "not host:port"),
        (StartConfig(coordinator="a:1", num_processes=2, process_id=2), "not in 0"),
    ],
)
def test_contradicting_settings(config, says):
    with pytest.raises(ValueError, match=says):
        start(config)


def test_variables_fill_in(monkeypatch):
    monkeypatch.setenv("JAXCORE_COORDINATOR", "10.0.0.1:99")
    monkeypatch.setenv("JAXCORE_NUM_PROCESSES", "4")
    assert room._explicit_settings(StartConfig(process_id=3)) == room._Explicit("10.0.0.1:99", 4, 3)
    monkeypatch.setenv("JAXCORE_NUM_PROCESSES", "four")
    with pytest.raises(ValueError, match="not a number"):
        room._explicit_settings(StartConfig(process_id=3))


@pytest.fixture
def recorded(monkeypatch):
    """What would be passed to jax.distributed.initialize, on a machine without client and backend."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: calls.append(settings))
    monkeypatch.setattr(coordination, "backend_exists", lambda: False)
    monkeypatch.setattr(coordination, "has_client", lambda: False)
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "FTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_explicit_deactivates_detection(recorded):
    explicit = room._Explicit("10.0.0.1:99", 100, 7)
    assert room._join(StartConfig(), explicit) == "explicit"
    (settings,) = recorded
    assert settings["cluster_detection_method"] == "deactivate"
    assert (settings["coordinator_address"], settings["num_processes"], settings["process_id"]) == (
        "10.0.0.1:99",
        100,
        7,
    )
    assert settings["initialization_timeout"] == 1800 and settings["heartbeat_timeout_seconds"] == 300
    assert settings["shutdown_timeout_seconds"] == 60


def test_slurm(recorded, monkeypatch):
    values = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "16", "PROCID": "3", "LOCALID": "3"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert room._join(StartConfig(), None) == "slurm"
    assert recorded[0]["cluster_detection_method"] == "slurm" and recorded[0]["heartbeat_timeout_seconds"] == 100
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert room._join(StartConfig(), None) == "loopback"


def test_cloud_tpu(recorded, monkeypatch):
    monkeypatch.setattr(coordination, "on_cloud_tpu", lambda: True)
    monkeypatch.setattr(room, "_platform_allows", lambda platform: True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    with pytest.raises(ValueError, match="TPU_SKIP_MDS_QUERY"):
        room._join(StartConfig(), None)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--a=1")
    assert room._join(StartConfig(), None) == "tpu"
    import os

    assert os.environ["JAX_COORDINATOR_PORT"] == "8476" and "megascale_graph_hang" in os.environ["LIBTPU_INIT_ARGS"]
    assert recorded == [
        {"initialization_timeout": 3600, "heartbeat_timeout_seconds": 100, "shutdown_timeout_seconds": 60}
    ]
    monkeypatch.delenv("JAX_COORDINATOR_PORT")


def test_proxies_are_refused_only_among_several_processes(recorded, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    several = room._Explicit("10.0.0.1:99", 2, 0)
    with pytest.raises(ValueError, match=r"HTTPS_PROXY.*10\.0\.0\.1"):
        room._join(StartConfig(), several)
    monkeypatch.setenv("NO_PROXY", "localhost, 10.0.0.1")
    room._join(StartConfig(), several)
    monkeypatch.delenv("NO_PROXY")
    room._join(StartConfig(), room._Explicit("10.0.0.1:99", 1, 0))


def test_survivor_is_ended_by_the_runtime(launch):
    """kill -9 of a worker: the other one ends with SIGABRT within the heartbeat timeout, and does not
    hang."""
    job = launch(
        """
        import time
        from jaxcore.distributed import StartConfig, start
        info = start(StartConfig(heartbeat_timeout=3, shutdown_timeout=5))
        print("READY")
        time.sleep(60)
        """,
        count=2,
    )
    job.wait_for_text(0, "READY")
    job.wait_for_text(1, "READY")
    job.processes[1].kill()
    assert job.wait(timeout=30)[0] == -6
