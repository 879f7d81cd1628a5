"""A report as one HTML file that needs nothing else: no network, no other file, no script to be readable.

A `Report` is plain data: facts of the run, a headline row, and sections of blocks. `write_report` makes of it
a page that is right in light and dark, on a phone and in print. All text is escaped by the template engine; a
content security policy in the page forbids loading anything and running any script but its own.
"""

import base64
import dataclasses
import functools
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxcore.reporting.heatmaps import HeatmapView, TokenHeatmap, TokenHeatmaps, heatmap_view
from jaxcore.reporting.image_overlays import ImageOverlay, pictures
from jaxcore.reporting.palette import palette_css
from jaxcore.reporting.plots import Curves, CurvesView, curves_view
from jaxcore.reporting.tables import (
    Table,
    column_alignments,
    format_interval,
    format_number,
    format_rows,
)

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Headline:
    """One of the few most important numbers: `value` as it should read, `note` its interval and chance."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Running text; its line breaks are kept."""

    text: str


@dataclass(frozen=True)
class Link:
    """A file that lies beside the report, by its name.

    Raises:
        ValueError: a name that leads elsewhere.
    """

    text: str
    file: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.file, re.ASCII):
            raise ValueError(f"a link leads to a file beside the report, by its plain name: got {self.file!r}")


@dataclass(frozen=True)
class KeyValues:
    """A configuration: nested mappings and dataclasses, shown under dotted names (`model.num_layers`).

    Values are shown exactly as Python writes them.
    """

    mapping: Mapping[str, Any]
    caption: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.mapping, Mapping) and not _is_config(self.mapping):
            kind = type(self.mapping).__name__
            raise ValueError(f"KeyValues needs a mapping or a dataclass instance, got {kind}")


@dataclass(frozen=True)
class VerdictTable:
    """Claims and whether they held. Each verdict is an object or mapping with the fields of `VERDICT_FIELDS`.

    `effect` lies in the interval `low` to `high`, in the metric's unit; `p_value` may be None.

    Raises:
        ValueError: a verdict lacks a field.
    """

    verdicts: Sequence[Any]
    caption: str = ""

    def __post_init__(self) -> None:
        for i, verdict in enumerate(self.verdicts):
            _verdict_fields(verdict, i)


VERDICT_FIELDS = ("name", "statement", "effect", "low", "high", "p_value", "test", "passed", "source")

Block = Paragraph | Table | KeyValues | Curves | TokenHeatmap | TokenHeatmaps | ImageOverlay | VerdictTable | Link
_BLOCK_TYPES = (Paragraph, Table, KeyValues, Curves, TokenHeatmap, TokenHeatmaps, ImageOverlay, VerdictTable, Link)


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `note` stands under the title.

    Raises:
        ValueError: a block of unknown type.
    """

    title: str
    blocks: Sequence[Block]
    note: str = ""

    def __post_init__(self) -> None:
        for i, block in enumerate(self.blocks):
            if not isinstance(block, _BLOCK_TYPES):
                known = ", ".join(kind.__name__ for kind in _BLOCK_TYPES)
                raise ValueError(
                    f"section {self.title!r}, block {i} is a {type(block).__name__}: expected one of {known}"
                )


@dataclass(frozen=True)
class Report:
    """Everything on the page, in reading order. `facts` are of the run: preset, seed, device, duration."""

    title: str
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    headline: Sequence[Headline] = ()
    sections: Sequence[Section] = ()


def render_report(report: Report) -> str:
    """The page as text. The same report gives the same text.

    Raises:
        ValueError: a block cannot be drawn (blocks check themselves when they are made).
    """
    anchors = _anchors([section.title for section in report.sections])
    sections = [
        {
            "title": section.title,
            "note": section.note,
            "anchor": anchor,
            "heading": f"heading-{number}",
            "blocks": [_view(block, f"block-{number}-{i}") for i, block in enumerate(section.blocks, start=1)],
        }
        for number, (section, anchor) in enumerate(zip(report.sections, anchors, strict=True), start=1)
    ]
    return render_page("report.html.jinja", report=report, sections=sections)


def render_page(template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any) -> str:
    """A page from a template of the room, with the style and script of reports and what more files are named.

    Text among the values is escaped; the template may run ``script``, whose digest is ``script_digest``, and no other.
    """
    script = "\n".join(map(_template_file, ("report.js", *scripts)))
    style = palette_css() + "\n".join(map(_template_file, ("report.css", *styles)))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Markup marks text as safe to inline: only the project's own style sheets and scripts are.
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), script_digest=digest, **values)


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write `report` to `path`; see `write_page`."""
    write_page(path, render_report(report))


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page to `path` (UTF-8); the file appears whole or, after any failure, not at all.

    Missing folders are made. An existing file is replaced in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def flatten(mapping: Mapping[str, Any] | Any) -> dict[str, str]:
    """Nested mappings, dataclasses and sequences of them as dotted name -> text: {"model.layers": "6"}."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        children: list[tuple[Any, Any]] | None = None
        if _is_config(value):
            children = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
        elif isinstance(value, Mapping):
            children = list(value.items())
        elif isinstance(value, list | tuple) and any(_is_config(v) or isinstance(v, Mapping) for v in value):
            children = list(enumerate(value))
        if not children:
            flat[prefix] = _setting_text(value)
            return
        for name, child in children:
            walk(f"{prefix}.{name}" if prefix else str(name), child)

    walk("", mapping)
    return {} if list(flat) == [""] else flat


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _setting_text(value: Any) -> str:
    if isinstance(value, str):
        return value if value else "(empty)"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
        return ", ".join(_setting_text(item) for item in items) if items else "(empty)"
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    return str(value) if value is None or isinstance(value, os.PathLike) else _exact_text(value)


def _exact_text(value: Any) -> str:
    """`repr`, without the memory address that some objects put in it and that changes from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _verdict_fields(verdict: Any, index: int) -> dict[str, Any]:
    lookup = verdict.get if isinstance(verdict, Mapping) else functools.partial(_attribute, verdict)
    missing = object()
    fields = {name: lookup(name, missing) for name in VERDICT_FIELDS}
    if absent := [name for name, value in fields.items() if value is missing]:
        raise ValueError(
            f"verdict {index} ({type(verdict).__name__}) lacks {', '.join(absent)}: "
            f"it needs {', '.join(VERDICT_FIELDS)}"
        )
    return fields


def _attribute(holder: Any, name: str, default: Any) -> Any:
    return getattr(holder, name, default)


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for each title, readable in the address bar and never twice the same."""
    anchors: list[str] = []
    for title in titles:
        ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        words = "-".join(re.findall(r"[a-z0-9]+", ascii_title))[:60].strip("-")
        # A word of our own in front keeps these apart from the other ids of the page.
        base = f"section-{words}" if words else "section"
        number = 2
        anchor = base
        while anchor in anchors:
            anchor, number = f"{base}-{number}", number + 1
        anchors.append(anchor)
    return anchors


def _view(block: Block, identifier: str) -> dict[str, Any]:
    """A block as what its macro of the same name in blocks.html.jinja needs."""
    match block:
        case Paragraph():
            return {"kind": "paragraph", "text": block.text}
        case Link():
            return {"kind": "link", "text": block.text, "file": block.file}
        case Table():
            return {"kind": "table", "id": identifier, "table": _table_view(block)}
        case KeyValues():
            settings = flatten(block.mapping)
            return {"kind": "key_values", "id": identifier, "settings": settings, "caption": block.caption}
        case Curves():
            chart: CurvesView = curves_view(block, identifier=identifier)
            return {"kind": "curves", "id": identifier, "chart": chart}
        case TokenHeatmap():
            return {"kind": "heatmap", "id": identifier, "heatmap": heatmap_view(block)}
        case TokenHeatmaps():
            views: list[HeatmapView] = [heatmap_view(item, limit=block.limit) for item in block.heatmaps]
            return {"kind": "heatmaps", "id": identifier, "heatmaps": views, "caption": block.caption}
        case ImageOverlay():
            return {"kind": "overlay", "id": identifier, "pictures": pictures(block), "caption": block.caption}
        case VerdictTable():
            return {"kind": "verdicts", "id": identifier, "table": _verdict_view(block)}
    raise ValueError(f"unknown block type {type(block).__name__}")


def _table_view(table: Table) -> dict[str, Any]:
    return {
        "columns": [str(name) for name in table.columns],
        "align": column_alignments(table.columns, table.rows, table.align),
        "rows": format_rows(table.columns, table.rows),
        "caption": table.caption,
    }


def _verdict_view(block: VerdictTable) -> dict[str, Any]:
    rows = [_verdict_fields(verdict, i) for i, verdict in enumerate(block.verdicts)]
    passed = sum(bool(row["passed"]) for row in rows)
    return {
        "caption": block.caption,
        "passed": passed,
        "total": len(rows),
        "rows": [
            {
                **{name: str(row[name]) for name in ("name", "statement", "test", "source")},
                "passed": bool(row["passed"]),
                "effect": _effect_text(row["effect"], row["low"], row["high"]),
                "p_value": format_number(row["p_value"]),
            }
            for row in rows
        ],
    }


def _effect_text(effect: Any, low: Any, high: Any) -> str:
    # A single pair has no interval: nothing is better than "[nan, nan]".
    if any(bound is None or not math.isfinite(bound) for bound in (effect, low, high)):
        return format_number(effect)
    return format_interval(effect, low, high)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _printable(value: Any) -> Any:
    """Replace what HTML cannot hold (control characters, halves of surrogate pairs) by U+FFFD."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)


@functools.cache
def _template_file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
