"""The page in headless Chromium: no sideways scrolling, colour schemes, print, tooltips, theme button."""

import numpy as np
import pytest

from jaxcore.reporting import (
    Block,
    Curves,
    Headline,
    KeyValues,
    Paragraph,
    Report,
    Section,
    Table,
    TokenHeatmap,
    VerdictTable,
    write_report,
)
from jaxcore.reporting.html import VERDICT_FIELDS
from jaxcore.reporting.palette import PALETTE

SIZES = [375, 1280]


@pytest.fixture(scope="module")
def sample_path(sample_report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, sample_report)
    return path


@pytest.fixture(scope="module")
def crowded_path(tmp_path_factory):
    """Everything too long: unbroken words in every place, forty columns, 512 tokens, hostile markup."""
    word = "<script>document.title='taken'</script>" + "x" * 300
    verdict = dict.fromkeys(VERDICT_FIELDS, word) | {"effect": 1.0, "low": 0.0, "high": 2.0, "p_value": 1e-9}
    blocks: list[Block] = [
        Paragraph(word),
        Table([f"column {i}" for i in range(40)], [[word] + [0.5] * 39], caption=word),
        KeyValues({word: word, "nested": {word: [word]}}, caption=word),
        VerdictTable([verdict], caption=word),
        Curves({word: (np.arange(9), np.arange(9) * 1e5)}, word, word, caption=word, reference={word: 1.0}),
        TokenHeatmap([word] + ["word", "##piece"] * 256, np.linspace(-1, 1, 513), caption=word, positive_label=word),
    ]
    path = tmp_path_factory.mktemp("report") / "crowded.html"
    write_report(path, Report(word, word, {word: word}, [Headline(word, word, word)] * 3, [Section(word, blocks)] * 2))
    return path


def rgb(name: str, mode: int) -> str:
    return "rgb({}, {}, {})".format(*bytes.fromhex(PALETTE[name][mode][1:]))


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("which", ["sample", "crowded"])
def test_page_never_scrolls_sideways(page, sample_path, crowded_path, which, width):
    page.open(sample_path if which == "sample" else crowded_path, width=width)
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""
    assert page.evaluate(outside) == []
    assert page.evaluate("document.title") != "taken"
    # Wide tables can be reached: they scroll inside their box.
    if which == "crowded":
        box = "document.querySelector('.scroll')"
        assert page.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
        assert page.evaluate(f"{box}.scrollLeft = 500, {box}.scrollLeft") == 500


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize(("scheme", "mode"), [("light", 0), ("dark", 1)])
def test_colours_follow_the_system(page, sample_path, width, scheme, mode):
    page.open(sample_path, width=width, scheme=scheme)
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert page.evaluate(style.format("html", "backgroundColor")) == rgb("page", mode)
    assert page.evaluate(style.format("html", "color")) == rgb("text", mode)
    shown = "wide" if width > 600 else "narrow"
    assert page.evaluate(style.format(f".drawing.{shown} [style*=series-1]", "stroke")) == rgb("series-1", mode)
    displays = [page.evaluate(style.format(f".drawing.{name}", "display")) for name in ("wide", "narrow")]
    assert displays == (["block", "none"] if shown == "wide" else ["none", "block"])
    strongest = "[...document.querySelectorAll('.tokens .positive')].find(e => e.style.cssText.endsWith(': 1;'))"
    found = page.evaluate(f"(e => e && getComputedStyle(e).backgroundColor)({strongest})")
    assert found == rgb("positive", mode)


def test_print_is_light_and_without_screen_furniture(page, sample_path):
    page.open(sample_path, width=673, scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == rgb("text", 0)
    for selector in (".theme", ".contents", ".tooltip"):
        assert page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).display") == "none"
    assert page.evaluate("document.documentElement.scrollWidth") <= 673


def test_theme_button_overrides_the_system(page, sample_path):
    page.open(sample_path, width=1280, scheme="dark")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    button = "document.getElementById('theme-toggle')"
    seen = [page.evaluate(background)]
    for _ in range(3):
        page.evaluate(f"{button}.click()")
        seen.append(page.evaluate(background))
    assert seen == [rgb("page", 1), rgb("page", 0), rgb("page", 1), rgb("page", 1)]
    assert page.evaluate(f"{button}.getAttribute('aria-label')") == "Theme: auto"


def test_tooltips_work_by_mouse_keyboard_and_touch(page, sample_path):
    page.open(sample_path, width=375)
    page.evaluate("window.tokens = [...document.querySelectorAll('.tokens span')]; tokens[0].focus()")
    tip = "(t => t.hidden ? null : t.textContent)(document.getElementById('tooltip'))"
    expected = page.evaluate("tokens.slice(0, 3).map(t => t.dataset.tip)")
    assert len(set(expected)) == 3 and ": " in expected[0]
    assert page.evaluate(tip) == expected[0]
    key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    page.call("Input.dispatchKeyEvent", type="keyDown", **key)
    assert page.evaluate(tip) == expected[1]
    assert page.evaluate("tokens[1].getAttribute('aria-describedby')") == "tooltip"
    box = page.evaluate("(b => [b.left, b.right])(document.getElementById('tooltip').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= 375
    escape = {"key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27}
    page.call("Input.dispatchKeyEvent", type="keyDown", **escape)
    assert page.evaluate(tip) is None
    x, y = page.evaluate("(b => [b.left + b.width / 2, b.top + b.height / 2])(tokens[2].getClientRects()[0])")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert page.evaluate(tip) == expected[2]
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert page.evaluate(tip) is None
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    touched = "new Promise(done => setTimeout(() => done(" + tip + "), 400))"
    assert page.evaluate(touched) == expected[2]
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_nothing_is_requested_and_nothing_is_logged_as_an_error(page, crowded_path):
    page.open(crowded_path, width=1280)
    assert page.requests == [crowded_path.as_uri()]
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.evaluate("document.documentElement.classList.contains('scripted')")
