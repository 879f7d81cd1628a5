"""Items on disk as they are finished: a stopped run ends as one that was not, and nothing is computed twice."""

import json

import pytest

from jaxcore.evaluation import Interrupted
from jaxcore.evaluation.finished_items import FinishedLog, map_items

ITEMS = list("abcdefg")


class Counting:
    """Doubles items, and remembers which."""

    def __init__(self):
        self.seen = []

    def __call__(self, group):
        self.seen += group
        return [2 * item for item in group]


def mapped(file, function, tick=lambda step: False, **options):
    options = {"identity": "x", "group_size": 3, **options}
    return map_items(function, ITEMS, file=file, tick=tick, **options)


def test_results_keep_their_order_and_are_lines_of_a_file(tmp_path):
    file = tmp_path / "deep" / "items.jsonl"
    assert mapped(file, Counting()) == [2 * item for item in ITEMS] == mapped(None, Counting())
    header, *lines = map(json.loads, file.read_text().splitlines())
    assert (
        lines == [2 * item for item in ITEMS]
        and header["settings"]["items"] == 7
        and header["settings"]["group_size"] == 3
    )


def test_a_stopped_run_goes_on_where_it_was_and_a_cut_group_is_computed_again(tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "items.jsonl"
    mapped(whole, Counting())
    with pytest.raises(Interrupted, match="after 6 of 7 items"):
        mapped(file, Counting(), tick=lambda step: step == 1)
    with file.open("r+b") as opened:  # killed while the second group was written
        opened.truncate(file.stat().st_size - 4)
    rest = Counting()
    assert mapped(file, rest) == [2 * item for item in ITEMS] and rest.seen == list("defg")
    assert file.read_bytes() == whole.read_bytes()
    finished = Counting()
    assert mapped(file, finished) == [2 * item for item in ITEMS] and finished.seen == []


def test_a_notice_at_the_last_group_does_not_lose_what_is_finished():
    assert mapped(None, Counting(), tick=lambda step: step == 2) == [2 * item for item in ITEMS]


def test_results_pass_through_json_whether_or_not_they_were_on_disk(tmp_path):
    options = {"to_json": list, "from_json": tuple}
    first = mapped(tmp_path / "a.jsonl", lambda group: [(item, 1) for item in group], **options)
    again = mapped(tmp_path / "a.jsonl", None, **options)
    assert first == again == [(item, 1) for item in ITEMS]


def test_files_of_something_else_and_damaged_ones_are_refused(tmp_path):
    file = tmp_path / "items.jsonl"
    mapped(file, Counting())
    for name, value in {"identity": "y", "group_size": 2}.items():
        with pytest.raises(ValueError, match=rf"is of something else \({name} was"):
            mapped(file, Counting(), **{name: value})
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "{", *lines[3:], ""]))
    with pytest.raises(ValueError, match=r"items\.jsonl, line 3, is damaged"):
        mapped(file, Counting())
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        mapped(None, Counting(), group_size=0)
    with pytest.raises(ValueError, match="gave 0 results for 3 items"):
        mapped(None, lambda group: [])


def test_a_log_has_a_file_for_each_name(tmp_path):
    log = FinishedLog(tmp_path, "run")
    assert log.map("task/one", Counting(), ITEMS, group_size=4) == [2 * item for item in ITEMS]
    assert (tmp_path / "task" / "one.jsonl").exists()
    with pytest.raises(ValueError, match="something else"):
        FinishedLog(tmp_path, "other run").map("task/one", Counting(), ITEMS, group_size=4)
    assert FinishedLog().map("task/one", Counting(), ITEMS, group_size=4) == [2 * item for item in ITEMS]
