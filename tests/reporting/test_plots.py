"""Charts: geometry read back from the SVG, page colours, determinism, bad input."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from jaxcore.reporting import Curves
from jaxcore.reporting.palette import PALETTE
from jaxcore.reporting.plots import curves_view


def parse(content: str) -> ElementTree.Element:
    """The drawing as XML: fails unless it is well formed."""
    return ElementTree.fromstring(f"<svg>{content}</svg>")


def stroked(content: str, colour: str) -> list[np.ndarray]:
    """Points of every line of this colour, in SVG coordinates (y downwards)."""
    paths = [p for p in parse(content).iter("path") if f"stroke: var(--{colour})" in p.get("style", "")]
    numbers = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", p.get("d", "")) for p in paths if p.get("id") is None]
    return [np.array(pairs, dtype=float) for pairs in numbers]


def simple(**options) -> Curves:
    return Curves({"loss": ([0, 1, 2, 3], [4.0, 2.0, 1.0, 3.0])}, "step", "loss", **options)


@pytest.mark.parametrize("log_y", [False, True])
def test_points_lie_where_the_axis_says(log_y):
    x = np.arange(50.0)
    y = np.exp(-x / 10) + 0.1
    chart = curves_view(Curves({"loss": (x, y)}, "x", "y", log_y=log_y), identifier="c").wide
    (line,) = stroked(chart.content, "series-1")
    assert len(line) == 50
    scaled = np.log(y) if log_y else y
    slope, offset = np.polyfit(scaled, line[:, 1], 1)
    assert slope < 0
    np.testing.assert_allclose(line[:, 1], slope * scaled + offset, atol=0.02)
    np.testing.assert_allclose(np.diff(line[:, 0]), np.diff(line[:, 0])[0], atol=0.02)
    # The tick labels stand at the same scale.
    for text in parse(chart.content).iter("text"):
        if "end" in text.get("style", ""):
            value = float((text.text or "").replace(",", ""))
            expected = slope * (np.log(value) if log_y else value) + offset
            assert float(text.get("y", "nan")) - 4.6 == pytest.approx(expected, abs=0.5)


def test_colours_are_those_of_the_page_and_nothing_is_fixed():
    view = curves_view(simple(reference={"chance": 2.5}, bands={"loss": (np.zeros(4), np.ones(4))}), identifier="c")
    for drawing in (view.wide, view.narrow):
        assert not re.search(r"#[0-9a-fA-F]{6}|rgb\(", drawing.content.replace('href="#', ""))
        used = set(re.findall(r"var\(--([a-z0-9-]+)\)", drawing.content))
        assert {"series-1", "muted", "grid", "reference"} <= used <= set(PALETTE)
        assert "url(" not in drawing.content and "font" not in drawing.content


def test_every_reference_in_the_drawing_resolves_and_ids_differ_between_drawings():
    view = curves_view(simple(bands={"loss": (np.zeros(4), np.ones(4))}), identifier="c")
    ids = []
    for drawing in (view.wide, view.narrow):
        own = re.findall(r'id="([^"]+)"', drawing.content)
        assert own and set(re.findall(r'href="#([^"]+)"', drawing.content)) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_same_input_same_bytes_whatever_the_user_has_configured():
    curves = simple(reference={"chance": 2.5})
    first = curves_view(curves, identifier="c")
    with mpl.rc_context({"axes.grid": True, "font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        second = curves_view(curves, identifier="c")
        assert mpl.rcParams["font.size"] == 30 and mpl.rcParams["svg.fonttype"] == "path"
    assert first == second
    assert "date" not in first.wide.content.lower()


def test_pyplot_is_not_imported():
    code = (
        "import sys; from jaxcore.reporting import Curves; from jaxcore.reporting.plots import curves_view;"
        "curves_view(Curves({'a': ([1, 2], [1, 2])}, 'x', 'y'), identifier='c');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_missing_values_are_gaps_and_counted():
    y = np.array([1.0, np.nan, 2.0, 0.0, np.inf, 3.0])
    linear = curves_view(Curves({"a": (np.arange(6), y)}, "x", "y"), identifier="c")
    assert linear.notes == ("a: 2 of 6 points left out (not finite).",)
    log = curves_view(Curves({"a": (np.arange(6), y)}, "x", "y", log_y=True), identifier="c")
    assert log.notes == ("a: 3 of 6 points left out (not positive or not finite).",)
    assert log.y_label == "y (logarithmic)"
    nothing = curves_view(Curves({"a": ([1, 2], [np.nan, np.nan])}, "x", "y", log_y=True), identifier="c")
    assert nothing.legend[0].detail == "no points" and "a: no points." in nothing.alternative
    curves_view(Curves({"a": ([], [])}, "x", "y"), identifier="c")


def test_long_series_are_thinned_but_keep_their_spikes():
    y = np.zeros(200_000)
    y[123_457], y[150_001] = 9.0, -9.0
    view = curves_view(Curves({"a": (np.arange(200_000), y)}, "x", "y"), identifier="c")
    (line,) = stroked(view.wide.content, "series-1")
    assert len(line) < 2 * view.wide.width + 4
    height = np.ptp(line[:, 1])
    (short,) = stroked(
        curves_view(Curves({"a": (np.arange(50), np.repeat([9.0, -9.0], 25))}, "x", "y"), identifier="c").wide.content,
        "series-1",
    )
    assert height == pytest.approx(np.ptp(short[:, 1]), abs=0.05)


def test_series_are_told_apart_without_colour():
    few = {f"s{i}": ([1, 2], [i, i]) for i in range(4)}
    many = {f"s{i}": (np.arange(40), np.full(40, i)) for i in range(4)}
    markers = [entry.marker for entry in curves_view(Curves(few, "x", "y"), identifier="c").legend]
    dashes = [entry.dashes for entry in curves_view(Curves(many, "x", "y"), identifier="c").legend]
    assert len(set(markers)) == 4 and "" not in markers
    assert len(set(dashes)) == 4


def test_alternative_text_tells_the_values():
    text = curves_view(simple(reference={"chance": 0.005}), identifier="c").alternative
    assert text == (
        "Line chart of loss against step. loss: 4 points, from 4.000 at 0 to 3.000 at 3, "
        "lowest 1.000, highest 4.000. chance: 0.00500."
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curves({}, "x", "y"), "no series"),
        (lambda: Curves({"a": ([1, 2], [1])}, "x", "y"), "series 'a' has 2 x but 1 y"),
        (lambda: Curves({"a": ([[1]], [[1]])}, "x", "y"), r"shapes \(1, 1\) and \(1, 1\)"),
        (
            lambda: Curves({"a": ([1],)}, "x", "y"),  # type: ignore[dict-item]
            "not a pair",
        ),
        (lambda: simple(bands={"b": ([1], [2])}), "band 'b' has no series: expected one of loss"),
        (lambda: simple(bands={"loss": ([1], [2])}), "1 low and 1 high values for a series of 4"),
    ],
)
def test_bad_input_is_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
