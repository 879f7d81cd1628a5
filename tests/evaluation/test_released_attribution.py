"""Agreement with example runs, on two written by hand: one that agrees and one that does not."""

import csv
import json

import pytest

from jaxcore.evaluation.released_attribution import released_agreement


def write_run(root, name, *, local, spans, answer, sentence_start):
    folder = root / name
    folder.mkdir(parents=True)
    rows = {
        "factscore.csv": {
            "fact_idx": 0, "fact": "Cats sleep", "sentence": "All cats sleep now.", "local_factOffsets": str(local),
            "factOffsets": str(local), "is_sampled": "True",
        },
        "llm_responses.csv": {
            "fact_idx": 0, "text": answer, "source_spans": json.dumps({"0.txt": "Most cats sleep. Dogs do not."}),
        },
        "llm_results.csv": {"fact_idx": 0, "documentFile": "0.txt" if spans else "", "docSpanOffsets": str(spans)},
    }  # fmt: skip
    for file, row in rows.items():
        with (folder / file).open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(row))
            writer.writeheader()
            writer.writerow(row)
    coarse = {"scuSentCharIdx": sentence_start, "scuSentence": "All cats sleep now.", "documentFile": "0.txt"}
    documents = [{"documentFile": "0.txt", "documentText": ["Most cats sleep. ", "Dogs do not."]}]
    instance = {"documents": documents, "set_of_highlights_in_context": [coarse]}
    (folder / "results.json").write_text(json.dumps(instance))
    (folder / "config.json").write_text('{"aligned": true}')


@pytest.fixture(scope="module")
def agreement(tmp_path_factory):
    root = tmp_path_factory.mktemp("release")
    write_run(root, "MDS/ALCE", local=[(4, 14)], spans=[(5, 15)], answer="cats sleep", sentence_start=0)
    write_run(root, "LFQA/E2E", local=[(0, 8)], spans=[(17, 21)], answer="many cats sleep", sentence_start=50)
    return released_agreement(root)


def test_equal_offsets_agree(agreement):
    one = {name.removeprefix("MDS/ALCE/"): value for name, value in agreement.items() if name.startswith("MDS")}
    assert one["highlights_identical"] == one["highlights_f1"] == 1
    assert one["quotations_identical"] == one["verbatim_identical"] == one["verbatim_answers"] == 1
    assert (one["characters"], one["without_candidates"]) == (10, 0)


def test_other_offsets_do_not(agreement):
    """Highlight [4, 14) against [0, 8): 4 of 10 and 8 characters; a quotation that no source has verbatim."""
    other = {name.removeprefix("LFQA/E2E/"): value for name, value in agreement.items() if name.startswith("LFQA")}
    assert other["highlights_identical"] == 0 and other["highlights_f1"] == pytest.approx(8 / 18)
    assert other["quotations_identical"] == other["quotations_f1"] == other["verbatim_answers"] == 0
    assert other["verbatim_identical"] == 1 and other["without_candidates"] == 1
    assert agreement["highlights_f1"] == pytest.approx((1 + 8 / 18) / 2)
