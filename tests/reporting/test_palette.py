"""Contrast of every pair of colours that meet on a page, by the WCAG formula."""

import pytest

from jaxcore.reporting.palette import PALETTE, SERIES, palette_css

MODES = {"light": 0, "dark": 1}


def luminance(rgb: tuple[float, ...]) -> float:
    """Relative luminance of WCAG 2.2, of sRGB components from 0 to 255."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colour(name: str, mode: str) -> tuple[float, ...]:
    return tuple(bytes.fromhex(PALETTE[name][MODES[mode]][1:]))


@pytest.mark.parametrize("mode", MODES)
def test_contrast_formula_and_text(mode):
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    for text in ("text", "muted", "accent"):
        for ground in ("page", "surface", "sunken"):
            assert contrast(colour(text, mode), colour(ground, mode)) >= 4.5, (text, ground)
    for verdict in ("pass", "fail"):
        assert contrast(colour(verdict, mode), colour(f"{verdict}-tint", mode)) >= 4.5
    assert contrast(colour("page", mode), colour("text", mode)) >= 7  # Tooltips are inverted.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_tokens_are_readable_at_every_strength(mode, sign):
    surface, full = colour("surface", mode), colour(sign, mode)
    for strength in (i / 20 for i in range(21)):
        mixed = tuple((1 - strength) * s + strength * f for s, f in zip(surface, full, strict=True))
        assert contrast(colour("text", mode), mixed) >= 4.5, strength


@pytest.mark.parametrize("mode", MODES)
def test_lines_of_charts_stand_out(mode):
    for name in (*SERIES, "reference"):
        assert contrast(colour(name, mode), colour("surface", mode)) >= 3, name


@pytest.mark.parametrize("mode", MODES)
def test_positive_and_negative_stay_apart_for_colour_blind_readers(mode):
    # Vienot, Brettel and Mollon 1999, in linear RGB: what is left of red-green differences for protanopes
    # and deuteranopes. Blue against orange must keep most of its blue-yellow difference.
    simulations = {
        "protanopia": ((0.1124, 0.8876, 0.0), (0.1124, 0.8876, 0.0), (0.0040, -0.0040, 1.0)),
        "deuteranopia": ((0.2928, 0.7072, 0.0), (0.2928, 0.7072, 0.0), (-0.0223, 0.0223, 1.0)),
    }
    for matrix in simulations.values():
        seen = []
        for name in ("positive", "negative"):
            linear = [(c / 255) ** 2.2 for c in colour(name, mode)]
            seen.append([sum(m * v for m, v in zip(row, linear, strict=True)) for row in matrix])
        yellow_minus_blue = [(rgb[0] + rgb[1]) / 2 - rgb[2] for rgb in seen]
        assert yellow_minus_blue[0] > 0.05 > -0.05 > yellow_minus_blue[1]


def test_dark_is_for_screens_and_print_stays_light():
    css = palette_css()
    blocks = css.strip().split("\n")
    assert blocks[0].startswith(":root{color-scheme:light;")
    assert all(block.startswith("@media screen") for block in blocks[1:])
    assert all(PALETTE["page"][1] in block for block in blocks[1:])
    assert PALETTE["page"][1] not in blocks[0]
