"""Traces out of samples: the first right and the first wrong one, cut by the characters of the whole text."""

import json

import numpy as np
import pytest

from jaxcore.data.reasoning_problems import ReasoningProblem, read_problems
from jaxcore.evaluation.sampled_traces import choose_traces
from jaxcore.generation.rollouts import Rollout

WORDS = ["[UNK]", "[END]", "We", "add", "numbers.", "</think>", "\\boxed{5}", "\\boxed{6}", "\\boxed{5.0}", "Done."]
PROBLEM = ReasoningProblem("problem_7", "What is 2 + 3?", "5")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")


def rollout(text, stopped=True):
    return Rollout([WORDS.index(word) for word in text.split()] + [1] * stopped, stopped)


def test_the_first_right_and_the_first_wrong_trace_are_taken(tokenizer, tmp_path):
    attempts = [
        rollout("We add numbers. We add \\boxed{5}", stopped=False),  # cut off
        rollout("We add numbers."),  # no answer
        rollout("We add </think> \\boxed{5}"),  # no sentence
        rollout("We add numbers. We add numbers. </think> \\boxed{5.0}"),
        rollout("We add numbers. We add numbers. </think> \\boxed{5} Done."),
        rollout("We add numbers. We add We add We add numbers. Done. </think> \\boxed{6}"),
    ]
    right, wrong = choose_traces([PROBLEM], [attempts], tokenizer)
    assert (right.name, right.answer, right.truth) == ("problem_7_correct", "5.0", "5")
    assert (wrong.name, wrong.answer) == ("problem_7_incorrect", "6")
    assert right.sentences == ("We add numbers.",) and wrong.sentences[0] == "We add numbers."
    for trace in (right, wrong):
        start, end = trace.spans[0]
        assert [WORDS[token] for token in trace.tokens[start:end]] == ["We", "add", "numbers."]
        assert len(trace.tokens) > 10 and trace.functions == ("unknown",) * len(trace)
    for kind, count in (("correct", 1), ("incorrect", len(wrong))):
        (tmp_path / f"problem_7_{kind}.json").write_text(json.dumps(["plan_generation"] * count))
    labelled = choose_traces([PROBLEM], [attempts], tokenizer, labels=tmp_path)
    assert labelled[1].functions == ("plan_generation",) * len(wrong)
    with pytest.raises(ValueError, match="none of 1 problems"):
        choose_traces([PROBLEM], [attempts[:3]], tokenizer)
    assert choose_traces([PROBLEM], [attempts], tokenizer, max_tokens=len(right.tokens))[0].name == right.name
    with pytest.raises(ValueError, match="at most 5 tokens"):
        choose_traces([PROBLEM], [attempts], tokenizer, max_tokens=5)
    short = choose_traces([PROBLEM], [attempts], tokenizer, max_sentences=1)
    assert [trace.name for trace in short] == [right.name]


def test_problems_are_read_and_prompted_as_released(tmp_path):
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([{"problem_idx": "problem_7", "problem": "What is 2 + 3?", "gt_answer": 5, "level": 1}]))
    assert read_problems(file) == [PROBLEM]
    prompt = PROBLEM.prompt()
    assert prompt.startswith("Solve this math problem step by step.") and prompt.endswith(" Solution: \n<think>\n")
    assert "\\boxed{}" in prompt and "What is 2 + 3?" in prompt
    for content in ("{}", "[]", '[{"problem": "x"}]'):
        file.write_text(content)
        with pytest.raises(ValueError, match="JSON list of records with problem_idx"):
            read_problems(file)
    with pytest.raises(ValueError, match="cannot read problems"):
        read_problems(tmp_path / "none.json")


def test_published_problems_can_be_read(shared_data):
    file = shared_data / "reasoning" / "selected_problems.json"
    if not file.is_file():
        pytest.skip(f"no problems at {file}")
    problems = read_problems(file)
    assert len(problems) == 106 and all(np.array([bool(p.text and p.answer) for p in problems]))
