"""Heatmaps side by side, layer maps, agreement matrices: what they show in the terminal and on the page."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxcore.reporting import Report, Section, TokenHeatmap, TokenHeatmaps, render_report, text_table
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.token_maps import (
    AgreementMatrix,
    LayerTokenMap,
    blended,
    printable,
    side_by_side,
    terminal_heatmaps,
)

TOKENS = ["un", "##fair", "<b>", "it", "is"]
AGREEMENT = AgreementMatrix(
    ["lime", "ig & shap", "attention"],
    [[1, 0.5, 0.126], [0.5, 1, np.nan], [0.126, np.nan, 1]],
    [[0, 0.25, 0.36], [0.25, 0, np.nan], [0.36, np.nan, 0]],
    measure="tau",
    caption="BiLSTM",
)


def printed(renderable, *, colour=True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=colour, color_system="truecolor" if colour else None, width=200)
    console.print(renderable)
    return stream.getvalue()


def ansi(colour: str) -> str:
    return "48;2;" + ";".join(str(channel) for channel in bytes.fromhex(colour[1:]))


def test_methods_stand_side_by_side_each_on_its_own_scale():
    block = side_by_side(TOKENS, {"saliency": [100, 0, 0, 0, 50], "lime": [0, 0.1, 0, 0, -0.2]}, caption="Why")
    assert [h.caption for h in block.heatmaps] == ["saliency", "lime"] and block.limit is None
    text = printed(terminal_heatmaps(block), colour=False)
    assert text.split("\n")[:5] == ["Why", "saliency", "unfair <b> it is", "lime", "unfair <b> it is"]
    coloured = printed(terminal_heatmaps(block))
    assert coloured.count(ansi(PALETTE["positive"][0])) == 1  # 100 of 100
    assert coloured.count(ansi(blended("positive", 0.5))) == 2  # 50 of 100, 0.1 of 0.2
    assert coloured.count(ansi(PALETTE["negative"][0])) == 1
    page = render_report(Report("r", sections=[Section("s", [block])]))
    assert "&lt;b&gt;" in page and "<b>" not in page.split("<main")[-1]
    with pytest.raises(ValueError, match="give at least one"):
        side_by_side(TOKENS, {})
    with pytest.raises(ValueError, match="5 tokens but values of shape"):
        side_by_side(TOKENS, {"a": [1, 2]})


def test_a_colour_is_linear_between_white_and_the_palette():
    assert blended("positive", 0) == "#ffffff" and blended("negative", 1) == PALETTE["negative"][0]
    middle = bytes.fromhex(blended("positive", 0.5)[1:])
    for channel, full in zip(middle, bytes.fromhex(PALETTE["positive"][0][1:]), strict=True):
        assert abs(channel - (255 + full) / 2) <= 0.5


def test_terminal_text_cannot_steer_the_terminal():
    tokens = ["a\x1b[31m", "[bold]b[/]", "c\u202ed", "e\x07"]
    for block in (
        TokenHeatmap(tokens, [1, 2, 3, 4], caption="\x1b]0;x\x07"),
        side_by_side(tokens, {"\x1b[2J": range(4)}),
    ):
        text = printed(terminal_heatmaps(block), colour=False)
        assert not set("\x1b\x07\u202e") & set(text)
        assert "[bold]b[/]" in text  # no markup of rich either
    assert printable("a\nb\x00") == "a b\ufffd"


def test_marked_and_missing_values_show():
    block = TokenHeatmap(["a", "b"], [np.nan, 1.0], marked=[False, True])
    text = printed(terminal_heatmaps(block))
    assert "\x1b[2;9m" in text  # dim and struck through: not a number
    assert "\x1b[4;" in text  # underlined


def test_layers_share_one_scale():
    layers = LayerTokenMap(TOKENS, [[1, 0, 0, 0, 0], [0, -4, 0, 0, 0]], caption="By layer")
    block = layers.heatmaps()
    assert isinstance(block, TokenHeatmaps) and block.limit == 4
    assert [h.caption for h in block.heatmaps] == ["layer 0", "layer 1"]
    text = printed(terminal_heatmaps(layers))
    assert ansi(blended("positive", 0.25)) in text and ansi(PALETTE["negative"][0]) in text
    assert LayerTokenMap(TOKENS, np.zeros((2, 5)), ["low", "high"]).heatmaps().limit is None
    with pytest.raises(ValueError, match=r"5 tokens but values of shape \(5,\)"):
        LayerTokenMap(TOKENS, np.zeros(5))
    with pytest.raises(ValueError, match="values have 2 layers but layers names 1"):
        LayerTokenMap(TOKENS, np.zeros((2, 5)), ["low"])


def test_agreement_is_mean_and_deviation_of_every_pair():
    assert AGREEMENT.cells() == [
        ["1.00", "0.50 ± 0.25", "0.13 ± 0.36"],
        ["0.50 ± 0.25", "1.00", "–"],
        ["0.13 ± 0.36", "–", "1.00"],
    ]
    table = AGREEMENT.table()
    assert "attention" in text_table(table.columns, table.rows).splitlines()[0]
    page = render_report(Report("r", sections=[Section("s", [table])]))
    assert "ig &amp; shap" in page and "ig & shap" not in page and "0.50 ± 0.25" in page
    assert AgreementMatrix(["a"], [[0.5]]).cells(3) == [["0.500"]]
    with pytest.raises(ValueError, match="distinct"):
        AgreementMatrix(["a", "a"], np.eye(2))
    with pytest.raises(ValueError, match=r"std of shape \(3, 2\)"):
        AgreementMatrix(["a", "b"], np.eye(2), np.zeros((3, 2)))
