"""Heatmaps, layer x token maps, agreement matrices and image overlays as PNG files.

Drawn by Matplotlib's object interface, without pyplot; text of the caller is never read as mathematics or TeX.
"""

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from jaxcore.reporting.heatmaps import HeatmapView, TokenCell, TokenHeatmap, TokenHeatmaps, display_tokens
from jaxcore.reporting.image_overlays import ImageOverlay, Picture, pictures
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.token_maps import AgreementMatrix, LayerTokenMap, cell_colour, heatmap_views, printable

_FONT_POINTS = 11
_CHARACTER_INCHES = 0.602 * _FONT_POINTS / 72  # advance of DejaVu Sans Mono, which Matplotlib brings along
_LINE_INCHES = 0.26
_COLUMNS = 88
_PANEL_INCHES, _PANELS_ABREAST = 2.6, 4
_PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}


Shown: TypeAlias = TokenHeatmap | TokenHeatmaps | LayerTokenMap | AgreementMatrix | ImageOverlay


def write_png(path: str | os.PathLike[str], shown: Shown, *, dpi: int = 150) -> None:
    """`png_bytes` in a file, which appears whole or, after any failure, not at all. Missing folders are made.

    Raises:
        ValueError: dpi below 1.
    """
    content = png_bytes(shown, dpi=dpi)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def png_bytes(shown: Shown, *, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG.

    Token heatmaps are running text on colours; a `LayerTokenMap` is a grid with a colour bar, an `AgreementMatrix` one
    with mean and standard deviation in every cell, an `ImageOverlay` the image and each method's colours over it.

    Raises:
        ValueError: dpi below 1.
    """
    if dpi < 1:
        raise ValueError(f"dpi must be at least 1, got {dpi}")
    stream = io.BytesIO()
    # Defaults first, so that a user's matplotlibrc (TeX, say) cannot change a figure; put back on leaving.
    with mpl.rc_context():
        mpl.rcdefaults()
        _figure(shown).savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def _figure(shown: Shown) -> Figure:
    if isinstance(shown, ImageOverlay):
        return _panels(pictures(shown), shown.caption)
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
        weight="bold" if isinstance(item, str) else "normal", color=PALETTE["text"][0], **_PLAIN,
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
    axes.set_xticks(range(len(below)), below, rotation=45, ha="right", rotation_mode="anchor", fontsize=9, **_PLAIN)
    axes.set_yticks(range(len(names)), names, fontsize=9, **_PLAIN)
    axes.tick_params(length=0)
    for row, line in enumerate(texts or ()):
        for column, text in enumerate(line):
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=PALETTE["text"][0], **_PLAIN)
    if texts is None:
        place = ((left + width + 0.15) / whole[0], bottom / whole[1], 0.15 / whole[0], height / whole[1])
        figure.colorbar(image, cax=figure.add_axes(place)).ax.tick_params(labelsize=8)
    if caption:
        figure.text(0.15 / whole[0], 1 - 0.25 / whole[1], printable(caption), va="center", fontsize=10, **_PLAIN)
    return figure


def _panels(shown: list[Picture], caption: str) -> Figure:
    """Pictures side by side, in rows of four, each with its name above and its colour scale below."""
    across = min(len(shown), _PANELS_ABREAST)
    down = -(-len(shown) // across)
    height, width = shown[0].pixels.shape[:2]
    picture = _PANEL_INCHES, _PANEL_INCHES * min(height / width, 3)
    cell = picture[0] + 0.25, picture[1] + 0.85
    top = 0.45 if caption else 0.1
    whole = max(across * cell[0] + 0.25, 0.09 * cell_len(caption) + 0.4), down * cell[1] + top
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    for index, item in enumerate(shown):
        row, column = divmod(index, across)
        left, bottom = 0.25 + column * cell[0], whole[1] - top - (row + 1) * cell[1] + 0.5
        place = left / whole[0], bottom / whole[1], picture[0] / whole[0], picture[1] / whole[1]
        axes = figure.add_axes(place)
        axes.imshow(item.pixels, interpolation="nearest" if item.is_small else "auto")
        axes.axis("off")
        axes.set_title(printable(item.name), fontsize=10, **_PLAIN)
        if item.ends:
            bar = figure.add_axes((place[0], (bottom - 0.16) / whole[1], place[2], 0.1 / whole[1]))
            scale = LinearSegmentedColormap.from_list("values", item.colours)
            bar.imshow(np.linspace(0, 1, 256)[None], cmap=scale, aspect="auto", extent=(0, 1, 0, 1))
            bar.set_yticks([])
            low, high = bar.set_xticks([0, 1], item.ends, fontsize=8, **_PLAIN)
            low.label1.set_horizontalalignment("left")
            high.label1.set_horizontalalignment("right")
            bar.tick_params(length=0)
    if caption:
        figure.text(0.25 / whole[0], 1 - 0.22 / whole[1], printable(caption), va="center", fontsize=10, **_PLAIN)
    return figure
