"""Heatmaps, layer x token maps and agreement matrices as PNG files.

Drawn by Matplotlib's object interface, without pyplot; text of the caller is never read as mathematics or TeX.
"""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from jaxcore.reporting.heatmaps import HeatmapView, TokenCell, TokenHeatmap, TokenHeatmaps, display_tokens
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.token_maps import AgreementMatrix, LayerTokenMap, cell_colour, heatmap_views, printable

_FONT_POINTS = 11
_CHARACTER_INCHES = 0.602 * _FONT_POINTS / 72  # advance of DejaVu Sans Mono, which Matplotlib brings along
_LINE_INCHES = 0.26
_COLUMNS = 88


def write_png(
    path: str | os.PathLike[str],
    shown: TokenHeatmap | TokenHeatmaps | LayerTokenMap | AgreementMatrix,
    *,
    dpi: int = 150,
) -> None:
    """Draw to a PNG file; it appears whole or, after any failure, not at all. Missing folders are made.

    Token heatmaps are running text on colours; a `LayerTokenMap` is a grid with a colour bar, an `AgreementMatrix` one
    with mean and standard deviation in every cell.

    Raises:
        ValueError: dpi below 1.
    """
    if dpi < 1:
        raise ValueError(f"dpi must be at least 1, got {dpi}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Defaults first, so that a user's matplotlibrc (TeX, say) cannot change a figure; put back on leaving.
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = _figure(shown)
        try:
            figure.savefig(partial, format="png", dpi=dpi, metadata={"Software": None})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _figure(shown: TokenHeatmap | TokenHeatmaps | LayerTokenMap | AgreementMatrix) -> Figure:
    if isinstance(shown, LayerTokenMap):
        tokens = [text for text, _ in display_tokens(shown.tokens)]
        values = np.asarray(shown.values, np.float64)
        return _grid(values, shown.names(), tokens, caption=shown.caption, cell=(0.42, 0.32))
    if isinstance(shown, AgreementMatrix):
        values = np.asarray(shown.mean, np.float64)
        texts = [[text.replace(" ± ", "\n± ") for text in row] for row in shown.cells()]
        caption = ": ".join(filter(None, (shown.measure, shown.caption)))
        return _grid(values, shown.names, shown.names, caption=caption, cell=(0.72, 0.52), texts=texts)
    return _running_text(*heatmap_views(shown))


def _running_text(caption: str, views: list[HeatmapView]) -> Figure:
    """Captions and wrapped tokens, line under line, on a grid of character cells."""
    placed: list[tuple[int, int, TokenCell | str]] = [(0, 0, caption)] if caption else []
    line = 1 if caption else 0
    for view in views:
        if view.caption:
            placed.append((line, 0, view.caption))
            line += 1
        cells = _wrapped(view, line)
        placed += cells
        line = cells[-1][0] + 2
    width = max(column + cell_len(_text(item)) for _, column, item in placed) + 2
    figure = Figure(figsize=(width * _CHARACTER_INCHES, line * _LINE_INCHES))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, width - 1), ylim=(line - 0.5, -0.75))
    axes.axis("off")
    for row, column, item in placed:
        _place(axes, row, column, item)
    return figure


def _wrapped(view: HeatmapView, line: int) -> list[tuple[int, int, TokenCell | str]]:
    placed: list[tuple[int, int, TokenCell | str]] = []
    column = 0
    for cell in view.cells:
        size = cell_len(_text(cell))
        column += cell.before == " "
        if cell.before == "\n" or (column and column + size > _COLUMNS):
            line, column = line + 1, 0
        placed.append((line, column, cell))
        column += size
    return placed


def _text(item: TokenCell | str) -> str:
    return printable(item if isinstance(item, str) else item.text)


def _place(axes: Axes, row: int, column: int, item: TokenCell | str) -> None:
    text = _text(item)
    if isinstance(item, TokenCell):
        box = (column, row - 0.42), cell_len(text), 0.84
        if item.kind == "nan":
            axes.add_patch(Rectangle(*box, facecolor="white", edgecolor=PALETTE["muted"][0], hatch="///", linewidth=0))
        elif colour := cell_colour(item):
            axes.add_patch(Rectangle(*box, facecolor=colour, linewidth=0))
        if item.marked:
            axes.plot([column, column + cell_len(text)], [row + 0.4] * 2, color=PALETTE["text"][0], linewidth=1.2)
    axes.text(
        column, row, text, family="DejaVu Sans Mono", fontsize=_FONT_POINTS, va="center_baseline",
        weight="bold" if isinstance(item, str) else "normal", color=PALETTE["text"][0], parse_math=False, usetex=False,
    )  # fmt: skip


def _grid(values, rows, columns, *, caption: str, cell: tuple[float, float], texts=None) -> Figure:
    """A matrix as coloured cells with names at the left and, slanted, below; a colour bar where cells have no text."""
    names = [printable(str(name)) for name in rows]
    below = [printable(str(name)) for name in columns]
    left = 0.3 + 0.085 * max(map(cell_len, names))
    bottom = 0.3 + 0.07 * max(map(cell_len, below))
    right, top = (0.3 if texts else 1.1), (0.5 if caption else 0.2)
    width, height = cell[0] * len(below), cell[1] * len(names)
    whole = (max(left + width + right, 0.09 * cell_len(caption) + 0.4), bottom + height + top)
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max(initial=0.0)) or 1.0
    scale = LinearSegmentedColormap.from_list(
        "signed", [PALETTE["negative"][0], "#ffffff", PALETTE["positive"][0]]
    ).with_extremes(bad=PALETTE["grid"][0])
    image = axes.imshow(np.ma.masked_invalid(values), cmap=scale, vmin=-limit, vmax=limit, aspect="auto")
    plain: dict[str, Any] = {"parse_math": False, "usetex": False}
    axes.set_xticks(range(len(below)), below, rotation=45, ha="right", rotation_mode="anchor", fontsize=9, **plain)
    axes.set_yticks(range(len(names)), names, fontsize=9, **plain)
    axes.tick_params(length=0)
    for row, line in enumerate(texts or ()):
        for column, text in enumerate(line):
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=PALETTE["text"][0], **plain)
    if texts is None:
        place = ((left + width + 0.15) / whole[0], bottom / whole[1], 0.15 / whole[0], height / whole[1])
        figure.colorbar(image, cax=figure.add_axes(place)).ax.tick_params(labelsize=8)
    if caption:
        figure.text(0.15 / whole[0], 1 - 0.25 / whole[1], printable(caption), va="center", fontsize=10, **plain)
    return figure
