"""Outputs that a generator wrote from sources, with the attribution it gave: LAQuer's stage 1, read or asked for.

A file has one JSON object a line, the published form: ``unique_id``, ``query`` (or null), ``response``, ``documents``
(``documentFile``, ``documentText``: its sentences, which are joined without a separator), and the rows of the coarse
attribution, ``set_of_highlights_in_context``: ``scuSentCharIdx`` and ``scuSentence`` (the part of the output),
``documentFile`` and, where not the whole document is meant, ``docSpanOffsets`` or ``docSentCharIdx``, ``docSentText``.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxcore.attribution.answer_attempts import AnswerPrompts
from jaxcore.attribution.text_spans import Offsets, Span, overlap
from jaxcore.data.grounded_texts import GroundedText, SourceDocument, source_document, split_sentences
from jaxcore.data.highlight_queries import CoarseRow, HighlightQuery, simulated_highlights, transfer_candidates


class GroundedAnswer(NamedTuple):
    """An output with its sources, and what the generator said of them."""

    text: GroundedText
    rows: tuple[CoarseRow, ...] | None
    """None: the generator attributed nothing, so that every source is a candidate."""


_INSTRUCTION = (
    "Answer the question in one paragraph of two to five sentences. Use only what the sources say, and do not name "
    "the sources."
)
_WITHOUT_QUESTION = (
    "The sources were found for one question. In one paragraph of two to five sentences, state what they say about "
    "it. Use only what the sources say, and do not name the sources."
)


def answer_prompt(text: GroundedText) -> str:
    """Asks a language model to write an output from the sources (end to end: it is not asked for citations)."""
    lines = [f"Source {number}: {document.text}" for number, document in enumerate(text.documents, 1)]
    question = [f"Question: {text.question}"] if text.question else []
    return "\n".join([_INSTRUCTION if text.question else _WITHOUT_QUESTION, "", *lines, *question, "Answer: "])


def write_answers(texts: Sequence[GroundedText], generate: AnswerPrompts, *, seed: int = 0) -> list[str]:
    """An output for each text, written from its sources."""
    return [answer.strip() for answer in generate([answer_prompt(text) for text in texts], seed)]


def with_output(text: GroundedText, output: str) -> GroundedText:
    """The sources with an output, cut into sentences."""
    return dataclasses.replace(text, output=output, output_sentences=split_sentences(output))


def answer_queries(
    answers: Sequence[GroundedAnswer], generate: AnswerPrompts, *, most: int = 10, seed: int = 42
) -> list[list[HighlightQuery]]:
    """Queries of each output: the simulated highlights of the facts it states, without gold spans.

    Args:
        generate: finds the facts of sentences.
        most, seed: see `simulated_highlights`.
    """
    highlights = simulated_highlights([answer.text for answer in answers], generate, most=most, seed=seed)
    return [
        [
            HighlightQuery(answer.text, tuple(spans), sentence, tuple(_candidates(answer, spans)))
            for sentence, spans in rows
        ]
        for answer, rows in zip(answers, highlights, strict=True)
    ]


def _candidates(answer: GroundedAnswer, highlight: Sequence[Offsets]) -> list[Span]:
    """Source sentences that the generator attributed to what is highlighted; all where it gave no attribution."""
    sentences = answer.text.sentences()
    if answer.rows is None:
        return sentences
    allowed = transfer_candidates(answer.rows, highlight)
    return [
        source
        for source in sentences
        if any(source.document == span.document and overlap(source[1:], span[1:]) for span in allowed)
    ]


def read_grounded_answers(
    path: str | os.PathLike[str], sources: Mapping[str, GroundedText] | None = None
) -> list[GroundedAnswer]:
    """Outputs of a generator.

    Args:
        path: JSON Lines as above.
        sources: documents of the lines that have none, by ``unique_id`` (`read_lfqa`, `read_mds`).

    Raises:
        ValueError: no such file, none or a damaged line, a line without output or documents, a row whose document or
            offsets are not there (the line is named).
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    answers = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            place = f"{file}, line {number}"
            try:
                answers.append(_answer(json.loads(line), sources or {}, place))
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{place}: not an output with its sources ({error!r})") from error
    if not answers:
        raise ValueError(f"{file} holds no line")
    return answers


def _answer(record: Mapping[str, Any], sources: Mapping[str, GroundedText], place: str) -> GroundedAnswer:
    name, output = str(record["unique_id"]), record["response"]
    if not isinstance(output, str) or not output.strip():
        raise ValueError(f"{place}: the response of {name} is empty")
    documents: tuple[SourceDocument, ...]
    if record.get("documents"):
        documents = tuple(map(_document, record["documents"]))
    elif name in sources:
        documents = sources[name].documents
    else:
        raise ValueError(f"{place}: no documents of {name}, neither in the line nor in the file of sources")
    text = with_output(GroundedText(name, documents, question=record.get("query") or ""), output)
    rows = record.get("set_of_highlights_in_context")
    return GroundedAnswer(text, None if rows is None else tuple(r for row in rows for r in _coarse(row, text, place)))


def _document(record: Mapping[str, Any]) -> SourceDocument:
    parts = record["documentText"]
    if isinstance(parts, str):
        return source_document(record["documentFile"], parts)
    ends = itertools.accumulate(map(len, parts), initial=0)
    places = tuple((start, end) for start, end in itertools.pairwise(ends) if start < end)
    return SourceDocument(record["documentFile"], "".join(parts), places)


def _coarse(row: Mapping[str, Any], text: GroundedText, place: str) -> list[CoarseRow]:
    """A row's parts of a document, each by itself."""
    output = None
    if row.get("scuSentCharIdx") is not None:
        output = (int(row["scuSentCharIdx"]), int(row["scuSentCharIdx"]) + len(row["scuSentence"]))
        _check_inside(output, text.output, f"{place}: the response")
    name = row.get("documentFile")
    if name is None:
        return [CoarseRow(output, None)]
    documents = text.texts()
    if name not in documents:
        raise ValueError(f"{place}: no document {name} of {text.name}")
    spans = [(0, len(documents[name]))]
    if row.get("docSpanOffsets"):
        spans = [(int(start), int(end)) for start, end in row["docSpanOffsets"]]
    elif row.get("docSentCharIdx") is not None:
        spans = [(int(row["docSentCharIdx"]), int(row["docSentCharIdx"]) + len(row["docSentText"]))]
    for span in spans:
        _check_inside(span, documents[name], f"{place}: {name}")
    return [CoarseRow(output, Span(name, *span)) for span in spans]


def _check_inside(span: Offsets, text: str, place: str) -> None:
    if not 0 <= span[0] < span[1] <= len(text):
        raise ValueError(f"{place} has {len(text)} characters: [{span[0]}, {span[1]}) is no part of it")
