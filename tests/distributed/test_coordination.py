import pytest

from jaxcore.distributed import coordination


def test_without_a_client():
    assert not coordination.has_client() and coordination.process_count() == 1 and coordination.process_id() == 0
    assert coordination.reached_sync_point(1) is False
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        coordination.publish("a", "b")


def test_barrier_names_the_missing_rank_and_keys_travel(launch):
    job = launch(
        """
        import time
        from jaxcore.distributed import StartConfig, coordination, start
        info = start(StartConfig(compilation_cache=False))
        coordination.publish(f"greeting/{info.process_id}", f"from {info.process_id}")
        coordination.barrier("all here, step 0", 20)
        print(sorted(coordination.read_all("greeting/").items()), coordination.wait_for("greeting/1", 1))
        try:
            coordination.wait_for("never", 0.3)
        except TimeoutError as error:
            print("TIMEOUT", error)
        if info.process_id == 0:
            began = time.monotonic()
            try:
                coordination.barrier("step 7", 1.0)
            except coordination.BarrierTimeout as error:
                print("MISSING", error.missing, str(error), time.monotonic() - began < 5)
            coordination.publish("done", "yes")
        else:
            coordination.wait_for("done", 30)
        """,
        count=2,
    )
    assert job.wait() == [0, 0], job.errors(0)
    assert "[('greeting/0', 'from 0'), ('greeting/1', 'from 1')] from 1" in job.output(0)
    assert "TIMEOUT no process wrote 'never' within 0.3 s" in job.output(1)
    assert "MISSING [1] barrier 'step 7': process(es) 1 did not arrive within 1 s" in job.output(0)
    assert job.output(0).strip().endswith("True")
