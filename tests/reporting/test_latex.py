"""LaTeX: nothing of the text is a command, and what is typeset is what was there."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcore.reporting import Table, TokenHeatmap
from jaxcore.reporting.latex import escape_latex, latex_heatmaps, latex_table
from jaxcore.reporting.token_maps import AgreementMatrix, LayerTokenMap, side_by_side

COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    **{f"\\{c}": c for c in "{}$&#%_"},
    **{c + "{}": c for c in "-'\""},
}
PIECE = re.compile(
    "|".join(re.escape(c) for c in sorted(COMMANDS, key=len, reverse=True)) + r"|[^\\{}$&#%_^~<>|`\-'\"]"
)


@given(
    st.text(
        st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")) | st.sampled_from("\\{}$&#%_^~<>|`-'\""), max_size=30
    )
)
def test_escaped_text_holds_literals_only_and_reads_as_the_text(text):
    text = "".join(c for c in text if c not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    escaped = escape_latex(text)
    pieces = PIECE.findall(escaped)
    assert "".join(pieces) == escaped  # nothing active remains beside the literals
    assert "".join(COMMANDS.get(piece, piece) for piece in pieces) == text


def test_control_characters_do_not_reach_the_source():
    assert escape_latex("a\nb\x00c\x1b") == "a b\ufffdc\ufffd"


def test_heatmaps_are_colour_boxes():
    block = TokenHeatmap(["50%", "un", "##fair", "x_1"], [1, -1, 0, 0.5], caption="A & B", marked=[0, 0, 0, 1])
    text = latex_heatmaps(block)
    assert r"\textit{A \& B}" in text
    assert r"\colorbox[HTML]{F3A055}{\strut 50\%} \colorbox[HTML]{7DB3EA}{\strut un}\colorbox[HTML]{FFFFFF}" in text
    assert r"{\strut \underline{x\_1}}" in text
    assert text.count("{") == text.count("}") - 0
    both = latex_heatmaps(side_by_side(["a", "b"], {"ig": [1, 2], "li#me": [1, 0]}, caption="C%"))
    assert r"\textbf{C\%}" in both and both.index(r"\textit{ig}") < both.index(r"\textit{li\#me}")
    assert latex_heatmaps(LayerTokenMap(["a"], np.ones((3, 1)))).count(r"\colorbox") == 3


def test_tables_escape_every_cell():
    table = Table(["na_me", "R&D"], [["\\input{x}", 0.5], ["b", None]], caption="10 % of $x$")
    text = latex_table(table)
    assert r"\begin{tabular}{lr}" in text and r"\caption{10 \% of \$x\$}" in text
    assert r"na\_me & R\&D \\" in text and r"\textbackslash{}input\{x\} & 0.500 \\" in text and "b & – \\\\" in text
    assert "\\input" not in text
    matrix = latex_table(AgreementMatrix(["a", "b"], [[1, 0.5], [0.5, 1]], np.full((2, 2), 0.1)).table())
    assert "a & 1.00 & 0.50 ± 0.10 \\\\" in matrix and "table}" not in matrix
    with pytest.raises(ValueError):
        latex_table(Table(["a"], [[object()]]))
