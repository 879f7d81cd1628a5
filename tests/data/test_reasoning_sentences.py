"""Where chains of thought are cut, by hand and on published traces, and which tokens sentences have."""

import re

import numpy as np
import pytest

from jaxcore.data.published_traces import read_published_traces
from jaxcore.data.reasoning_sentences import sentence_spans, split_sentences, token_spans
from jaxcore.data.reasoning_trace import ReasoningTrace, cut_trace


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First we add. Then we stop here! Is it right? rest", ["First we add.", "Then we stop here!", "Is it right?"]),
        ("The value 3.14159 is no end. Yes it is", ["The value 3.14159 is no end."]),  # "." before a digit
        ("One paragraph here\n\nAnother one here\r\n\r\nand a tail", ["One paragraph here", "Another one here"]),
        ("A line ends here.\nThe next one does. ", ["A line ends here.", "The next one does."]),
        (
            "Ah. Wait. That is not right at all. So",
            ["Ah. Wait. That is not right at all."],
        ),  # short ones join the next
        ("That is a sentence. Yes. no end", ["That is a sentence. Yes."]),  # the last one joins the previous
        ("Ok. rest", ["Ok."]),  # nothing to join
        ("Prompt. <think>\nInside we go. And on. </think> Outside we stop. x", ["Inside we go."]),
        ("Is this one cut? Ends with a mark.", ["Is this one cut?"]),  # nothing follows the last mark
    ],
)
def test_cuts_by_hand(text, expected):
    assert split_sentences(text) == expected
    spans = sentence_spans(text)
    assert [text[start:end] for start, end in spans] == expected


def test_text_behind_the_last_boundary_is_dropped_or_kept():
    text = "<think>Inside we go. And on we go.</think>"
    assert split_sentences(text) == ["Inside we go."]
    assert split_sentences(text, tail="keep") == ["Inside we go.", "And on we go."]
    assert split_sentences("A whole sentence. Tail", tail="keep") == ["A whole sentence. Tail"]


@pytest.mark.parametrize(
    "text", ["no boundary at all", "", "  \n ", "<think></think> Outside it ends. x", "3.5 is it."]
)
def test_a_text_without_boundary_is_an_error(text):
    with pytest.raises(ValueError, match="no sentence boundary"):
        sentence_spans(text)


def test_published_sentences_are_cut_again_where_they_were(shared_data):
    """Cutting the sentences of every published trace, in paragraphs, gives them back."""
    file = shared_data / "reasoning" / "thought_anchors" / "traces.tar.gz"
    if not file.is_file():
        pytest.skip(f"no published traces at {file}")
    traces = read_published_traces(file)
    assert len(traces) == 40 and sum(len(trace.sentences) for trace in traces) == 5814
    for trace in traces:
        found = split_sentences("\n\n".join(trace.sentences), tail="keep")
        assert [re.sub(r"\s+", " ", text) for text in found] == [re.sub(r"\s+", " ", text) for text in trace.sentences]


def test_tokens_belong_to_the_sentence_whose_characters_they_have():
    text = "Let us add. Then stop there now."
    spans = [(0, 11), (12, 32)]
    offsets = [(0, 0), (0, 3), (3, 6), (6, 10), (10, 11), (11, 16), (16, 21), (21, 31), (31, 32)]
    np.testing.assert_array_equal(token_spans(offsets, spans), [[1, 5], [5, 9]])
    shared = [(0, 10), (10, 16), (16, 32)]  # the second token is of both: the first sentence has it
    np.testing.assert_array_equal(token_spans(shared, spans), [[0, 2], [2, 3]])
    with pytest.raises(ValueError, match=r"sentence 1 .* has no token"):
        token_spans([(0, 10), (10, 32)], spans)
    sentences, found = cut_trace(text + " x", range(10), [*offsets, (32, 34)])
    assert sentences == ("Let us add.", "Then stop there now.")
    np.testing.assert_array_equal(found, [[1, 5], [5, 9]])
    with pytest.raises(ValueError, match="9 tokens, but 2 offsets"):
        cut_trace(text, range(9), offsets[:2])


def test_prefixes_end_before_each_sentence_and_behind_the_last():
    trace = ReasoningTrace(
        "t", "", tuple(range(9)), ("Let us add.", "Then stop."), np.array([[1, 4], [4, 7]]),
        ("plan_generation", "unknown"), "3", "3",
    )  # fmt: skip
    assert trace.prefixes() == [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    with pytest.raises(ValueError, match="1 labels for 2 sentences"):
        ReasoningTrace("t", "", (1,), ("a", "b"), np.zeros((2, 2)), ("unknown",), "", "")
