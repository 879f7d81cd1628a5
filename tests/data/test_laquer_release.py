"""The reader of published example runs, on a run written by hand."""

import csv
import json

import pytest

from jaxcore.attribution.quoted_sources import parse_quotations
from jaxcore.attribution.text_spans import Span
from jaxcore.data.highlight_queries import CoarseRow, transfer_candidates
from jaxcore.data.laquer_release import read_released_runs


def write(folder, name, rows):
    with (folder / name).open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "MDS" / "E2E"
    folder.mkdir(parents=True)
    row = {"scuSentCharIdx": 0, "scuSentence": "Cats sleep.", "documentFile": "0.txt"}
    nothing = {"scuSentCharIdx": 12, "scuSentence": "Dogs bark.", "documentFile": None}
    documents = [{"documentFile": "0.txt", "documentText": ["All cats ", "sleep."]}]
    instance = {"documents": documents, "set_of_highlights_in_context": [row, nothing]}
    (folder / "results.json").write_text(json.dumps(instance))
    (folder / "config.json").write_text('{"aligned": true}')
    fact = {"fact_idx": "0", "fact": "Cats sleep", "sentence": "Cats sleep.", "is_sampled": "True"}
    facts = [{**fact, "local_factOffsets": "[(0, 10)]", "factOffsets": "[(0, 10)]"}]
    facts.append({**facts[0], "fact_idx": "1", "is_sampled": "False"})
    write(folder, "factscore.csv", facts)
    shown = json.dumps({"0.txt": "All cats sleep."})
    answers = [{"fact_idx": "0.0", "text": "cats sleep", "source_spans": shown}]
    answers.append({"fact_idx": "1.0", "text": "", "source_spans": ""})
    write(folder, "llm_responses.csv", answers)
    results = [{"fact_idx": "0", "documentFile": "0.txt", "docSpanOffsets": "[(4, 14)]"}]
    results += [{"fact_idx": "1", "documentFile": "0.txt", "docSpanOffsets": ""}]
    results += [{"fact_idx": "2", "documentFile": "", "docSpanOffsets": ""}]
    write(folder, "llm_results.csv", results)
    return tmp_path


def test_a_run_is_read_with_fall_backs_as_whole_documents(release):
    [run] = read_released_runs(release)
    assert run.name == "MDS/E2E" and run.aligned
    assert run.rows == (CoarseRow((0, 11), Span("0.txt", 0, 15)), CoarseRow((12, 22), None))
    assert run.attributed == {0: (Span("0.txt", 4, 14),), 1: (Span("0.txt", 0, 15),)}
    [answer] = run.answers
    assert parse_quotations(answer.answer, answer.shown) == list(answer.spans)
    assert [fact.sampled for fact in run.facts] == [True, False]
    assert transfer_candidates(run.rows, run.facts[0].output) == [Span("0.txt", 0, 15)]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run at"):
        read_released_runs(tmp_path)
