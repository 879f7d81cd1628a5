"""Highlights and attributed spans as blocks of a report."""

from jaxcore.attribution.text_spans import Span
from jaxcore.reporting import Paragraph, Report, Section, Table, render_report
from jaxcore.reporting.attributed_spans import attribution_table, bracketed, source_map

DOCUMENTS = {"<i>d</i>": "Some <b>bold</b> words. Others."}
SOURCE = Span("<i>d</i>", 0, 23)


def test_brackets_stand_around_spans_within_the_sentence():
    text = "One two three. Four."
    assert bracketed(text, [(8, 13), (0, 3)], within=(0, 14)) == "⟦One⟧ two ⟦three⟧."
    assert bracketed(text, [(15, 19)]) == "One two three. ⟦Four⟧."


def test_words_are_coloured_where_attributed_and_underlined_where_aligned():
    shown = source_map([SOURCE], DOCUMENTS, [Span("<i>d</i>", 8, 12)], [Span("<i>d</i>", 17, 22), Span("e", 0, 9)])
    assert [word for word, value in zip(shown.tokens, shown.values, strict=True) if value] == ["bold"]
    assert [word for word, marked in zip(shown.tokens, shown.marked, strict=True) if marked] == ["words"]
    assert "Others" not in shown.tokens


def test_tables_hold_the_spans_text_or_say_that_there_is_none():
    table = attribution_table([Span("<i>d</i>", 8, 12)], DOCUMENTS)
    assert isinstance(table, Table) and table.rows == [("<i>d</i>", 8, 12, "bold")]
    assert isinstance(attribution_table([], DOCUMENTS), Paragraph)


def test_markup_in_texts_and_names_is_escaped():
    blocks = [
        Paragraph(bracketed("<u>x</u>", [(0, 3)])),
        source_map([SOURCE], DOCUMENTS, [SOURCE]),
        attribution_table([SOURCE], DOCUMENTS),
    ]
    page = render_report(Report("t", sections=[Section("s", blocks)]))
    assert not any(tag in page for tag in ("<b>bold", "<u>x", "<i>d"))
    assert "⟦&lt;u&gt;⟧" in page and "&lt;i&gt;d&lt;/i&gt;" in page and "&lt;b&gt;bold&lt;/b&gt;" in page
