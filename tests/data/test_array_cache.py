"""The disk cache: computes once, survives damage and killed writers, refuses folders it cannot write."""

import hashlib

import numpy as np
import pytest

from jaxcore.data import cached_arrays, content_hash


class Computed:
    """Counts how often the arrays were really computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": np.arange(12, dtype=np.int32).reshape(3, 4), "empty": np.zeros((0, 4), np.float32)}, {"n": ["é"]}


def test_second_call_reads_what_the_first_wrote(tmp_path):
    compute = Computed()
    first, _ = cached_arrays(tmp_path, "key", compute)
    second, metadata = cached_arrays(tmp_path, "key", compute)
    assert compute.calls == 1
    assert metadata == {"n": ["é"]}
    assert isinstance(second["a"], np.memmap) and not second["a"].flags.writeable
    for name, array in first.items():
        assert second[name].dtype == array.dtype
        np.testing.assert_array_equal(second[name], array)
    assert second["empty"].shape == (0, 4)


def test_other_key_and_no_folder_compute_again(tmp_path):
    compute = Computed()
    cached_arrays(tmp_path, "one", compute)
    cached_arrays(tmp_path, "two", compute)
    cached_arrays(None, "one", compute)
    assert compute.calls == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # no temporary left behind


@pytest.mark.parametrize("damage", ["truncate array", "truncate metadata", "remove array", "other layout"])
def test_damaged_entry_is_computed_again(tmp_path, damage):
    compute = Computed()
    cached_arrays(tmp_path, "key", compute)
    array, metadata = tmp_path / "key" / "a.npy", tmp_path / "key" / "metadata.json"
    if damage == "truncate array":
        array.write_bytes(array.read_bytes()[:-5])
    elif damage == "truncate metadata":
        metadata.write_text(metadata.read_text()[:-5])
    elif damage == "remove array":
        array.unlink()
    else:
        metadata.write_text(metadata.read_text().replace('"layout": 1', '"layout": 0'))
    again, _ = cached_arrays(tmp_path, "key", compute)
    assert compute.calls == 2
    np.testing.assert_array_equal(again["a"], np.arange(12).reshape(3, 4))
    cached_arrays(tmp_path, "key", compute)
    assert compute.calls == 2  # mended for good


def test_writer_that_dies_leaves_no_entry(tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", die)
    with pytest.raises(KeyboardInterrupt):
        cached_arrays(tmp_path, "key", Computed())
    monkeypatch.undo()
    compute = Computed()
    cached_arrays(tmp_path, "key", compute)
    assert compute.calls == 1


def test_cache_folder_that_cannot_be_written_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ValueError, match=r"cannot write the cache folder .*name another cache_dir") as caught:
        cached_arrays(blocked, "key", Computed())
    assert "\n" not in str(caught.value)


def test_content_hash_separates_its_parts():
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash("ab") == content_hash(b"ab")
    # The same hash in every process and version: cache entries outlive the program.
    assert (
        content_hash("a", "é")
        == hashlib.blake2b(b"\x01" + bytes(7) + b"a" + b"\x02" + bytes(7) + b"\xc3\xa9", digest_size=16).hexdigest()
    )
