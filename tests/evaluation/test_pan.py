"""Reading PAN files: what is accepted, and that every fault names file and line."""

import json

import numpy as np
import pytest

from jaxcore.evaluation import align_answers, read_pan_answers, read_pan_truth


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_numbers_integers_and_one_element_lists_are_read(tmp_path):
    path = write(
        tmp_path / "answers.jsonl",
        '{"id": "a", "value": 0.25}',
        "",
        '{"id": "b", "value": [0.75]}',
        '{"id":"é", "value": 1, "more": null}',
    )
    assert read_pan_answers(path) == {"a": 0.25, "b": 0.75, "é": 1.0}
    assert read_pan_answers(str(path))["a"] == 0.25


def test_truth_is_read_as_booleans(tmp_path):
    path = write(tmp_path / "truth.jsonl", '{"id": "a", "same": true, "authors": ["1", "1"]}', '{"id":"b","same":0}')
    assert read_pan_truth(path) == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": "b", "value": 0.5', "not JSON"),
        (b'{"id": "\xff", "value": 0.5}', "not UTF-8"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"value": 0.5}', "no field 'id'"),
        ('{"id": "b"}', "no field 'value'"),
        ('{"id": 7, "value": 0.5}', "id must be a string, found 7"),
        ('{"id": "a", "value": 0.5}', "id 'a' occurs twice"),
        ('{"id": "b", "value": "0.5"}', "value must be a number"),
        ('{"id": "b", "value": true}', "value must be a number"),
        ('{"id": "b", "value": null}', "value must be a number"),
        ('{"id": "b", "value": [0.5, 0.5]}', "value must be a number"),
        ('{"id": "b", "value": []}', "value must be a number"),
        ('{"id": "b", "value": NaN}', r"value must lie in \[0, 1\]"),
        ('{"id": "b", "value": 1.01}', r"value must lie in \[0, 1\], found 1.01"),
        ('{"id": "b", "value": [-0.1]}', r"value must lie in \[0, 1\], found -0.1"),
    ],
)
def test_a_malformed_line_is_reported_with_file_and_line(tmp_path, line, fault):
    path = write(tmp_path / "answers.jsonl", '{"id": "a", "value": 0.1}', "", line, '{"id": "z", "value": 0.1}')
    with pytest.raises(ValueError, match=rf"answers\.jsonl:3: {fault}") as error:
        read_pan_answers(path)
    assert "\n" not in str(error.value)
    assert "more malformed" not in str(error.value)


def test_further_malformed_lines_are_counted(tmp_path):
    path = write(tmp_path / "answers.jsonl", "x", '{"id": "a", "value": 0.1}', "y", "z")
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: .*and 2 more malformed lines"):
        read_pan_answers(path)


@pytest.mark.parametrize("same", ['"yes"', "2", "null", "[true]"])
def test_truth_other_than_true_and_false_is_refused(tmp_path, same):
    path = write(tmp_path / "truth.jsonl", f'{{"id": "a", "same": {same}}}')
    with pytest.raises(ValueError, match=r"truth\.jsonl:1: same must be true or false"):
        read_pan_truth(path)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_pan_answers(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="no records"):
        read_pan_answers(write(tmp_path / "empty.jsonl", "", "  "))


def test_alignment_follows_the_truth_and_leaves_missing_answers_unanswered():
    truth = {"c": True, "a": False, "b": True}
    labels, probabilities = align_answers(truth, {"a": 0.1, "c": 0.9})
    np.testing.assert_array_equal(labels, [True, False, True])
    np.testing.assert_array_equal(probabilities, [0.9, 0.1, 0.5])


def test_alignment_refuses_answers_to_other_problems():
    with pytest.raises(ValueError, match=r"1 answers have ids that are not in the truth .*'x'"):
        align_answers({"a": True}, {"a": 0.1, "x": 0.2})
    with pytest.raises(ValueError, match="truth is empty"):
        align_answers({}, {})


def test_written_answers_survive_the_round_trip(tmp_path):
    answers = {f"problem-{i}": float(p) for i, p in enumerate(np.random.default_rng(0).random(50))}
    lines = [json.dumps({"id": problem, "value": value}) for problem, value in answers.items()]
    assert read_pan_answers(write(tmp_path / "answers.jsonl", *lines)) == answers
