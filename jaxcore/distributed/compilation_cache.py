"""The persistent compilation cache: a second run of the same program skips the compiler.

Only process 0 writes, all processes read (jax's own rule), so several hosts profit only from a shared
directory. Keys hold the program, jaxlib's version, compiler flags and topology. Whoever can write the
directory runs code in
the job: it is made private to the user.
"""

import importlib.util
import os
import warnings
from pathlib import Path

import jax

__all__ = ["default_cache_dir", "enable_compilation_cache"]


def default_cache_dir() -> Path:
    """``$JAXCORE_CACHE_DIR``, else ``jaxcore`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("JAXCORE_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxcore"


def enable_compilation_cache(
    directory: str | os.PathLike[str] | None = None,
    *,
    min_compile_seconds: float = 0.1,
    max_bytes: int = 4 * 1024**3,
) -> Path | None:
    """Turns the cache on for this process; call it before the first compilation.

    Args:
      directory: where entries live (local, or a mounted bucket); default `default_cache_dir`. Entries of each
        jax version have their own folder inside.
      min_compile_seconds: programs that compile faster are not stored. Small enough that a smoke run profits;
        use 1 s or more for a bucket, which throttles many small writes.
      max_bytes: the least recently used entries are dropped above this size; a negative number means no
        limit.

    Returns:
      The folder of this jax version, or None (with a warning) if it cannot be written: the run goes on
      without a cache.
    """
    root = Path(directory).expanduser() if directory is not None else default_cache_dir()
    folder = root / "xla" / f"jax{jax.__version__}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        writable, reason = False, str(error)
    else:
        reason = "no write permission"
    if not writable:
        warnings.warn(
            f"compilation cache {folder} cannot be used ({reason}); compiling without it. Set JAXCORE_CACHE_DIR.",
            stacklevel=2,
        )
        return None
    # Dropping old entries needs file locks, for which jax imports `filelock` (it comes with transformers).
    bounded = max_bytes if importlib.util.find_spec("filelock") else -1
    jax.config.update("jax_compilation_cache_max_size", bounded)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_compile_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
