"""Reporting: results as one self-contained HTML file, and numbers and tables as text.

- ``html``      `Report` and its blocks; `write_report`, `render_report`
- ``heatmaps``  documents coloured by the attribution of their tokens
- ``plots``     line charts as inline SVG in the page's colours
- ``tables``    number formats and tables, shared by the terminal and the page
- ``palette``   every colour, in light and in dark
- ``templates`` the page: markup, style sheet, script
"""

from jaxcore.reporting.heatmaps import TokenHeatmap, TokenHeatmaps
from jaxcore.reporting.html import (
    Block,
    Headline,
    KeyValues,
    Paragraph,
    Report,
    Section,
    VerdictTable,
    flatten,
    render_report,
    write_report,
)
from jaxcore.reporting.plots import Curves
from jaxcore.reporting.tables import (
    Table,
    format_column,
    format_interval,
    format_number,
    text_table,
)

__all__ = [
    "Block",
    "Curves",
    "Headline",
    "KeyValues",
    "Paragraph",
    "Report",
    "Section",
    "Table",
    "TokenHeatmap",
    "TokenHeatmaps",
    "VerdictTable",
    "flatten",
    "format_column",
    "format_interval",
    "format_number",
    "render_report",
    "text_table",
    "write_report",
]
