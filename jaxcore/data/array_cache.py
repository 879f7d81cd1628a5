"""Arrays kept on disk under a content hash: written once, whole or not at all, memory-mapped when read."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_LAYOUT_VERSION = 1
_METADATA = "metadata.json"


def content_hash(*parts: str | bytes) -> str:
    """A stable 128-bit hash of the parts in order; lengths count too: ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def cached_arrays(
    cache_dir: str | os.PathLike[str] | None,
    key: str,
    compute: Callable[[], tuple[Mapping[str, np.ndarray], dict[str, Any]]],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """`compute()`'s arrays and JSON metadata, from `cache_dir/key` where they are already there.

    Cached arrays come back as read-only memory maps. The entry is written under a temporary name and renamed,
    so a killed writer leaves nothing that a reader takes for an entry, and of two writers one wins with equal
    content. A damaged entry is computed again, with a warning. Without `cache_dir` nothing touches the disk.

    Args:
        cache_dir: Folder of all entries, created where missing.
        key: Content hash of everything that decides the arrays (see `content_hash`).
        compute: Called at most once.

    Raises:
        ValueError: The cache folder cannot be written.
    """
    if cache_dir is None:
        arrays, metadata = compute()
        return dict(arrays), metadata
    entry = pathlib.Path(cache_dir) / key
    found = _read_entry(entry)
    if found is not None:
        return found
    arrays, metadata = compute()
    try:
        _write_entry(entry, arrays, metadata)
    except OSError as error:
        raise ValueError(
            f"cannot write the cache folder {cache_dir} ({error.strerror}); make it writable or name another cache_dir"
        ) from error
    found = _read_entry(entry)
    return found if found is not None else (dict(arrays), metadata)


def _read_entry(entry: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    if not entry.is_dir():
        return None
    try:
        stored = json.loads((entry / _METADATA).read_text(encoding="utf-8"))
        if stored["layout"] != _LAYOUT_VERSION:
            return None
        arrays = {name: _load(entry / f"{name}.npy") for name in stored["arrays"]}
    except (OSError, ValueError, KeyError) as error:
        logger.warning("cache entry %s is damaged (%s): it is computed again", entry, error)
        return None
    return arrays, stored["metadata"]


def _load(path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped; a truncated file fails here again
        return np.load(path, allow_pickle=False)


def _write_entry(entry: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            with open(temporary / f"{name}.npy", "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        stored = {"layout": _LAYOUT_VERSION, "arrays": sorted(arrays), "metadata": metadata}
        with open(temporary / _METADATA, "w", encoding="utf-8") as file:
            json.dump(stored, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        if entry.exists() and _read_entry(entry) is None:
            shutil.rmtree(entry)
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
