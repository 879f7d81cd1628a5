"""A highlighted part of an output and the source spans attributed to it, as blocks of a report."""

from collections.abc import Mapping, Sequence

from jaxcore.attribution.lexical_alignment import words_with_offsets
from jaxcore.attribution.text_spans import Offsets, Span, overlap
from jaxcore.reporting.heatmaps import TokenHeatmap
from jaxcore.reporting.html import Block, Paragraph
from jaxcore.reporting.tables import Table


def bracketed(text: str, spans: Sequence[Offsets], *, within: Offsets | None = None) -> str:
    """A part of a text with spans in brackets: "⟦the dam⟧ was finished"."""
    last, end = within or (0, len(text))
    shown = ""
    for start, stop in sorted(spans):
        shown += f"{text[last:start]}⟦{text[start:stop]}⟧"
        last = stop
    return shown + text[last:end]


def source_map(
    sources: Sequence[Span], documents: Mapping[str, str], attributed: Sequence[Span], gold: Sequence[Span] = ()
) -> TokenHeatmap:
    """The words of candidate sources: coloured where they are attributed, underlined where people aligned them.

    Raises:
        ValueError: sources without a word.
    """
    words, chosen, marked = [], [], []
    for document, begin, stop in sources:
        for word, start, end in words_with_offsets(documents[document][begin:stop]):
            place = Span(document, begin + start, begin + end)
            words.append(word)
            chosen.append(float(_in_any(place, attributed)))
            marked.append(_in_any(place, gold))
    return TokenHeatmap(
        words, chosen, marked=marked, limit=1.0, positive_label="attributed", marked_label="aligned by people"
    )


def attribution_table(attributed: Sequence[Span], documents: Mapping[str, str]) -> Block:
    """Document, offsets and text of each attributed span; a sentence where there is none."""
    rows = [(*span, documents[span.document][span.start : span.end]) for span in attributed]
    return Table(("document", "from", "to", "text"), rows) if rows else Paragraph("Nothing was attributed.")


def _in_any(place: Span, spans: Sequence[Span]) -> bool:
    return any(span.document == place.document and overlap(span[1:], place[1:]) for span in spans)
