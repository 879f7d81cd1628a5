"""Fixtures every test may use: eight simulated CPU devices, quick compilation, a cache, and the shared real data."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of a test's time, and takes two thirds of it without LLVM's passes. Given flags come last and win.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
).strip()

if "JAXCORE_CACHE_DIR" not in os.environ:  # shared by the processes that tests start, and gone with the session
    os.environ["JAXCORE_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxcore-test-cache-")
    atexit.register(shutil.rmtree, os.environ["JAXCORE_CACHE_DIR"], ignore_errors=True)

import pytest
from process_jobs import launch  # noqa: F401  a fixture

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    """Every compiled program holds memory maps, of which a process may have 65,530: a session of thousands of tests
    would end in a crash of the compiler. What a module compiled is dropped after it."""
    yield
    import gc

    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose programs run once, for a millisecond: most of the time would go into optimising them."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project; a test that needs it skips where it is absent."""
    root = pathlib.Path(os.environ.get("JAXCORE_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not root.is_dir():
        pytest.skip(f"no shared data at {root} (set JAXCORE_SHARED)")
    return root
