"""A run's directory: who may write it, what it holds, and the digest that says two runs ended alike.

config.json      the full configuration, written first
metrics.jsonl    one row per logged step
checkpoints/     see `jaxcore.training.checkpoints`
results.json     the run's outcome; its presence means that the run finished
report.html      the same for people
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree


class RunDirectoryInUse(RuntimeError):
    """Another job holds the directory's lease; writing beside it would corrupt both."""


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """An opened run directory. Process 0 writes, the others only read.

    Attributes:
        path: the directory.
        resumed: it held an earlier part of this run.
    """

    path: pathlib.Path
    resumed: bool
    _lease: TextIO | None = None

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> pathlib.Path:
        return self.path / "results.json"

    @property
    def report(self) -> pathlib.Path:
        return self.path / "report.html"

    def close(self) -> None:
        """Give the lease back; a killed process gives it back by dying."""
        if self._lease is not None:
            self._lease.close()


def open_run_directory(path: pathlib.Path | str, config: Any, *, resume: bool) -> RunDirectory:
    """Make or re-enter a run directory; nothing that is there is ever overwritten by a different run.

    Args:
        path: the directory; made with its parents.
        config: a dataclass; written to ``config.json``, and compared with what is there when resuming.
        resume: continue what is there. Without it, a directory that already holds a run is an error.

    Raises:
        ValueError: the directory holds a run and `resume` is off; the configuration differs (every differing
            field is named); the directory cannot be written.
        RunDirectoryInUse: another living process is writing there.
    """
    path = pathlib.Path(path).expanduser()
    leases: list[TextIO] = []

    def enter() -> bool:
        _refuse_what_is_there(path, config, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
            leases.append(_take_lease(path))
            if not (path / "config.json").exists():
                write_json(path / "config.json", as_plain(config))
        except OSError as error:
            raise ValueError(f"cannot write the run directory {path}: {error.strerror or error}") from error
        return resume and (path / "checkpoints").is_dir()

    resumed = _first_process_decides(enter)
    return RunDirectory(path, resumed, leases[0] if leases else None)


def check_run_directory(path: pathlib.Path | str, config: Any, *, resume: bool) -> None:
    """Raise what `open_run_directory` would refuse, before anything is read or written."""

    def look() -> bool:
        _refuse_what_is_there(pathlib.Path(path).expanduser(), config, resume=resume)
        return True

    _first_process_decides(look)


def _first_process_decides(decide: Callable[[], bool]) -> bool:
    """``decide()`` on process 0; its answer, or its error, on every process.

    Were each to look for itself, the others would find what process 0 has just written, and one that stops alone
    leaves the rest waiting for it.
    """
    answer, error = False, None
    if jax.process_index() == 0:
        try:
            answer = decide()
        except (ValueError, RunDirectoryInUse) as refusal:
            error = refusal
    if jax.process_count() > 1:
        kinds = (None, ValueError, RunDirectoryInUse)
        message = np.zeros(2048, np.uint8)
        encoded = str(error or "").encode()[: message.size]
        message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        sent = (np.int32(answer), np.int32(kinds.index(type(error) if error else None)), message)
        told, kind, text = multihost_utils.broadcast_one_to_all(sent)
        answer, raised = bool(told), kinds[int(kind)]
        if raised is not None:
            raise raised(bytes(text).rstrip(b"\0").decode(errors="ignore")) from error
    if error is not None:
        raise error
    return answer


def _refuse_what_is_there(path: pathlib.Path, config: Any, *, resume: bool) -> None:
    earlier = path / "config.json"
    if earlier.exists():
        if not resume:
            raise ValueError(f"{path} already holds a run: add --resume to continue it, or name another --run-dir")
        _require_same_config(json.loads(earlier.read_text(encoding="utf-8")), as_plain(config), path)
    elif path.is_dir() and any(_is_foreign(entry.name) for entry in path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no run (no config.json): name another --run-dir")
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: name a folder as --run-dir")


def _is_foreign(name: str) -> bool:
    """Not left by a run that was killed before its configuration was written."""
    return name != LEASE_NAME and not name.endswith(".partial")


LEASE_NAME = ".lease"


def _take_lease(path: pathlib.Path) -> TextIO:
    """Hold an advisory lock for the life of the process: the kernel frees it on any death, kill -9 included."""
    lease = (path / LEASE_NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lease.seek(0)
        raise RunDirectoryInUse(
            f"{path} is being written by another job (process {lease.read().strip() or 'unknown'}): "
            "stop it first, or name another --run-dir"
        ) from error
    lease.truncate(0)
    lease.write(str(os.getpid()))
    lease.flush()
    return lease


def as_plain(config: Any) -> Any:
    """A dataclass as what JSON can hold, the form in which configurations are stored and compared."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def flatten_fields(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted name, value) pairs."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _require_same_config(before: dict[str, Any], now: dict[str, Any], path: pathlib.Path) -> None:
    old, new = dict(flatten_fields(before)), dict(flatten_fields(now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if names:
        changes = "; ".join(f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in names[:5])
        raise ValueError(
            f"cannot resume {path} with a different configuration ({changes}): give the same fields, "
            "or name another --run-dir"
        )


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file by writing beside it and renaming."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def params_digest(params: PyTree[Array]) -> str:
    """SHA-256 over the parameter leaves in path order: equal digests mean bit-identical parameters.

    Each leaf contributes its path, dtype, shape and bytes (C order). Every process must call it; leaves spread
    over processes are gathered one at a time.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
