"""Heatmaps: reading of subword conventions, colours, tooltips, scales, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.reporting import TokenHeatmap, TokenHeatmaps
from jaxcore.reporting.heatmaps import display_tokens, heatmap_view, subword_convention, word_groups


def read(tokens: list[str]) -> str:
    return "".join(before + text for text, before in display_tokens(tokens))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["[CLS]", "un", "##believ", "##able", ",", "he", "did", "##n", "'", "t", ".", "[SEP]"],
         "[CLS] unbelievable, he didn't. [SEP]"),
        (["(", "well", ")", "so"], "(well) so"),
        (["the", "author", "'", "s", "style"], "the author's style"),
        (["'", "quoted", "'", "words"], "' quoted ' words"),
        (["<s>", "ĠHe", "Ġwro", "te", "ĠcafÃ©", ".", "</s>"], "<s> He wrote café. </s>"),
        (["Ġa", "Ċ", "b"], "a⏎\nb"),
        (["Ġa", "âĢ", "Ķ"], "a‹e2 80›‹94›"),
        (["▁Hello", "▁wor", "ld", "▁", "!"], "Hello world␣!"),
        (["plain", "", " "], "plain ∅ ␣"),
        (["##", "is", "kept"], "## is kept"),
    ],
)  # fmt: skip
def test_subwords_are_joined_as_a_reader_expects(tokens, text):
    assert read(tokens) == text


def test_conventions():
    assert subword_convention(["a", "##b"]) == "wordpiece"
    assert subword_convention(["a", "Ġb"]) == "bytes"
    assert subword_convention(["▁a", "b"]) == "sentencepiece"
    assert subword_convention(["a", "b"]) == "words"


@given(st.text(st.characters(exclude_categories=("Cs", "Zs", "Cc")), min_size=1, max_size=20))
def test_byte_level_text_is_decoded_exactly(word):
    # The table of GPT-2, written another way: printable Latin-1 bytes keep their code, others count from 256.
    code = {}
    for byte in range(256):
        keeps = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        code[byte] = chr(byte) if keeps else chr(256 + sum(not k for k in keeps_before(byte)))
    token = "".join(code[byte] for byte in (" " + word).encode())
    assert display_tokens(["Ġx", token])[1] == (word, " ")


def keeps_before(byte: int) -> list[bool]:
    return [33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255 for b in range(byte)]


def test_published_byte_level_tokenizer_round_trips():
    tokenizers = pytest.importorskip("tokenizers")
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "He naïvely wrote “café” twice, didn't he?"
    tokens = [piece for piece, _ in pre.pre_tokenize_str(text)]
    assert any(token.startswith("Ġ") for token in tokens)
    assert read(tokens) == text


def test_cells_carry_sign_strength_and_value():
    view = heatmap_view(
        TokenHeatmap(["a", "b", "c", "d"], [0.5, -0.25, 0.0, math.nan], marked=[True, False, False, True])
    )
    assert [(cell.kind, cell.strength) for cell in view.cells] == [
        ("positive", "1"),
        ("negative", "0.5"),
        ("zero", "0"),
        ("nan", "0"),
    ]
    assert [cell.title for cell in view.cells] == [
        "a: +0.500 (true marker)",
        "b: -0.250",
        "c: 0.000",
        "d: not a number (true marker)",
    ]
    assert (view.low, view.high) == ("-0.500", "+0.500")
    assert view.has_nan and view.has_marked
    assert view.strongest == (("a", "+0.500", True), ("b", "-0.250", False))


def test_a_given_limit_saturates_and_says_so():
    view = heatmap_view(TokenHeatmap(["a", "b"], [2.0, 0.5], limit=1.0))
    assert [cell.strength for cell in view.cells] == ["1", "0.5"]
    assert (view.low, view.high) == ("≤ -1.00", "≥ +1.00")
    shared = heatmap_view(TokenHeatmap(["a"], [1.0]), limit=4.0)
    assert shared.cells[0].strength == "0.25" and shared.high == "+4.00"


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, math.nan], [math.inf, -math.inf], [1e-30, 5e-31]])
def test_degenerate_values_are_drawn(values):
    view = heatmap_view(TokenHeatmap(["a", "b"], values))
    assert [0.0 <= float(cell.strength) <= 1.0 for cell in view.cells] == [True, True]
    if math.isinf(values[0]):
        assert [cell.strength for cell in view.cells] == ["1", "1"]
        assert view.cells[0].title == "a: +inf" and view.cells[1].title == "b: -inf"


def test_a_new_part_begins_on_a_line_of_its_own_behind_a_mark():
    view = heatmap_view(TokenHeatmap(["two", "parts", ".", "here"], [1.0, 0.0, 2.0, -1.0], breaks=[2]))
    assert "".join(cell.before + cell.text for cell in view.cells) == "two parts\n‖ . here"
    assert [cell.kind for cell in view.cells] == ["positive", "zero", "zero", "positive", "negative"]
    assert view.summary == "4 tokens coloured by attribution" and "‖" not in [token for token, _, _ in view.strongest]
    with pytest.raises(ValueError, match=r"breaks must be numbers of the 2 tokens, from 0: got \[2\]"):
        TokenHeatmap(["two", "parts"], [1.0, 0.0], breaks=[2])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_strength_is_linear_in_the_value_and_odd(values):
    tokens = [f"t{i}" for i in range(len(values))]
    largest = max(map(abs, values))
    cells = heatmap_view(TokenHeatmap(tokens, values)).cells
    mirrored = heatmap_view(TokenHeatmap(tokens, [-value for value in values])).cells
    for value, cell, mirror in zip(values, cells, mirrored, strict=True):
        expected = abs(value) / largest if largest else 0.0
        assert float(cell.strength) == pytest.approx(expected, abs=0.0051)
        assert mirror.strength == cell.strength
        assert {cell.kind, mirror.kind} == ({"positive", "negative"} if value else {"zero"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenHeatmap([], []), "non-empty sequence"),
        (lambda: TokenHeatmap("abc", [1, 2, 3]), "non-empty sequence"),
        (lambda: TokenHeatmap(["a", "b"], [1.0]), r"2 tokens but values of shape \(1,\)"),
        (lambda: TokenHeatmap(["a"], np.zeros((1, 2))), r"shape \(1, 2\)"),
        (lambda: TokenHeatmap(["a"], [1.0], marked=[True, False]), "1 tokens but 2 entries in marked"),
        (lambda: TokenHeatmap(["a"], [1.0], limit=0.0), "limit must be a positive finite number"),
        (lambda: TokenHeatmap(["a"], [1.0], limit=math.nan), "limit must be a positive finite number"),
        (lambda: TokenHeatmaps([]), "heatmaps is empty"),
        (
            lambda: TokenHeatmaps(["a"]),  # type: ignore[list-item]
            r"heatmaps\[0\] is a str",
        ),
        (lambda: TokenHeatmaps([TokenHeatmap(["a"], [1.0])], limit=-1), "limit must be"),
    ],
)
def test_bad_input_is_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tokens", "groups"),
    [
        (["[CLS]", "un", "##fair", ",", "he", "[SEP]"], [0, 1, 1, 2, 3, 4]),
        (["<s>", "Un", "fair", ".", "Ġhe", "Ġdon", "'t", "</s>"], [0, 1, 1, 2, 3, 4, 4, 5]),
        (["▁Un", "fair", ".", "▁he", "▁", "!"], [0, 0, 1, 2, 3, 4]),
        (["well", "-", "made"], [0, 1, 2]),
        ([], []),
    ],
)
def test_subwords_of_a_word_share_its_number(tokens, groups):
    assert word_groups(tokens) == groups
