"""Texts under titles: the language reference that comes with Python, or a file of titles and texts.

The embedded corpus is real prose about related things, under headings that name what each part is about: a thousand
paragraphs, two hundred headings. It is read from the running Python's own `pydoc_data`, so its wording is that of the
Python version.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxcore.data.records import Field, MalformedRecord
from jaxcore.data.sources import ListSource, open_source

_MIN_WORDS = 16
"""Shorter paragraphs (captions, signatures) say too little to be told apart by."""
_UNDERLINE = re.compile(r"([*=\-~^])\1{2,}\s*")


class TitledTexts(NamedTuple):
    """Texts with the title each stands under, and the topic that title belongs to (the title where there is none)."""

    texts: tuple[str, ...]
    titles: tuple[str, ...]
    topics: tuple[str, ...]


def python_reference_texts() -> TitledTexts:
    """Paragraphs of at least 16 words of Python's language reference, each once, with its section heading and topic.

    Only letters and underscores are kept, in lower case. A paragraph that several topics share belongs to the shortest.
    """
    from pydoc_data.topics import topics

    found: dict[str, tuple[str, str]] = {}
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for title, paragraph in _sections(topics[topic]):
            text = _words(paragraph)
            if text.count(" ") + 1 >= _MIN_WORDS:
                found.setdefault(text, (_words(title), topic))
    return TitledTexts(
        tuple(found), tuple(title for title, _ in found.values()), tuple(topic for _, topic in found.values())
    )


def _sections(document: str) -> Iterator[tuple[str, str]]:
    """(heading, paragraph) pairs; a heading is a line with a line of ``***``, ``===`` or the like under it."""
    lines = document.split("\n")
    title, paragraph = "", []  # type: str, list[str]
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        is_heading = bool(line.strip()) and _UNDERLINE.fullmatch(following) is not None
        if is_heading or not line.strip():
            if title and paragraph:
                yield title, " ".join(paragraph)
            paragraph = []
            title = line if is_heading else title
        elif not _UNDERLINE.fullmatch(line):
            paragraph.append(line)
    if title and paragraph:
        yield title, " ".join(paragraph)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z_]+", text.lower()))


def read_titled_texts(
    path: str | os.PathLike[str], *, title_field: str = "title", text_field: str = "text", topic_field: str = ""
) -> TitledTexts:
    """Titles and texts of a file.

    Args:
        path: a .txt with ``title<TAB>text`` per line, or anything `open_source` opens.
        title_field, text_field, topic_field: columns; without a topic column, the title is the topic.

    Raises:
        ValueError: nothing there, a line without a tab (with its number), a missing field.
    """
    name = os.fspath(path)
    if not name.startswith("tfds:") and pathlib.Path(name).suffix == ".txt":
        records = _read_lines(pathlib.Path(name))
    else:
        columns = {"title": title_field, "text": text_field} | ({"topic": topic_field} if topic_field else {})
        source = open_source(name, fields=tuple(Field(key, column) for key, column in columns.items()))
        records = ListSource((source[i] for i in range(len(source))), fields=tuple(map(Field, columns)), name=name)
    rows = [records[i] for i in range(len(records))]
    return TitledTexts(
        tuple(row["text"] for row in rows),
        tuple(row["title"] for row in rows),
        tuple(row.get("topic", row["title"]) for row in rows),
    )


def _read_lines(path: pathlib.Path) -> ListSource:
    if not path.is_file():
        raise ValueError(f"no file at {path} (from {pathlib.Path.cwd()}); check the path")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            title, tab, text = line.partition("\t")
            if not tab:
                raise ValueError(str(MalformedRecord(str(path), number, "expected title<TAB>text, found no tab")))
            records.append({"title": title, "text": text})
    return ListSource(records, fields=(Field("title"), Field("text")), name=str(path))
