"""The page as text: escaping, self-containedness, well-formedness, determinism, atomic writing, bad input."""

import base64
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from jaxcore.reporting import (
    Curves,
    Headline,
    KeyValues,
    Paragraph,
    Report,
    Section,
    Table,
    TokenHeatmap,
    TokenHeatmaps,
    VerdictTable,
    flatten,
    render_report,
    write_report,
)
from jaxcore.reporting.html import VERDICT_FIELDS

_VOID = {"meta", "link", "br", "img", "input", "hr"}
_INLINE = {"span", "a", "h1", "h2", "p", "dt", "dd", "caption", "summary", "title"}
_BLOCKS = {"div", "ul", "ol", "dl", "figure", "section", "table", "p", "main", "nav", "details"}


class StrictPage(HTMLParser):
    """Reads a page and refuses unbalanced tags, blocks inside inline elements, and attributes given twice."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        assert not (tag in _BLOCKS and self.open[-1:] and self.open[-1] in _INLINE), f"<{tag}> in {self.open}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def visible(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


def verdict(**changes) -> dict:
    fields = dict.fromkeys(VERDICT_FIELDS, "x") | {"effect": 0.5, "low": 0.25, "high": 0.75, "p_value": 0.01}
    return fields | {"passed": True} | changes


def hostile_report(text) -> Report:
    """A report with `text(field)` in every field that takes text."""
    heat = TokenHeatmap(
        [text("token"), text("nan token")],
        [0.5, np.nan],
        caption=text("heat caption"),
        marked=[True, False],
        positive_label=text("positive"),
        negative_label=text("negative"),
        marked_label=text("marked label"),
    )
    columns = [text("column"), text("column 2")]
    curves = Curves(
        {text("series"): ([1, 2], [1.0, 2.0])},
        x_label=text("x"),
        y_label=text("y"),
        caption=text("curves caption"),
        bands={text("series"): ([0, 1], [2, 3])},
        reference={text("reference"): 1.5},
    )
    named = {name: text(name) for name in ("name", "statement", "test", "source")}
    return Report(
        title=text("title"),
        subtitle=text("subtitle"),
        facts={text("fact"): text("fact value")},
        headline=[Headline(text("label"), text("value"), text("headline note"))],
        sections=[
            Section(text("section"), [Paragraph(text("paragraph"))], note=text("note")),
            Section(
                "blocks",
                [
                    Table(
                        columns,
                        [[text("cell"), 1.5], [text("cell 2"), text("cell 3")]],
                        text("table caption"),
                    ),
                    KeyValues({text("key"): {text("inner"): text("setting")}}, caption=text("settings caption")),
                    curves,
                    heat,
                    TokenHeatmaps([heat], caption=text("heatmaps caption")),
                    VerdictTable([verdict(**named)], caption=text("verdicts caption")),
                ],
            ),
        ],
    )


ATTACKS = [
    "<script>alert(1)</script>",
    "\"'><img src=http://evil.example/x onerror=alert(1)>",
    "</style></script></svg></title></textarea><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;&amp;<!-- -->]]>",
    "' style='background:url(http://evil.example/x)' tabindex='9",
    "javascript:alert(1)//$\\alpha$ \\\\ `${x}`",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_is_text_in_every_field(attack):
    fields: Counter[str] = Counter()

    def text(name: str) -> str:
        fields[name] += 1
        return f"[{name}]{attack}"

    page = StrictPage(render_report(hostile_report(text)))
    harmless = StrictPage(render_report(hostile_report(lambda name: f"[{name}]")))
    # The same elements with the same attribute names as with harmless text: nothing has become markup.
    shape = [(tag, tuple(attributes)) for tag, attributes in page.elements]
    assert shape == [(tag, tuple(attributes)) for tag, attributes in harmless.elements]
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    for element, calm in zip(page.elements, harmless.elements, strict=True):
        for name in ("style", "class", "id", "href", "tabindex"):
            assert element[1].get(name, "")[:12] == calm[1].get(name, "")[:12]
    # And every field is there, word for word.
    said = page.visible() + "".join(page.attributes("title")) + "".join(page.attributes("aria-label"))
    for name in fields:
        assert f"[{name}]{attack}" in said, name


def test_what_html_cannot_hold_is_replaced():
    html = render_report(hostile_report(lambda name: f"{name}\x00\x1b\ud800\ufffe"))
    assert "title\ufffd\ufffd\ufffd\ufffd" in html
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", html)


def test_page_is_self_contained(sample_report):
    html = render_report(sample_report)
    page = StrictPage(html)
    for name in ("src", "srcset", "poster", "data", "action", "xlink:href", "background"):
        assert page.attributes(name) == []
    for target in page.attributes("href"):
        assert target.startswith(("#", "data:,")), target
    style = "".join(text for tag, text in page.texts if tag == "style") + "".join(page.attributes("style"))
    assert "@import" not in style and "@font-face" not in style
    assert re.findall(r"url\((?!data:)", html) == []
    script = "".join(text for tag, text in page.texts if tag == "script")
    for word in ("fetch", "XMLHttpRequest", "import(", "WebSocket", "sendBeacon", "innerHTML", "eval("):
        assert word not in script
    assert re.findall(r"https?://", html) == []


def test_content_security_policy_allows_exactly_the_script_that_is_there(sample_report):
    page = StrictPage(render_report(sample_report))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    script = "".join(text for tag, text in page.texts if tag == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_ids_are_unique_and_references_resolve(sample_report):
    double = replace(sample_report, sections=[*sample_report.sections, *sample_report.sections])
    page = StrictPage(render_report(double))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [href[1:] for href in page.attributes("href") if href.startswith("#")]
    targets += page.attributes("aria-labelledby")
    assert targets and set(targets) <= set(ids)


@pytest.mark.parametrize("titles", [["a", "a", "a 2"], ["", "", "名前"], ["Heading 1", "heading-1"], ["x" * 500]])
def test_anchors_never_collide(titles):
    page = StrictPage(render_report(Report("t", sections=[Section(title, [Paragraph("p")]) for title in titles])))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) and max(map(len, ids)) < 100


def test_same_report_same_bytes(sample_report, tmp_path):
    write_report(tmp_path / "a.html", sample_report)
    write_report(tmp_path / "b.html", sample_report)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert b"\r" not in (tmp_path / "a.html").read_bytes()


def test_tables_are_semantic(sample_report):
    page = StrictPage(render_report(sample_report))
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert heads and all(attributes["scope"] in ("col", "row") for attributes in heads)
    drawings = [a for tag, a in page.elements if tag == "svg" and "drawing" in a["class"]]
    assert drawings and all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in drawings)
    assert {"header", "nav", "main", "section", "caption", "figcaption"} <= {tag for tag, _ in page.elements}


def test_values_are_in_the_tooltips_and_the_tables():
    heat = TokenHeatmap(["un", "##seen", "x"], [0.125, -0.0625, float("nan")], marked=[False, True, False])
    table = Table(["model", "accuracy"], [["SupCon", 0.56649], ["none", None]], caption="c")
    page = StrictPage(render_report(Report("t", sections=[Section("s", [heat, table])])))
    assert page.attributes("title") == ["un: +0.125", "##seen: -0.062 (true marker)", "x: not a number"]
    styles = [a.get("style") for _, a in page.elements if "title" in a]
    assert styles == ["--a:1", "--a:0.5", None]
    assert "0.566" in page.visible() and "–" in page.visible()
    assert "unseen" in page.visible()


def test_verdicts_say_in_words_whether_they_hold_and_take_objects():
    rows = [verdict(name="one"), SimpleNamespace(**verdict(name="two", passed=np.False_, p_value=None))]
    text = StrictPage(render_report(Report("t", sections=[Section("s", [VerdictTable(rows)])]))).visible()
    assert "✓ holds" in text and "✗ fails" in text and "1 of 2 claims hold" in text
    assert text.count("0.500 [0.250, 0.750]") == 2
    single = verdict(low=float("nan"), high=float("nan"))
    html = render_report(Report("t", sections=[Section("s", [VerdictTable([single])])]))
    assert "0.500" in html and "nan" not in StrictPage(html).visible()
    with pytest.raises(ValueError, match=r"verdict 1 \(dict\) lacks effect, low"):
        VerdictTable([verdict(), {"name": 1, "statement": 1}])


@dataclass(frozen=True)
class _Model:
    num_layers: int = 6
    rates: tuple[float, ...] = (0.1, 1e-5)
    nested: dict = field(default_factory=lambda: {"empty": {}, "none": None, "flag": np.True_})


def test_configuration_is_flattened_to_dotted_names_exactly():
    flat = flatten({"model": _Model(), "seed": 0, "paths": [], "parts": [{"a": 1}, {"a": 2.50}], "text": ""})
    assert flat == {
        "model.num_layers": "6",
        "model.rates": "0.1, 1e-05",
        "model.nested.empty": "(empty)",
        "model.nested.none": "None",
        "model.nested.flag": "True",
        "seed": "0",
        "paths": "(empty)",
        "parts.0.a": "1",
        "parts.1.a": "2.5",
        "text": "(empty)",
    }
    assert flatten({}) == {} and flatten(_Model(2))["num_layers"] == "2"
    assert flatten({"f": object()}) == {"f": "<object object>"}
    assert "model.num_layers" in render_report(Report("t", sections=[Section("s", [KeyValues({"model": _Model()})])]))
    with pytest.raises(ValueError, match="KeyValues needs a mapping or a dataclass instance, got list"):
        KeyValues([1])  # type: ignore[arg-type]


def test_unknown_blocks_are_named():
    with pytest.raises(ValueError, match=r"section 's', block 1 is a dict: expected one of Paragraph, Table"):
        Section("s", [Paragraph("p"), {}])  # type: ignore[list-item]


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "made" / "report.html"
    write_report(path, Report("first"))
    assert "<title>first</title>" in path.read_text(encoding="utf-8")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, Report("second"))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["report.html"]


def test_a_minimal_report_has_no_empty_furniture():
    page = StrictPage(render_report(Report("only a title")))
    assert not {"nav", "dl", "section"} & {tag for tag, _ in page.elements}
    empty = Report("t", sections=[Section("s", [Table(["a"], []), KeyValues({}), VerdictTable([])])])
    assert "no rows" in StrictPage(render_report(empty)).visible()
