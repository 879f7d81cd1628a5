"""Files in which people marked what supports what: SPARK's span alignments, and spans of answers with their passage."""

import collections
import csv
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

from jaxcore.attribution.text_spans import Offsets, Span, merge_spans
from jaxcore.data.grounded_texts import GroundedText, SourceDocument, split_sentences
from jaxcore.data.highlight_queries import HighlightQuery, merge_pieces

_SEPARATOR = "<SPAN_SEP>"
_MARKED = re.compile(r"\[ (\d+) ([^\[\]]*?) ?\]")


@dataclasses.dataclass(frozen=True)
class SpanAlignment:
    """A part of a summary, and what people aligned with it in one document."""

    topic: str
    sentence: Offsets
    """Of the summary."""
    summary: tuple[Offsets, ...]
    document: str
    source: tuple[Offsets, ...]
    source_sentences: tuple[int, ...]
    """First characters, as the file states them, of the document's sentences that hold the source spans. In one
    document of the published file (19 of 2,967 sentences) they are not the document's."""


def read_spark_alignments(path: str | os.PathLike[str], texts: Mapping[str, GroundedText]) -> list[SpanAlignment]:
    """SPARK's manual alignments; the text at every stated offset must be the text that the file quotes.

    Args:
        path: `manual_alignments.csv`.
        texts: by topic, see `read_mds`.

    Raises:
        ValueError: no such file, columns that are missing, a topic or document that is not in `texts`, a span whose
            text is another one (the line is named).
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    alignments = []
    for number, row in enumerate(_csv_rows(file), 2):
        place = f"{file}, row {number}"
        missing = {"topic", "scuSentCharIdx", "documentFile", "docSpanOffsets", "summarySpanOffsets"} - set(row)
        if missing:
            raise ValueError(f"{place}: the columns {', '.join(sorted(missing))} are missing")
        text = texts.get(row["topic"])
        if text is None or row["documentFile"] not in text.texts():
            raise ValueError(f"{place}: no document {row['documentFile']} of topic {row['topic']}")
        summary, source = _offsets(row["summarySpanOffsets"]), _offsets(row["docSpanOffsets"])
        _check_quoted(place, text.output, summary, row["summarySpanText"])
        _check_quoted(place, text.texts()[row["documentFile"]], source, row["docSpanText"])
        start = int(float(row["scuSentCharIdx"]))
        alignments.append(
            SpanAlignment(
                topic=row["topic"],
                sentence=(start, start + len(row["scuSentence"])),
                summary=summary,
                document=row["documentFile"],
                source=source,
                source_sentences=tuple(int(part) for part in row["docSentCharIdx"].split(",")),
            )
        )
    return alignments


def spark_queries(
    alignments: list[SpanAlignment], texts: Mapping[str, GroundedText], *, min_highlights: int = 2
) -> list[HighlightQuery]:
    """One query per distinct highlight of a summary sentence that has at least `min_highlights` of them.

    Candidates are the source sentences that people aligned with any part of the summary sentence: the coarse
    attribution that a perfect sentence-level method would give. They are gold, so what is measured is the step from
    sentences to spans alone. A stated sentence that does not begin where a sentence of the document does is left out.
    """
    sentences: dict[tuple[str, Offsets], list[SpanAlignment]] = collections.defaultdict(list)
    for alignment in alignments:
        sentences[alignment.topic, alignment.sentence].append(alignment)
    ends = {
        (topic, document.name, start): end
        for topic, text in texts.items()
        for document in text.documents
        for start, end in document.sentences
    }
    queries = []
    for (topic, sentence), rows in sentences.items():
        highlights: dict[tuple[Offsets, ...], list[Span]] = {}
        for row in rows:
            gold = highlights.setdefault(row.summary, [])
            gold += [Span(row.document, *span) for span in row.source]
        if len(highlights) < min_highlights:
            continue
        coarse = merge_pieces(
            Span(row.document, start, ends[topic, row.document, start])
            for row in rows
            for start in row.source_sentences
            if (topic, row.document, start) in ends
        )
        queries += [
            HighlightQuery(texts[topic], highlight, sentence, tuple(coarse), tuple(merge_spans(gold)))
            for highlight, gold in highlights.items()
        ]
    return queries


def read_granular_statements(path: str | os.PathLike[str]) -> list[HighlightQuery]:
    """Spans of generated answers that people attributed to a passage of the retrieved page (Phukan et al. 2024).

    A span is marked in the answer as "[ k words ]": words that passage k - 1, counted from 0, supports. Spans with the
    same number in one answer are one query. The page is one document, its passages joined by line breaks; candidates
    are all passages.

    Raises:
        ValueError: no such file, a line of another layout, a number without a passage.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    queries: list[HighlightQuery] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        page = _joined_passages(record["passages"])
        output, marked = unmark(record["summary"])
        text = GroundedText(f"{file.stem}:{number}", (page,), output, split_sentences(output), record["question"])
        for passage, spans in marked.items():
            if not 1 <= passage <= len(page.sentences):
                raise ValueError(f"{file}, line {number}: passage {passage} of {len(page.sentences)}")
            whole = next((s for s in text.output_sentences if s[0] <= spans[0][0] < s[1]), (0, len(output)))
            sentence = min(whole[0], spans[0][0]), max(whole[1], spans[-1][1])
            gold = Span("page", *page.sentences[passage - 1])
            queries.append(HighlightQuery(text, tuple(spans), sentence, tuple(page.spans()), (gold,)))
    return queries


def unmark(marked: str) -> tuple[str, dict[int, list[Offsets]]]:
    """An answer without its marks, and the marked spans by number of their passage."""
    text, spans, last = "", collections.defaultdict(list), 0
    for match in _MARKED.finditer(marked):
        text += marked[last : match.start()]
        words = match.group(2)
        begin = len(text) + len(words) - len(words.lstrip())
        if text and not text[-1].isspace() and not words[:1].isspace():
            text += " "
            begin += 1
        text += words
        if begin < len(text):
            spans[int(match.group(1))].append((begin, len(text)))
        last = match.end()
    return text + marked[last:], dict(spans)


def _joined_passages(passages: list[str]) -> SourceDocument:
    spans, begin = [], 0
    for passage in passages:
        spans.append((begin, begin + len(passage)))
        begin += len(passage) + 1
    return SourceDocument("page", "\n".join(passages), tuple(spans))


def _csv_rows(file: pathlib.Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # fields hold whole passages
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _offsets(text: str) -> tuple[Offsets, ...]:
    spans = []
    for part in text.split(";"):
        start, end = part.split(",")
        spans.append((int(start), int(end)))
    return tuple(spans)


def _check_quoted(place: str, text: str, spans: tuple[Offsets, ...], quoted: str) -> None:
    for (start, end), words in zip(spans, quoted.split(_SEPARATOR), strict=True):
        if text[start:end] != words:
            raise ValueError(f"{place}: [{start}, {end}) reads {text[start:end][:40]!r}, expected {words[:40]!r}")
