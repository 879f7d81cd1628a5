"""Texts that were written from source documents, and readers of the files that hold them.

Files of the LAQuer repository: MDS (`sents_separation.json`, news clusters with summaries, cut into sentences that are
joined without a separator) and LFQA (`test.json`, retrieved pages of long-form questions).
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcore.attribution.text_spans import Offsets, Span

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])|\n+")


@dataclasses.dataclass(frozen=True)
class SourceDocument:
    """A source: its text, and where its sentences are."""

    name: str
    text: str
    sentences: tuple[Offsets, ...]

    def spans(self) -> list[Span]:
        """The sentences as spans."""
        return [Span(self.name, *sentence) for sentence in self.sentences]


@dataclasses.dataclass(frozen=True)
class GroundedText:
    """An output and the documents it was written from."""

    name: str
    documents: tuple[SourceDocument, ...]
    output: str = ""
    """Empty where only the sources are known."""
    output_sentences: tuple[Offsets, ...] = ()
    question: str = ""

    def texts(self) -> dict[str, str]:
        """The documents' texts by name."""
        return {document.name: document.text for document in self.documents}

    def sentences(self) -> list[Span]:
        """All sentences of all documents, in order."""
        return [span for document in self.documents for span in document.spans()]


def split_sentences(text: str) -> tuple[Offsets, ...]:
    """Sentences by punctuation and line breaks, without the white space around them; abbreviations may cut them."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)] + [len(text)]
    spans = []
    for start, end in zip([0, *ends], ends, strict=False):
        words = text[start:end]
        start += len(words) - len(words.lstrip())
        end = start + len(words.strip())
        if start < end:
            spans.append((start, end))
    return tuple(spans)


def source_document(name: str, text: str) -> SourceDocument:
    """A document whose sentences nobody has marked."""
    return SourceDocument(name, text, split_sentences(text))


def read_mds(path: str | os.PathLike[str]) -> dict[str, GroundedText]:
    """News clusters by topic: documents, and the summary as output.

    Raises:
        ValueError: no such file, or sentences whose stated offset is not where they are.
    """
    data = _read_json(path, ("documents", "summaries"))
    return {
        topic: GroundedText(
            topic,
            tuple(SourceDocument(name, *_joined(rows, f"{path}: {topic}/{name}")) for name, rows in documents.items()),
            *_joined(data["summaries"][topic], f"{path}: summary of {topic}"),
        )
        for topic, documents in data["documents"].items()
    }


def read_lfqa(path: str | os.PathLike[str]) -> dict[str, GroundedText]:
    """Retrieved pages by question id; outputs are not in the file.

    Raises:
        ValueError: no such file, or another layout.
    """
    data = _read_json(path, ("documents",))
    return {
        name: GroundedText(name, tuple(source_document(url, text) for url, text in pages.items()))
        for name, pages in data["documents"].items()
    }


def _joined(rows: Sequence[Mapping[str, Any]], place: str) -> tuple[str, tuple[Offsets, ...]]:
    """Sentences put together without a separator, and their places, checked against those that the file states."""
    text, spans = "", []
    for row in rows:
        if row["sent_idx"] != len(text):
            raise ValueError(f"{place}: sentence {row['sent_i']} starts at {row['sent_idx']}, expected {len(text)}")
        spans.append((len(text), len(text) + len(row["sent_text"])))
        text += row["sent_text"]
    return text, tuple(span for span in spans if span[0] < span[1])


def _read_json(path: str | os.PathLike[str], names: Sequence[str]) -> Any:
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not set(names) <= set(data):
        raise ValueError(f"{file}: expected a JSON object with {', '.join(names)}")
    return data
