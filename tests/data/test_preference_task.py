"""Tasks of the generated language and of a file: sizes, balance, control, what is trained on."""

import json

import numpy as np
import pytest

from jaxcore.data.preference_task import PreferenceDataConfig, mask_token, open_preference_task, preferred_rows
from jaxcore.data.two_source_world import CONTROL, QUESTION

SMALL = PreferenceDataConfig(num_steer=10, num_validation=16, num_test=24, num_texts=50)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", *(f"w{number}" for number in range(9))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def test_the_generated_language_has_balanced_questions_and_a_control():
    task = open_preference_task(SMALL, seed=0)
    sizes = [len(part["prompt_ids"]) for part in (task.steer, task.validation, task.test)]
    assert sizes == [10, 16, 24] and len(task.training["input_ids"]) == 50
    words = {name: [task.names(row) for row in getattr(task, name)["prompt_ids"]] for name in ("validation", "test")}
    for texts in words.values():
        for text in texts:
            hints = [word.rstrip("0123456789") for word in text[4:-1]]
            assert hints.count("yes") == hints.count("no") and text[-1] == "?"
    assert not {tuple(text) for text in words["validation"]} & {tuple(text) for text in words["test"]}
    for name, size in (("validation", 16), ("test", 24)):
        rows, answers = task.control[name]
        assert len(answers) == size and (rows["prompt_ids"][:, -1] == CONTROL).all()
        for text, answer in zip(rows["prompt_ids"], answers, strict=True):
            fact = next(word for word in task.names(text) if word.startswith("N"))
            assert task.names([answer]) == ["=" + fact[1:]]
    rows, signs = task.classes
    assert set(signs) == {-1, 0, 1} and (rows["prompt_ids"][:, -1] == QUESTION).all()
    assert task.hint_signs.shape == task.steer["prompt_ids"].shape


def test_the_seed_decides():
    first, again, other = (open_preference_task(SMALL, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.steer["prompt_ids"], again.steer["prompt_ids"])
    assert (first.steer["prompt_ids"] != other.steer["prompt_ids"]).any()


def test_pairs_of_a_file_make_three_parts(tokenizer, tmp_path):
    texts = np.random.default_rng(0).permuted(np.tile([f"w{number}" for number in range(9)], (30, 1)), axis=1)
    pairs = [{"prompt": " ".join(row[:4]), "chosen": row[4], "rejected": f"{row[5]} w0"} for row in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = PreferenceDataConfig(str(tmp_path / "pairs.jsonl"), 8, 6, 0, prompt_length=6, response_length=2)
    task = open_preference_task(config, seed=0, tokenizer=tokenizer)
    assert [len(part["prompt_ids"]) for part in (task.steer, task.validation, task.test)] == [8, 6, 16]
    assert task.training is None and task.fill == 0 and not task.control
    assert task.names(task.steer["prompt_ids"][0])[-1].startswith("w")
    rows = preferred_rows(task.steer)
    assert rows["input_ids"].shape == (8, 8) and rows["target_mask"][:, :6].sum() == 0
    np.testing.assert_array_equal(rows["target_mask"][:, 6:], task.steer["chosen_mask"])
    np.testing.assert_array_equal(rows["attention_mask"][:, :6], task.steer["prompt_mask"])


def test_what_cannot_work_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must be at least 1"):
        PreferenceDataConfig(num_test=0)
    with pytest.raises(ValueError, match="no file or folder at"):
        open_preference_task(PreferenceDataConfig("/none.jsonl"), seed=0, tokenizer=tokenizer)
    tokenizer = type("Tokenizer", (), {"pad_token_id": None, "eos_token_id": None, "unk_token_id": None})()
    with pytest.raises(ValueError, match="no pad, end or unknown token"):
        mask_token(tokenizer)
