"""Heatmaps and tables as LaTeX to paste into a paper; everything that comes from outside is escaped.

Heatmaps need the package xcolor, tables booktabs. The source is UTF-8.
"""

from jaxcore.reporting.heatmaps import HeatmapView, TokenCell
from jaxcore.reporting.tables import Table, column_alignments, format_rows
from jaxcore.reporting.token_maps import Heatmaps, cell_colour, heatmap_views, printable

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # Without the braces two of them would become a dash, a closing quotation mark, an inverted ! or ?.
    "-": "-{}",
    "'": "'{}",
    '"': '"{}',
}


def escape_latex(text: str) -> str:
    """`text` as LaTeX prints it literally: no command, no comment, no ligature of marks; line breaks become spaces."""
    return "".join(_ESCAPES.get(character, character) for character in printable(text))


def latex_heatmaps(heatmaps: Heatmaps) -> str:
    r"""Heatmaps as paragraphs of `\colorbox`es with the token's colour; marked tokens are underlined."""
    caption, views = heatmap_views(heatmaps)
    parts = [rf"\noindent\textbf{{{escape_latex(caption)}}}\par"] if caption else []
    return "\n".join([*parts, *map(_paragraph, views)])


def latex_table(table: Table, *, digits: int = 3) -> str:
    r"""A table with booktabs rules; in a `table` environment with its caption if it has one.

    Numbers are formatted as in the terminal and on the page.
    """
    alignments = column_alignments(table.columns, table.rows, table.align)
    lines = [
        rf"\begin{{tabular}}{{{''.join(alignment[0] for alignment in alignments)}}}",
        r"\toprule",
        _row([str(name) for name in table.columns]),
        r"\midrule",
        *map(_row, format_rows(table.columns, table.rows, digits)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if not table.caption:
        return "\n".join(lines)
    opening = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(table.caption)}}}"]
    return "\n".join([*opening, *lines, r"\end{table}"])


def _paragraph(view: HeatmapView) -> str:
    caption = rf"\textit{{{escape_latex(view.caption)}}}\quad" + "\n" if view.caption else ""
    body = "".join(_separator(cell.before) + _box(cell) for cell in view.cells)
    return r"{\setlength{\fboxsep}{1pt}\noindent" + f"\n{caption}{body}" + r"\par}"


def _separator(before: str) -> str:
    return "\\newline\n" if before == "\n" else before


def _box(cell: TokenCell) -> str:
    text = escape_latex(cell.text)
    if cell.marked:
        text = rf"\underline{{{text}}}"
    colour = cell_colour(cell)
    # Plain tokens get a box too, so that all stand at equal distances.
    return rf"\colorbox[HTML]{{{(colour or '#ffffff')[1:].upper()}}}{{\strut {text}}}"


def _row(cells: list[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"
