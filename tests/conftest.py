"""Fixtures every test may use: eight simulated CPU devices and the folder of shared real data."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project; a test that needs it skips where it is absent."""
    root = pathlib.Path(os.environ.get("JAXCORE_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not root.is_dir():
        pytest.skip(f"no shared data at {root} (set JAXCORE_SHARED)")
    return root
