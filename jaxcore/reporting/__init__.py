"""Reporting: results as one self-contained HTML file, and numbers and tables as text.

- ``html``      `Report` and its blocks; `write_report`, `render_report`
- ``heatmaps``  documents coloured by the attribution of their tokens
- ``token_maps`` several methods side by side, layers x tokens, agreement of methods; in the terminal
- ``image_overlays`` attributions of an image laid over it, several methods side by side
- ``figures``, ``latex`` the same as PNG and as LaTeX
- ``explanations``, ``authorship`` whole reports of explained texts
- ``generation_attribution`` the page on which what a model wrote lights up what it came from, by its name
- ``reasoning_graph`` the page on which a reasoning trace shows what its sentences hang on, by its name
- ``verbalisation``, ``saliency_search`` attributions in words
- ``plots``     line charts as inline SVG in the page's colours
- ``tables``    number formats and tables, shared by the terminal and the page
- ``palette``   every colour, in light and in dark
- ``run_report`` the page of one run of an experiment, by its name
- ``attributed_spans`` a highlight of an output with the source spans attributed to it, by its name
- ``verbalisation_measures``, ``verbalisation_study`` what verbalised maps show, cite, state and quote; the published
  human study of them, analysed again; by their names
- ``templates`` the page: markup, style sheet, script
"""

from jaxcore.reporting.heatmaps import TokenHeatmap, TokenHeatmaps
from jaxcore.reporting.html import (
    Block,
    Headline,
    KeyValues,
    Link,
    Paragraph,
    Report,
    Section,
    VerdictTable,
    flatten,
    render_report,
    write_report,
)
from jaxcore.reporting.image_overlays import ImageOverlay
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
    "ImageOverlay",
    "KeyValues",
    "Link",
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
