"""Labels of sentences from files, and published traces in both forms."""

import json
import tarfile

import numpy as np
import pytest

from jaxcore.data.published_traces import read_published_traces
from jaxcore.data.reasoning_taxonomy import FUNCTIONS, checked_functions, read_labels


@pytest.mark.parametrize(
    "content",
    [
        ["plan_generation", "unknown"],
        [{"function_tags": ["plan_generation", "self_checking"]}, {"function_tags": []}],
        {"10": {"function_tags": None}, "9": {"function_tags": ["Plan_Generation"]}},
    ],
)
def test_the_first_label_counts_in_every_form(tmp_path, content):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert read_labels(tmp_path / "labels.json", count=2) == ["plan_generation", "unknown"]


def test_unknown_labels_counts_and_files_are_refused(tmp_path):
    assert len(FUNCTIONS) == 8
    with pytest.raises(ValueError, match="'planning' is no function"):
        checked_functions(["planning"])
    with pytest.raises(ValueError, match="1 labels for 2 sentences"):
        checked_functions(["unknown"], count=2)
    with pytest.raises(ValueError, match="cannot read labels"):
        read_labels(tmp_path / "none.json")


@pytest.fixture
def folder(tmp_path):
    """Two traces; sentence 2 was left out of the first, so that indices and places differ."""
    records = [
        {"chunk": "b", "chunk_idx": 3, "function_tags": ["self_checking"], "depends_on": ["1", "2"], "accuracy": 0.5},
        {"chunk": "a", "chunk_idx": 1, "function_tags": ["plan_generation"], "depends_on": [], "accuracy": 0.25},
    ]
    impacts = [{"source_chunk_idx": 1, "target_impacts": [{"target_chunk_idx": 3, "importance_score": 0.75}]}]
    place = tmp_path / "data" / "some-model" / "correct_base_solution" / "problem_7"
    place.mkdir(parents=True)
    (place / "chunks_labeled.json").write_text(json.dumps(records))
    for name in ("step_importance", "step_importance_supp"):
        (place / f"{name}.json").write_text(json.dumps(impacts))
    other = place.parents[1] / "incorrect_base_solution" / "problem_7"
    other.mkdir(parents=True)
    (other / "chunks_labeled.json").write_text(json.dumps(records[:1]))
    return tmp_path / "data"


@pytest.mark.parametrize("packed", [False, True])
def test_published_traces_come_in_order_of_their_sentences(folder, tmp_path, packed):
    path = folder
    if packed:
        path = tmp_path / "traces.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, arcname="")
    first, second = read_published_traces(path)
    assert (first.model, first.problem, first.is_correct, second.is_correct) == ("some-model", 7, True, False)
    assert first.sentences == ["a", "b"] and first.functions == ["plan_generation", "self_checking"]
    np.testing.assert_array_equal(first.indices, [1, 3])
    np.testing.assert_array_equal(first.depends_on, [[False, True], [False, False]])
    np.testing.assert_array_equal(first.scores["accuracy"], [0.25, 0.5])
    assert np.isnan(first.scores["overdeterminedness"]).all()
    assert first.suppression[0, 1] == first.resampling[0, 1] == 0.75 and np.isnan(first.resampling[1]).all()
    assert second.suppression is None and second.resampling is None


def test_what_is_no_data_of_published_traces_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="chunks_labeled"):
        read_published_traces(tmp_path / "data" / "some-model" / "incorrect_base_solution" / "problem_7")
    with pytest.raises(ValueError, match="cannot read published traces"):
        read_published_traces(tmp_path / "nothing.tar.gz")
    broken = folder / "some-model" / "correct_base_solution" / "problem_7" / "chunks_labeled.json"
    broken.write_text("[{")
    with pytest.raises(ValueError, match="damaged"):
        read_published_traces(folder)
