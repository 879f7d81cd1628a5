"""Attributions side by side: several methods on one text, layers x tokens, agreement of methods; and the terminal.

What is shown is data; each way to show it takes the same data:

                      HTML (blocks of a report)   terminal             LaTeX (latex.py)    PNG (figures.py)
    TokenHeatmap(s)   itself                      terminal_heatmaps    latex_heatmaps      write_png
    LayerTokenMap     .heatmaps()                 terminal_heatmaps    latex_heatmaps      write_png
    AgreementMatrix   .table()                    text_table           latex_table         write_png
    ImageOverlay      itself                                                               write_png
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Group
from rich.style import Style
from rich.text import Text

from jaxcore.reporting.heatmaps import HeatmapView, TokenCell, TokenHeatmap, TokenHeatmaps, heatmap_view
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.tables import MISSING, Table, format_number


@dataclass(frozen=True)
class LayerTokenMap:
    """One value for each layer and token of a text, such as what each layer adds to the score at each token.

    Args:
        tokens: the T tokens as the tokenizer gives them.
        values: [layers, T], all of one unit: one colour scale serves all layers.
        layers: a name for each row; by default "layer 0", "layer 1", ...
        caption: what is shown.

    Raises:
        ValueError: values of another shape, names of another number.
    """

    tokens: Sequence[str]
    values: ArrayLike
    layers: Sequence[str] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        shape = np.shape(self.values)
        if isinstance(self.tokens, str) or len(shape) != 2 or shape[1] != len(self.tokens) or 0 in shape:
            raise ValueError(f"{len(self.tokens)} tokens but values of shape {shape}: give [layers, tokens]")
        if self.layers is not None and len(self.layers) != shape[0]:
            raise ValueError(f"values have {shape[0]} layers but layers names {len(self.layers)}: name each")

    def names(self) -> list[str]:
        """The name of each row."""
        count = np.shape(self.values)[0]
        return [f"layer {index}" for index in range(count)] if self.layers is None else [str(n) for n in self.layers]

    def heatmaps(self) -> TokenHeatmaps:
        """A heatmap per layer on one colour scale."""
        values = np.asarray(self.values, np.float64)
        limit = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        maps = [TokenHeatmap(self.tokens, row, caption=name) for row, name in zip(values, self.names(), strict=True)]
        return TokenHeatmaps(maps, self.caption, limit=limit if limit > 0 else None)


@dataclass(frozen=True)
class AgreementMatrix:
    """How far explanation methods agree: mean over instances for every pair, and its standard deviation.

    Args:
        names: of the N methods.
        mean: [N, N], such as mean Kendall tau-b; NaN where not measured.
        std: [N, N] over instances, or None.
        measure: what the numbers are.
        caption: what was compared.

    Raises:
        ValueError: shapes that do not fit the names, names that occur twice.
    """

    names: Sequence[str]
    mean: ArrayLike
    std: ArrayLike | None = None
    measure: str = "agreement"
    caption: str = ""

    def __post_init__(self) -> None:
        count = len(self.names)
        if isinstance(self.names, str) or count == 0 or len(set(self.names)) != count:
            raise ValueError(f"names must be distinct, one for each method: got {self.names!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and np.shape(values) != (count, count):
                raise ValueError(f"{count} names but {name} of shape {np.shape(values)}: give [{count}, {count}]")

    def cells(self, digits: int = 2) -> list[list[str]]:
        """Every entry as text: "0.73 ± 0.12", or "–" where not measured; the diagonal has no deviation."""
        mean = np.asarray(self.mean, np.float64)
        std = None if self.std is None else np.asarray(self.std, np.float64)
        return [
            [_entry(mean, std, row, column, digits) for column in range(len(self.names))]
            for row in range(len(self.names))
        ]

    def table(self, digits: int = 2) -> Table:
        """The matrix as a block of a report, and for `text_table` and `latex_table`."""
        rows = [[name, *cells] for name, cells in zip(self.names, self.cells(digits), strict=True)]
        return Table([self.measure, *self.names], rows, caption=self.caption)


Heatmaps: TypeAlias = TokenHeatmap | TokenHeatmaps | LayerTokenMap


def side_by_side(tokens: Sequence[str], methods: Mapping[str, ArrayLike], *, caption: str = "") -> TokenHeatmaps:
    """One text as several methods explain it, a heatmap each.

    Methods have different units, so each has its own colour scale: compare where the colour is, not how strong.

    Args:
        tokens: of the text.
        methods: name -> one value per token.

    Raises:
        ValueError: no methods, values of another length.
    """
    return TokenHeatmaps([TokenHeatmap(tokens, values, caption=name) for name, values in methods.items()], caption)


def heatmap_views(heatmaps: Heatmaps) -> tuple[str, list[HeatmapView]]:
    """The common caption ("" for a single heatmap) and each heatmap ready to draw."""
    if isinstance(heatmaps, LayerTokenMap):
        heatmaps = heatmaps.heatmaps()
    if isinstance(heatmaps, TokenHeatmap):
        return "", [heatmap_view(heatmaps)]
    return heatmaps.caption, [heatmap_view(item, limit=heatmaps.limit) for item in heatmaps.heatmaps]


def terminal_heatmaps(heatmaps: Heatmaps) -> Group:
    """Heatmaps for `rich.print`: tokens on their colours, dark text, marked tokens underlined, captions in bold.

    Control characters of the text, which could move the cursor or recolour the terminal, are made visible.
    """
    caption, views = heatmap_views(heatmaps)
    lines = [Text(printable(caption), style="bold")] if caption else []
    for view in views:
        if view.caption:
            lines.append(Text(printable(view.caption), style="bold" if len(views) == 1 else "italic"))
        lines.append(_coloured(view))
    return Group(*lines)


def cell_colour(cell: TokenCell) -> str | None:
    """The background of a token as "#rrggbb", its colour in the light palette on white; None for no colour."""
    if cell.kind not in ("positive", "negative"):
        return None
    return blended(cell.kind, float(cell.strength))


def blended(name: str, strength: float) -> str:
    """A colour of the light palette mixed with white: `strength` 1 is the colour itself."""
    channels = bytes.fromhex(PALETTE[name][0][1:])
    return "#" + "".join(f"{round(255 + strength * (channel - 255)):02x}" for channel in channels)


def printable(text: str) -> str:
    """`text` in one line, without characters that steer a terminal or turn the direction of writing."""
    return "".join("\ufffd" if _steers(character) else character for character in text.replace("\n", " "))


def printable_lines(text: str) -> str:
    """`printable` line by line."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def _coloured(view: HeatmapView) -> Text:
    line = Text()
    for cell in view.cells:
        line.append(cell.before)
        colour = cell_colour(cell)
        style = Style(color=PALETTE["text"][0] if colour else None, bgcolor=colour, underline=cell.marked or None)
        if cell.kind == "nan" or cell.special:
            style += Style(dim=True, strike=cell.kind == "nan" or None)
        line.append(printable(cell.text), style)
    return line


def _entry(mean: np.ndarray, std: np.ndarray | None, row: int, column: int, digits: int) -> str:
    value = float(mean[row, column])
    if math.isnan(value):
        return MISSING
    text = format_number(value, digits)
    if std is None or row == column or math.isnan(float(std[row, column])):
        return text
    return f"{text} ± {format_number(float(std[row, column]), digits)}"
