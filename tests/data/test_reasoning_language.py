"""The language of traces: every trace follows its rule, is cut into its sentences, and fits its length."""

import numpy as np
import pytest

from jaxcore.data import reasoning_language as language
from jaxcore.data.reasoning_sentences import sentence_spans, token_spans
from jaxcore.evaluation.boxed_answers import final_answer


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(0)
    return [language.draw_trace(rng) for _ in range(300)]


def digits(step):
    return [int(language.TOKENS[token]) for token in step.tokens if language.TOKENS[token].strip().isdigit()]


def test_values_follow_from_the_latest_plan_the_numbers_and_the_value_before(traces):
    switched = 0
    for trace in traces:
        (a, b), value = digits(trace.steps[0]), None
        rules, operands = [], iter((b, a, b))
        for place, step in enumerate(trace.steps):
            text = language.decode(step.tokens)
            if step.function in ("plan_generation", "uncertainty_management"):
                words = {0: ("add both", "plain adding"), 1: ("doubl", "double"), 2: ("tripling",)}
                rules.append((place, next(rule for rule, known in words.items() if any(w in text for w in known))))
            elif step.function == "active_computation":
                rule = rules[-1][1]
                value = language.apply_rule(rule, a if value is None else value, next(operands))
                assert digits(step) == [value] and rules[-1][0] in step.sources and 0 in step.sources
            elif step.function == "final_answer_emission":
                assert digits(step) == [value] and final_answer(language.decode(trace.tokens)) == str(value)
        switched += len(rules) > 1
        assert len({rule for _, rule in rules}) == len(rules), "a doubt changes the rule"
    assert 0.3 < switched / len(traces) < 0.5


def test_the_rules_for_any_text_find_the_sentences(traces):
    for trace in traces[:60]:
        text = language.decode(trace.tokens)
        spans = sentence_spans(text, tail="keep")
        offsets = [tuple(map(int, pair)) for pair in language.token_offsets(trace.tokens)]
        np.testing.assert_array_equal(token_spans(offsets, spans), trace.spans)
        assert [language.label_sentence(text[a:b]) for a, b in spans] == [step.function for step in trace.steps]


def test_edges_point_from_earlier_sentences_and_fillers_have_none(traces):
    for trace in traces[:60]:
        assert not trace.edges[np.tril_indices(len(trace.steps))].any()
        fillers = [step.function == "unknown" for step in trace.steps]
        assert not trace.edges[fillers].any() and not trace.edges[:, fillers].any()
        answer = [step.function for step in trace.steps].index("final_answer_emission")
        assert trace.edges[:, answer].sum() == 1


def test_length_gives_no_dependency_away(traces):
    """Fillers are as long as plans and computations, on average."""
    lengths = {True: [], False: []}
    for trace in traces:
        for step in trace.steps:
            if step.function in ("unknown", "plan_generation", "uncertainty_management", "active_computation"):
                lengths[step.function == "unknown"].append(len(step.tokens))
    assert abs(np.mean(lengths[True]) - np.mean(lengths[False])) < 0.5


def test_rows_hold_whole_traces_and_some_that_are_broken_off():
    rows = language.training_rows(200, np.random.default_rng(1))
    assert rows.input_ids.shape == (200, language.MAX_LENGTH) and rows.input_ids.max() < len(language.TOKENS)
    texts = [language.decode(row[: mask.sum()]) for row, mask in zip(rows.input_ids, rows.attention_mask, strict=True)]
    assert all(text.startswith("<think>") and text.endswith("<end>") for text in texts)
    forced = [text for text in texts if "So I say" in text]
    assert 10 < len(forced) < 60
    for text in forced:
        thought, answer = text.split("</think> So I say \\boxed{ ")
        values = [line[-1] for line in thought.split(".") if line.startswith(language._COMPUTATIONS)]
        assert not values or answer[0] == values[-1]
    computed = rows.input_ids[rows.is_computed]
    assert {language.TOKENS[token] for token in computed} == {f" {digit}" for digit in range(5)}
    with pytest.raises(ValueError, match="count must be at least 1"):
        language.training_rows(0, np.random.default_rng(0))
