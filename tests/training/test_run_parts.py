"""A part of a run resumes where it stood, begins anew where it had not begun, and gives its lease back."""

import dataclasses

import pytest

from jaxcore.training import open_run_directory, run_part


@dataclasses.dataclass(frozen=True)
class Options:
    seed: int = 0


def test_a_part_begins_and_resumes_and_is_closed(tmp_path):
    path = tmp_path / "arms" / "one"
    with run_part(path, Options(), resume=True) as directory:
        assert not directory.resumed and directory.path == path
        directory.checkpoints.mkdir()
    with pytest.raises(RuntimeError, match="stop"), run_part(path, Options(), resume=True) as directory:
        assert directory.resumed
        raise RuntimeError("stop")
    open_run_directory(path, Options(), resume=True).close()  # the lease was given back
    with pytest.raises(ValueError, match="already holds a run"), run_part(path, Options(), resume=False):
        pass
