"""Texts with a class each, and the files they are read from: sentiment trees, ``text,label`` lines, tables, TFDS."""

import csv
import dataclasses
import gzip
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxcore.data.records import Field, RecordScan
from jaxcore.data.sentiment_trees import binary_sentences, read_sentiment_trees
from jaxcore.data.sources import ListSource, Source, open_source
from jaxcore.data.word_vocabulary import Text


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts, the second texts of pairs (or None), and class numbers."""

    first: Sequence[Text]
    second: Sequence[Text] | None
    labels: Int[np.ndarray, "texts"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "LabelledTexts":
        second = None if self.second is None else [self.second[row] for row in rows]
        return LabelledTexts([self.first[row] for row in rows], second, self.labels[rows])


def read_tree_sentences(path: str | os.PathLike[str]) -> LabelledTexts:
    """The sentences of a file of sentiment trees as words, 1 where positive, 0 where negative, without neutral ones.

    Raises:
        ValueError: see `read_sentiment_trees`.
    """
    sentences = binary_sentences(read_sentiment_trees(path))
    return LabelledTexts(sentences.words, None, sentences.labels)


def read_text_label_lines(path: pathlib.Path, *, max_malformed_rate: float = 0.01) -> LabelledTexts:
    """Lines ``text,label`` without header, no comma within the text, label 0 or 1; plain or .gz.

    Raises:
        ValueError: no lines, or more malformed ones than `max_malformed_rate` allows.
    """
    scan, texts, labels = RecordScan(str(path), max_malformed_rate), [], []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            text, comma, label = line.strip().rpartition(",")
            if not comma or label not in ("0", "1") or not text.strip():
                scan.reject(path, number, "expected text,label with label 0 or 1")
                continue
            scan.accept()
            texts.append(tuple(text.split()))
            labels.append(int(label))
    scan.finish()
    return LabelledTexts(texts, None, np.array(labels, np.int32))


def read_labelled_records(
    path: str, *, text_fields: Sequence[str], label_field: str, columns: Sequence[str] = ()
) -> LabelledTexts:
    """Texts, as strings, and integer labels of a file or dataset that `open_source` reads, or a CSV without header.

    Args:
        path: see `open_source`.
        text_fields: columns of the text, joined by a blank.
        label_field: column of the label, an integer.
        columns: names of the columns of a CSV without header (plain or .gz); empty: the source names them itself.

    Raises:
        ValueError: nothing there, columns that are missing.
    """
    fields = [*(Field(name) for name in text_fields), Field(label_field, kind=int)]
    source = _headerless(pathlib.Path(path), columns, fields) if columns else open_source(path, fields=fields)
    records = [source[index] for index in range(len(source))]
    texts = [" ".join(record[name] for name in text_fields) for record in records]
    return LabelledTexts(texts, None, np.array([record[label_field] for record in records], np.int64))


def _headerless(file: pathlib.Path, columns: Sequence[str], fields: Sequence[Field]) -> Source:
    if not file.is_file():
        raise ValueError(f"no file at {file} (from {pathlib.Path.cwd()}); check the path")
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    stream = io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline="")
    rows = [dict(zip(columns, row, strict=False)) for row in csv.reader(stream) if row]
    return ListSource(rows, fields=fields, name=str(file))
