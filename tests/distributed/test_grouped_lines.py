"""A file that grows by groups: cut anywhere it goes on from whole ones; another run's or a damaged one is refused."""

import json

import pytest

from jaxcore.distributed import GroupedLines

SETTINGS = {"seed": 3, "model": "abc"}


def doubled(number, value):
    if value["item"] != number:
        raise ValueError(f"it is of item {value['item']}")
    return 2 * value["item"]


def run(file, *, groups=4, settings=SETTINGS):
    """Items 0 to 6 in groups of two, of which so many are computed now; what was read first."""
    lines = GroupedLines(file, settings, num_lines=7, group_size=2)
    read = lines.read(doubled)
    for start in range(len(read), 7, 2)[:groups]:
        lines.append([{"item": item} for item in range(start, min(start + 2, 7))])
    return read


def test_a_file_cut_anywhere_becomes_the_whole_one(tmp_path):
    file = tmp_path / "new folder" / "lines.jsonl"
    assert run(file) == [] and run(file) == [0, 2, 4, 6, 8, 10, 12]
    whole = file.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")][1:]  # of the items' lines
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        num_lines = sum(cut >= end for end in ends)
        expected = num_lines if num_lines == 7 else num_lines // 2 * 2
        assert run(file) == [2 * item for item in range(expected)], cut
        assert file.read_bytes() == whole


def test_what_is_left_out_now_is_done_later(tmp_path):
    assert [len(run(tmp_path / "lines.jsonl", groups=1)) for _ in range(5)] == [0, 2, 4, 6, 7]


def test_files_of_something_else_and_damaged_ones_are_refused(tmp_path):
    file = tmp_path / "lines.jsonl"
    run(file)
    whole = file.read_text()
    with pytest.raises(
        ValueError, match=r"is of something else \(model was abc, is None; seed was 3, is 4\): remove it"
    ):
        run(file, settings={"seed": 4})
    first, *others = whole.splitlines(keepends=True)
    for bad, message in (
        ("text\n", "holds no lines of a run"),
        (json.dumps({"seed": 3}) + "\n", "holds no lines of a run"),
        (first + "{\n" + "".join(others[1:]), "line 2, is damaged"),
        (first + "".join(others[1:]), r"line 2, is damaged \(it is of item 1\)"),
        (first + others[0] + "[]\n" + "".join(others[2:]), "line 3, is damaged"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=message):
            run(file)
        assert file.read_text() == bad
