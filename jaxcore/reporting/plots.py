"""Line charts as inline SVG that takes its colours from the page: the block type, and its drawing.

Matplotlib computes the geometry (object interface only; no pyplot, no state left behind). The SVG holds only
lines and the numbers at the ticks; names and labels are text of the page, where they wrap and are escaped.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from numpy.typing import ArrayLike

from jaxcore.reporting.palette import SERIES
from jaxcore.reporting.tables import format_number

if TYPE_CHECKING:  # it takes half a second to import, which commands without a chart need not wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Float[np.ndarray, " points"]

_WIDE, _NARROW = (760, 300), (340, 240)
"""Width and height in CSS pixels: each is shown near its natural size, so that tick labels stay readable."""
_TICK_PIXELS = 12
_MARKED_UP_TO = 24
"""Series of at most so many points show each point by a marker, and longer ones are told apart by dashes."""

_MARKERS = (
    ("o", "M10.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"),
    ("s", "M10.8 2.8h6.4v6.4h-6.4z"),
    ("^", "M14 1.6l4 7.6h-8z"),
    ("D", "M14 1.4l4.6 4.6-4.6 4.6-4.6-4.6z"),
    ("v", "M14 10.4l4-7.6h-8z"),
)
"""Matplotlib's marker, and the same shape as an SVG path in the middle of a 28 x 12 legend swatch."""
_DASHES = ((), (6.0, 2.5), (1.8, 2.0), (8.0, 2.5, 1.8, 2.5))
_REFERENCE_DASHES = (3.0, 3.0)
_THEMED = (*SERIES, "grid", "muted", "reference")
"""Names of the palette that charts use."""


@dataclass(frozen=True)
class Curves:
    """Named series y(x) in one chart.

    Points that are not finite (or, with `log_y`, not positive) are left out and counted under the chart.

    Args:
        series: name -> (x, y), two 1-D arrays of equal length.
        x_label, y_label: what the axes measure, with unit.
        caption: what is shown.
        log_y: logarithmic y axis.
        bands: name of a series -> (low, high), as long as the series: shaded, such as a confidence interval.
        reference: name -> y of a horizontal line, for example chance.

    Raises:
        ValueError: no series, x, y or a band of unequal length or not 1-D, a band without its series.
    """

    series: Mapping[str, tuple[ArrayLike, ArrayLike]]
    x_label: str
    y_label: str
    caption: str = ""
    log_y: bool = False
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
    reference: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("curves has no series: give at least one name -> (x, y)")
        lengths = {}
        for name, pair in self.series.items():
            x, y = _pair(pair, f"series {name!r}", "(x, y)")
            if len(x) != len(y):
                raise ValueError(f"series {name!r} has {len(x)} x but {len(y)} y: they must be equally long")
            lengths[name] = len(x)
        for name, pair in (self.bands or {}).items():
            low, high = _pair(pair, f"band {name!r}", "(low, high)")
            if name not in lengths:
                raise ValueError(f"band {name!r} has no series: expected one of {', '.join(lengths)}")
            if not len(low) == len(high) == lengths[name]:
                raise ValueError(
                    f"band {name!r} has {len(low)} low and {len(high)} high values "
                    f"for a series of {lengths[name]} points: they must be equally long"
                )


@dataclass(frozen=True)
class LegendEntry:
    """A line of the legend: the name, what to know of it, and how its line looks."""

    name: str
    detail: str
    colour: str
    dashes: str
    marker: str


@dataclass(frozen=True)
class Drawing:
    """The inside of an `<svg>` element of this size: markup by Matplotlib, without any text of the caller."""

    width: int
    height: int
    content: Markup


@dataclass(frozen=True)
class CurvesView:
    """A chart prepared for the template: the drawing for wide and for narrow pages, and its words."""

    wide: Drawing
    narrow: Drawing
    alternative: str
    legend: tuple[LegendEntry, ...]
    x_label: str
    y_label: str
    caption: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    name: str
    x: Points
    y: Points
    band: tuple[Points, Points] | None
    colour: str
    dashes: tuple[float, ...]
    marker: tuple[str, str] | None


def curves_view(curves: Curves, *, identifier: str) -> CurvesView:
    """`curves` drawn for wide and narrow pages; `identifier` keeps element ids apart within one page."""
    lines, omitted = _lines(curves)
    reference = {name: float(value) for name, value in curves.reference.items()}
    reason = "not positive or not finite" if curves.log_y else "not finite"
    drawings = [
        _draw(lines, reference, curves.log_y, size, f"{identifier}-{name}")
        for name, size in (("wide", _WIDE), ("narrow", _NARROW))
    ]
    legend = [
        LegendEntry(line.name, _ends_at(line), line.colour, _dash_text(line.dashes), (line.marker or ("", ""))[1])
        for line in lines
    ] + [
        LegendEntry(name, _three_digits(value), "reference", _dash_text(_REFERENCE_DASHES), "")
        for name, value in reference.items()
    ]
    return CurvesView(
        wide=drawings[0],
        narrow=drawings[1],
        alternative=_alternative(curves, lines, reference),
        legend=tuple(legend),
        x_label=curves.x_label,
        y_label=curves.y_label + (" (logarithmic)" if curves.log_y else ""),
        caption=curves.caption,
        notes=tuple(f"{name}: {count} of {total} points left out ({reason})." for name, count, total in omitted),
    )


def _pair(pair: object, what: str, names: str) -> tuple[Points, Points]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{what} is not a pair {names} of 1-D arrays")
    first, second = (np.asarray(part, dtype=np.float64) for part in pair)
    if first.ndim != 1 or second.ndim != 1:
        raise ValueError(f"{what} has shapes {first.shape} and {second.shape}: {names} must be 1-D")
    return first, second


def _lines(curves: Curves) -> tuple[list[_Line], list[tuple[str, int, int]]]:
    """The lines to draw, values that cannot be drawn masked; and (name, masked, total) where some are."""
    lines, omitted = [], []

    def drawable(values: Points) -> Points:
        return np.where(np.isfinite(values) & ((values > 0) | (not curves.log_y)), values, np.nan)

    for i, (name, pair) in enumerate(curves.series.items()):
        x, y = _pair(pair, name, "(x, y)")
        y = drawable(np.where(np.isfinite(x), y, np.nan))
        band = (curves.bands or {}).get(name)
        few = len(x) <= _MARKED_UP_TO
        lines.append(
            _Line(
                name=name,
                x=x,
                y=y,
                band=None
                if band is None
                else (drawable(np.asarray(band[0], np.float64)), drawable(np.asarray(band[1], np.float64))),
                colour=SERIES[i % len(SERIES)],
                dashes=() if few else _DASHES[i % len(_DASHES)],
                marker=_MARKERS[i % len(_MARKERS)] if few else None,
            )
        )
        if count := int(np.isnan(y).sum()):
            omitted.append((name, count, len(y)))
    return lines, omitted


def _thinned(line: _Line, most: int) -> _Line:
    """`line` with at most about `most` points: of each run of points, the lowest and the highest, in order.

    At two points for each pixel the drawing looks the same, spikes included, and the page stays small.
    """
    count = len(line.y)
    if count <= most:
        return line
    size = -(-2 * count // most)
    padded = np.full(-(-count // size) * size, np.nan)
    padded[:count] = line.y
    runs = padded.reshape(-1, size)
    starts = size * np.arange(len(runs))
    lowest = starts + np.where(np.isnan(runs), np.inf, runs).argmin(axis=1)
    highest = starts + np.where(np.isnan(runs), -np.inf, runs).argmax(axis=1)
    kept = np.unique(np.concatenate([[0], lowest, highest, [count - 1]]))
    band = None if line.band is None else (line.band[0][kept], line.band[1][kept])
    return replace(line, x=line.x[kept], y=line.y[kept], band=band)


def _ends_at(line: _Line) -> str:
    shown = line.y[np.isfinite(line.y)]
    return f"ends at {_three_digits(float(shown[-1]))}" if len(shown) else "no points"


def _three_digits(value: float) -> str:
    """Three significant digits also for small values: curves of losses and rates end there."""
    small = math.isfinite(value) and 0 < abs(value) < 0.1
    return format_number(value, min(6, 2 - math.floor(math.log10(abs(value)))) if small else 3)


def _alternative(curves: Curves, lines: Sequence[_Line], reference: Mapping[str, float]) -> str:
    """The chart in words: what a reader who cannot see it needs."""
    words = [f"Line chart of {curves.y_label} against {curves.x_label}."]
    for line in lines:
        shown = np.isfinite(line.y)
        if not shown.any():
            words.append(f"{line.name}: no points.")
            continue
        x, y = line.x[shown], line.y[shown]
        first, last, low, high = (_three_digits(float(v)) for v in (y[0], y[-1], y.min(), y.max()))
        words.append(
            f"{line.name}: {len(y)} points, from {first} at {x[0]:g} to {last} at {x[-1]:g}, "
            f"lowest {low}, highest {high}."
        )
    words += [f"{name}: {_three_digits(value)}." for name, value in reference.items()]
    return " ".join(words)


def _dash_text(dashes: Sequence[float]) -> str:
    return " ".join(f"{dash:g}" for dash in dashes)


def _sentinel(name: str) -> str:
    """A colour that stands for the page's colour `name` until the SVG is rewritten."""
    return f"#0f0e{_THEMED.index(name) + 1:02x}"


def _draw(
    lines: Sequence[_Line],
    reference: Mapping[str, float],
    log_y: bool,
    size: tuple[int, int],
    identifier: str,
) -> Drawing:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    width, height = size
    # The SVG writer reads these from the process-wide settings; defaults first, so that a user's matplotlibrc
    # cannot change a report, and everything is put back on leaving.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": identifier, "lines.scale_dashes": False})
        # One inch is 72 units of the SVG, so a pixel is 1/72 inch.
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        _plot(axes, [_thinned(line, 2 * width) for line in lines], reference)
        _set_axes(figure, axes, lines, reference, log_y, size)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return Drawing(width, height, Markup(_themed(buffer.getvalue(), identifier)))


def _plot(axes: "Axes", lines: Sequence[_Line], reference: Mapping[str, float]) -> None:
    for value in reference.values():
        if np.isfinite(value):
            dashes = (0, _REFERENCE_DASHES)
            axes.axhline(value, color=_sentinel("reference"), linewidth=1.4, linestyle=dashes, clip_on=False)
    for line in lines:
        colour = _sentinel(line.colour)
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=colour, alpha=0.16, linewidth=0, clip_on=False)
    for line in lines:
        axes.plot(
            line.x,
            line.y,
            color=_sentinel(line.colour),
            linewidth=1.8,
            linestyle=(0, line.dashes) if line.dashes else "solid",
            marker=line.marker[0] if line.marker else None,
            markersize=5.5,
            clip_on=False,
        )


def _set_axes(
    figure: "Figure",
    axes: "Axes",
    lines: Sequence[_Line],
    reference: Mapping[str, float],
    log_y: bool,
    size: tuple[int, int],
) -> None:
    """Limits, ticks and margins, all computed here so that they do not depend on fonts."""
    width, height = size
    values = [line.y for line in lines] + [np.array(list(reference.values()), dtype=np.float64)]
    values += [edge for line in lines if line.band for edge in line.band]
    y_all = np.concatenate(values)
    y_all = y_all[np.isfinite(y_all) & ((y_all > 0) | (not log_y))]
    x_all = np.concatenate([line.x[np.isfinite(line.x)] for line in lines])
    x_low, x_high = _limits(x_all, 0.0, False)
    y_low, y_high = _limits(y_all, 0.06, log_y)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlim(x_low, x_high)
    axes.set_ylim(y_low, y_high)
    whole = bool(len(x_all)) and bool((x_all == np.round(x_all)).all())
    x_ticks = _linear_ticks(x_low, x_high, max(2, width // 90), integer=whole)
    y_ticks = _log_ticks(y_low, y_high) if log_y else _linear_ticks(y_low, y_high, max(3, height // 50))
    x_texts, y_texts = _tick_texts(x_ticks), _tick_texts(y_ticks)
    axes.set_xticks(x_ticks, x_texts)
    axes.set_yticks(y_ticks, y_texts)
    axes.minorticks_off()
    axes.tick_params(left=False, bottom=False, labelsize=_TICK_PIXELS, labelcolor=_sentinel("muted"), pad=7)
    axes.grid(axis="y", color=_sentinel("grid"), linewidth=1)
    axes.set_axisbelow(True)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_sentinel("grid"), linewidth=1)
    left = 14 + 0.62 * _TICK_PIXELS * max(map(len, y_texts), default=1)
    right = 8 + 0.31 * _TICK_PIXELS * len(x_texts[-1] if x_texts else "")
    axes.set_position((left / width, 28 / height, 1 - (left + right) / width, 1 - 38 / height))


def _limits(values: Points, padding: float, log: bool) -> tuple[float, float]:
    if len(values) == 0:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = np.log10(low), np.log10(high)
    space = padding * (high - low) if high > low else max(0.5 * abs(high), 0.1) if not log else 0.5
    low, high = low - space, high + space
    return (float(10.0**low), float(10.0**high)) if log else (low, high)


def _linear_ticks(low: float, high: float, count: int, *, integer: bool = False) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(tick) for tick in ticks if low - slack <= tick <= high + slack]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, every second or third over many decades, with 2 and 5 between them over few."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = max(1, len(decades) // 6)
    ticks = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= 2 else _linear_ticks(low, high, 4)


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """Ticks with the fewest decimals that tell all of them exactly; scientific outside 10^-4 to 10^6."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    smallest = min((abs(tick) for tick in ticks if tick), default=1.0)
    if largest >= 1e6 or largest < 1e-3 or smallest < 1e-4:
        return [re.sub(r"e([+-])0*(\d)", lambda m: "e" + m[1].strip("+") + m[2], f"{t:.4g}") for t in ticks]
    places = [len(f"{tick:.6f}".rstrip("0").split(".")[1]) for tick in ticks]
    if max(ticks) > 100 * smallest > 0:  # A logarithmic axis: each tick at its own precision.
        return [f"{tick:,.{place}f}" for tick, place in zip(ticks, places, strict=True)]
    return [f"{tick:,.{max(places)}f}" for tick in ticks]


def _themed(svg: str, identifier: str) -> str:
    """Inside of the `<svg>` element: page colours, page fonts, ids of its own, pixel precision."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, flags=re.S)
    inside = re.sub(r'<g id="patch_1">\s*<path[^>]*/>\s*</g>', "", inside)
    inside = re.sub(r'(?<=[" ])-?\d+\.\d+', lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), inside)
    inside = re.sub(r"font-size: [^;]*; font-family: [^;]*;", "", inside)
    inside = re.sub(r' clip-path="[^"]*"|<clipPath.*?</clipPath>', "", inside, flags=re.S)
    inside = re.sub(r"<defs>\s*</defs>", "", inside)
    inside = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", inside)
    inside = re.sub(r'<g id="[^"]*">', "<g>", inside)
    inside = re.sub(r'id="', f'id="{identifier}-', inside).replace('xlink:href="#', f'href="#{identifier}-')
    for name in _THEMED:
        inside = inside.replace(_sentinel(name), f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", inside).replace("> <", "><").strip()
