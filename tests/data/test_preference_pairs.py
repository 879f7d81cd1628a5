"""Preference pairs: files, what is refused and where, TruthfulQA, disjoint parts, arrays."""

import json
import os
import pathlib

import numpy as np
import pytest

from jaxcore.data.preference_pairs import (
    PreferencePair,
    encode_pairs,
    is_truthfulqa,
    preference_pairs,
    read_preference_pairs,
    read_truthfulqa,
    split_pairs,
)

RECORDS = [{"prompt": f"q{number}", "chosen": f"yes {number}", "rejected": "no"} for number in range(12)]
PAIRS = preference_pairs(RECORDS)
TRUTHFULQA = pathlib.Path(os.environ.get("JAXCORE_SHARED", "../shared")) / "data/truthfulqa/TruthfulQA.csv"


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_files_of_both_kinds_and_other_names(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(lines(*RECORDS))
    rows = "".join(f'{row["rejected"]},"{row["prompt"]}",{row["chosen"]}\n' for row in RECORDS)
    (tmp_path / "pairs.csv").write_text("bad,question,good\n" + rows)
    names = {"prompt_field": "question", "chosen_field": "good", "rejected_field": "bad"}
    assert read_preference_pairs(tmp_path / "pairs.jsonl") == PAIRS
    assert read_preference_pairs(tmp_path / "pairs.csv", **names) == PAIRS
    assert PAIRS[3] == PreferencePair("q3", "yes 3", "no")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, r"pairs.jsonl:3: missing field 'rejected'"),
        ({"prompt": "q", "chosen": " ", "rejected": "b"}, r"pairs.jsonl:3: field 'chosen' is blank"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, r"pairs.jsonl:3: field 'chosen' is int"),
        ({"prompt": "q", "chosen": "a ", "rejected": "a"}, r"record 3: chosen and rejected are equal \('a'\)"),
    ],
)
def test_a_record_that_is_no_pair_is_named(tmp_path, record, message):
    (tmp_path / "pairs.jsonl").write_text(lines(*RECORDS[:2], record))
    with pytest.raises(ValueError, match=message):
        read_preference_pairs(tmp_path / "pairs.jsonl")


def test_nothing_is_no_pairs(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n")
    for call, message in (
        (lambda: read_preference_pairs(tmp_path / "pairs.jsonl"), "no records"),
        (lambda: read_preference_pairs(tmp_path / "none.jsonl"), "no file"),
        (lambda: preference_pairs([]), "no preference pairs"),
        (lambda: preference_pairs([{"prompt": "q"}]), "list, record 1: missing field 'chosen'"),
        (lambda: PreferencePair("", "a", "b"), "prompt is blank"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def write_truthfulqa(path, *rows):
    head = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    path.write_text("\ufeff" + head + "".join(f"T,C,{row},S\n" for row in rows), encoding="utf-8")
    return path


def test_truthfulqa_pairs_the_best_answer_with_a_drawn_incorrect_one(tmp_path):
    incorrect = [f"w{number}" for number in range(8)]
    rows = [f"Why {row}?,best {row},good,{'; '.join(incorrect)}; best {row};" for row in range(30)]
    path = write_truthfulqa(tmp_path / "t.csv", *rows)
    pairs = read_truthfulqa(path, seed=1)
    assert is_truthfulqa(path) and len(pairs) == 30
    assert pairs[2].prompt == "Q: Why 2?\nA:" and pairs[2].chosen == "best 2"
    assert {pair.rejected for pair in pairs} <= set(incorrect) and len({pair.rejected for pair in pairs}) > 4
    assert read_truthfulqa(path, seed=1) == pairs != read_truthfulqa(path, seed=2)
    fewer = write_truthfulqa(tmp_path / "f.csv", *rows[:5])
    assert read_truthfulqa(fewer, seed=1) == pairs[:5]


def test_truthfulqa_that_is_damaged_is_refused(tmp_path):
    path = write_truthfulqa(tmp_path / "t.csv", "Why?,best,good,bad", "Why not?,best,good,best; ")
    with pytest.raises(ValueError, match=r"t.csv:3: a question needs a best and an incorrect answer"):
        read_truthfulqa(path)
    with pytest.raises(ValueError, match=r"template must hold \{question\}"):
        read_truthfulqa(path, template="Q:")
    (tmp_path / "o.csv").write_text("a,b\n1,2\n")
    assert not is_truthfulqa(tmp_path / "o.csv") and not is_truthfulqa(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no column 'Question'"):
        read_truthfulqa(tmp_path / "o.csv")
    with pytest.raises(ValueError, match="no file at"):
        read_truthfulqa(tmp_path / "none.csv")


def test_the_published_file():
    if not TRUTHFULQA.is_file():
        pytest.skip(f"no {TRUTHFULQA}: set JAXCORE_SHARED")
    pairs = read_truthfulqa(TRUTHFULQA)
    assert len(pairs) == 817 and all(pair.prompt.startswith("Q: ") for pair in pairs)
    parts = split_pairs(pairs, num_steer=50, num_validation=100, seed=3)
    assert [len(part) for part in (parts.steer, parts.validation, parts.test)] == [50, 100, 667]


def test_parts_share_no_prompt_and_follow_the_seed():
    repeated = [*PAIRS, *(PreferencePair(pair.prompt, "other", "no") for pair in PAIRS)]
    for seed in range(5):
        parts = split_pairs(repeated, num_steer=4, num_validation=3, seed=seed)
        prompts = [{pair.prompt for pair in part} for part in (parts.steer, parts.validation, parts.test)]
        assert len(parts.steer) == 4 and len(parts.validation) == 3
        assert len(set.union(*prompts)) == sum(map(len, prompts)) and set.union(*prompts) == {p.prompt for p in PAIRS}
    first = split_pairs(PAIRS, num_steer=4, num_validation=3, num_test=2, seed=0)
    assert first == split_pairs(PAIRS, num_steer=4, num_validation=3, num_test=2, seed=0)
    assert first != split_pairs(PAIRS, num_steer=4, num_validation=3, num_test=2, seed=1)
    assert len(first.test) == 2


def test_too_few_pairs_are_refused():
    for sizes, message in (
        ({"num_steer": 10, "num_validation": 2}, r"12 pairs are too few for 10 \+ 2 \+ at least 1"),
        ({"num_steer": 4, "num_validation": 4, "num_test": 5}, "too few"),
        ({"num_steer": 0, "num_validation": 4}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            split_pairs(PAIRS, **sizes)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per word; a text begins with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "no", "yes", "q1", "q2", "well", *map(str, range(9))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="no"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def test_arrays_are_padded_left_and_right_and_know_special_tokens(tokenizer):
    pairs = [PreferencePair("q1 well", "yes 3", "no"), PreferencePair("q2", "yes", "no 4")]
    rows = encode_pairs(pairs, tokenizer)
    assert rows["prompt_ids"].tolist() == [[0, 4, 6], [0, 0, 5]]
    assert rows["prompt_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert rows["special"].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert rows["chosen"].tolist() == [[3, 10], [3, 0]] and rows["chosen_mask"].tolist() == [[1, 1], [1, 0]]
    assert rows["rejected"].tolist() == [[2, 0], [2, 11]] and rows["rejected_mask"].tolist() == [[1, 0], [1, 1]]
    wider = encode_pairs(pairs, tokenizer, prompt_length=5, response_length=3)
    assert wider["prompt_ids"].shape == (2, 5) and wider["chosen"].shape == (2, 3)
    assert all(array.dtype == np.int32 for array in wider.values())
    for given, message in (
        ({"prompt_length": 2}, "pair 1: the prompt has 3 tokens, but only 2 fit"),
        ({"response_length": 1}, "pair 1: the chosen has 2 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_pairs(pairs, tokenizer, **given)
    with pytest.raises(ValueError, match="no preference pairs"):
        encode_pairs([], tokenizer)
