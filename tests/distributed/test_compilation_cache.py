import os
import pathlib

import jax
import pytest

from jaxcore.distributed.compilation_cache import default_cache_dir, enable_compilation_cache

SCRIPT = """
    import os, jax, jax.numpy as jnp
    from jax import monitoring
    from jaxcore.distributed import StartConfig, start
    events = []
    monitoring.register_event_listener(lambda name, **_: events.append(name))
    info = start(StartConfig(cache_dir=os.environ["SHARED_CACHE"], cache_min_compile_seconds=0.0))
    x = jnp.ones((8, 8))
    jax.jit(lambda x: jnp.tanh(x @ x).sum())(x).block_until_ready()
    print("HITS", events.count("/jax/compilation_cache/cache_hits"))
"""


def test_second_process_hits(launch, tmp_path):
    settings = {0: {"SHARED_CACHE": str(tmp_path / "cache")}}
    first = launch(SCRIPT, explicit=False, environments=settings)
    assert first.wait() == [0], first.errors(0)
    second = launch(SCRIPT, explicit=False, environments=settings)
    assert second.wait() == [0], second.errors(0)
    assert "HITS 0" in first.output(0)
    assert int(second.output(0).split("HITS")[1]) >= 1
    folder = tmp_path / "cache" / "xla" / f"jax{jax.__version__}"
    assert any(folder.iterdir()) and folder.stat().st_mode & 0o077 == 0


def test_only_process_0_writes(launch, tmp_path):
    settings = {rank: {"SHARED_CACHE": str(tmp_path / f"cache{rank}")} for rank in range(2)}
    job = launch(SCRIPT, count=2, environments=settings)
    assert job.wait() == [0, 0], job.errors(0)
    entries = [list((tmp_path / f"cache{rank}").rglob("*-cache")) for rank in range(2)]
    assert entries[0] and not entries[1]


def test_default_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("JAXCORE_CACHE_DIR", raising=False)
    assert default_cache_dir() == pathlib.Path("/somewhere/jaxcore")
    monkeypatch.setenv("JAXCORE_CACHE_DIR", "~/mine")
    assert default_cache_dir() == pathlib.Path.home() / "mine"


def test_unusable_folder_warns_and_goes_on(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = jax.config.values["jax_compilation_cache_dir"]
    with pytest.warns(UserWarning, match="compiling without it"):
        assert enable_compilation_cache(tmp_path / "file") is None
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert os.listdir(tmp_path) == ["file"]
