from typing import Any

from jaxcore.distributed import hash_config
from jaxcore.distributed.fingerprint import code_version, differences, software_fingerprint

SCRIPT = """
    import os, sys
    from jaxcore.distributed import ExitCode, FingerprintMismatch, StartConfig, start
    try:
        info = start(StartConfig(compilation_cache=False), config_hash=os.environ["CONFIG_HASH"])
    except FingerprintMismatch as error:
        print(error)
        sys.exit(error.exit_code)
    print("STARTED", info.num_processes)
"""


def test_another_configuration_ends_every_process_with_78(launch):
    environments = {0: {"CONFIG_HASH": "aaa"}, 1: {"CONFIG_HASH": "bbb"}, 2: {"CONFIG_HASH": "aaa"}}
    job = launch(SCRIPT, count=3, environments=environments)
    assert job.wait() == [78, 78, 78], job.errors(0)
    for rank in range(3):
        assert "process 1 on " in job.output(rank) and "config is 'bbb', elsewhere 'aaa'" in job.output(rank)
        assert "process 2" not in job.output(rank)


def test_equal_processes_start(launch):
    job = launch(SCRIPT, count=2, environments={rank: {"CONFIG_HASH": "aaa"} for rank in range(2)})
    assert job.wait() == [0, 0], job.errors(0)
    assert "STARTED 2" in job.output(1)


def test_differences_blame_the_minority():
    published: dict[int, Any] = {rank: {"host": f"h{rank}", "fields": {"jax": "1", "chip": "x"}} for rank in range(3)}
    assert differences(published) == []
    published[0]["fields"]["jax"] = "2"
    assert differences(published) == ["process 0 on h0: jax is '2', elsewhere '1'"]
    del published[2]["fields"]["chip"]
    assert "process 2 on h2: chip is 'absent', elsewhere 'x'" in differences(published)


def test_fields_name_versions_and_code():
    import jax

    fields = software_fingerprint(config_hash="abc", compiler_options={"b": 1, "a": True})
    assert fields["jax"] == jax.__version__ and fields["config"] == "abc" and fields["code"] == code_version()
    assert fields["compiler options"] == '{"a": true, "b": 1}'


def test_hash_config_ignores_key_order_but_not_values():
    assert hash_config({"a": 1, "b": [2, 3]}) == hash_config({"b": [2, 3], "a": 1})
    assert hash_config({"a": 1}) != hash_config({"a": 2})
