"""Sources over local files: JSONL, CSV, Parquet, and folders of texts by author."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcore.data.array_cache import content_hash
from jaxcore.data.records import (
    AUTHOR_FIELDS,
    Field,
    PathLike,
    RecordScan,
    checked_index,
    decode_text,
    read_record,
)

logger = logging.getLogger(__name__)


def _existing_files(paths: PathLike | Sequence[PathLike]) -> list[pathlib.Path]:
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = [pathlib.Path(path) for path in several]
    for file in files:
        if not file.is_file():
            raise ValueError(f"no file at {file}; give the path of an existing file (here: {pathlib.Path.cwd()})")
    if not files:
        raise ValueError("no files given; name at least one")
    return files


def _name(files: Sequence[pathlib.Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _open_binary(path: pathlib.Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        with _open_binary(path) as file:
            return file.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it a complete {path.suffix or 'plain'} file?") from error


def _file_fingerprint(kind: str, files: Sequence[pathlib.Path], fields: Sequence[Field]) -> str:
    digests = []
    for path in files:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    return content_hash(kind, repr(tuple(fields)), *digests)


class JsonlSource:
    """One JSON object per line; plain files are read by position (only offsets stay in memory), .gz ones are
    held.

    Args:
        paths: A file or several, .jsonl or .jsonl.gz.
        fields: What a record must have.
        max_malformed_rate: Share of malformed lines above which the run stops.

    Raises:
        ValueError: Missing file, empty corpus, too many malformed lines.
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        fields: Sequence[Field] = AUTHOR_FIELDS,
        max_malformed_rate: float = 0.01,
    ) -> None:
        self._files = _existing_files(paths)
        self._fields = tuple(fields)
        self._held: dict[int, bytes] = {}
        scan = RecordScan(_name(self._files), max_malformed_rate)
        places = [place for number in range(len(self._files)) for place in self._scan_file(number, scan)]
        scan.finish()
        self.malformed = scan.malformed
        self._places = np.asarray(places, np.int64).reshape(-1, 3)  # file, first byte, length

    def _scan_file(self, number: int, scan: RecordScan) -> Iterator[tuple[int, int, int]]:
        path = self._files[number]
        if path.suffix == ".gz":
            self._held[number] = _read_bytes(path)
        start = 0
        with io.BytesIO(self._held[number]) if number in self._held else open(path, "rb") as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        self._parse(line)
                        scan.accept()
                        yield number, start, len(line)
                    except ValueError as error:
                        scan.reject(path, line_number, error)
                start += len(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        text = decode_text(line.removeprefix(codecs.BOM_UTF8))
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise ValueError("not JSON that can be read (nested too deeply)") from None
        return read_record(values, self._fields)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, start, length = (int(value) for value in self._places[checked_index(index, len(self))])
        if number in self._held:
            return self._parse(self._held[number][start : start + length])
        with open(self._files[number], "rb") as file:  # opened anew: readers may be threads
            file.seek(start)
            return self._parse(file.read(length))

    def fingerprint(self) -> str:
        return _file_fingerprint("jsonl", self._files, self._fields)


class CsvSource:
    """Rows of CSV or TSV files with a header line, held in memory (for more, convert to JSONL, Parquet or
    TFDS).

    Raises:
        ValueError: Missing file, no header with the required columns, empty corpus, too many malformed rows.
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        fields: Sequence[Field] = AUTHOR_FIELDS,
        delimiter: str | None = None,
        max_malformed_rate: float = 0.01,
    ) -> None:
        self._files = _existing_files(paths)
        self._fields = tuple(fields)
        scan = RecordScan(_name(self._files), max_malformed_rate)
        self._records: list[dict[str, Any]] = []
        for path in self._files:
            tabs = path.name.removesuffix(".gz").endswith(".tsv")
            self._read(path, delimiter or ("\t" if tabs else ","), scan)
        scan.finish()
        self.malformed = scan.malformed

    def _read(self, path: pathlib.Path, delimiter: str, scan: RecordScan) -> None:
        # Undecodable bytes become lone surrogates, which read_record reports: a bad row does not hide the
        # others.
        text = _read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
        limit = csv.field_size_limit(2**31 - 1)  # the default refuses a chapter of a book
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            header = next(rows, [])
            missing = [field.key for field in self._fields if field.required and field.key not in header]
            if missing:
                raise ValueError(
                    f"{path}: no column {', '.join(map(repr, missing))} in the header {header}; "
                    "rename it, or map it with Field(name, column)"
                )
            while True:
                line = rows.line_num + 1
                try:
                    row = next(rows, None)
                    if row is None:
                        return
                    if row:
                        self._records.append(self._parse(header, row))
                        scan.accept()
                except (ValueError, csv.Error) as error:
                    scan.reject(path, line, error)
        finally:
            csv.field_size_limit(limit)

    def _parse(self, header: list[str], row: list[str]) -> dict[str, Any]:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} values for {len(header)} columns")
        return read_record({name: value or None for name, value in zip(header, row, strict=True)}, self._fields)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._records[checked_index(index, len(self))])

    def fingerprint(self) -> str:
        return _file_fingerprint("csv", self._files, self._fields)


class ParquetSource:
    """Rows of Parquet files. One decoded row group stays in memory, so that reading in order is cheap;
    shuffled reading belongs after tokenisation. A malformed row's "line" is its row number, counted from 1.

    Raises:
        ValueError: Missing or unreadable file, missing column, empty corpus, too many malformed rows.
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        fields: Sequence[Field] = AUTHOR_FIELDS,
        max_malformed_rate: float = 0.01,
    ) -> None:
        self._files = _existing_files(paths)
        self._fields = tuple(fields)
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[int, int], list[dict[str, Any]]] = ((-1, -1), [])
        scan = RecordScan(_name(self._files), max_malformed_rate)
        places = [place for number in range(len(self._files)) for place in self._scan_file(number, scan)]
        scan.finish()
        self.malformed = scan.malformed
        self._places = np.asarray(places, np.int64).reshape(-1, 3)  # file, row group, row in the group

    def _open(self, number: int):
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self._files[number])
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self._files[number]} is not a readable Parquet file ({error})") from error

    def _scan_file(self, number: int, scan: RecordScan) -> Iterator[tuple[int, int, int]]:
        path, first_row = self._files[number], 1
        with self._open(number) as file:
            columns = file.schema_arrow.names
            missing = [field.key for field in self._fields if field.required and field.key not in columns]
            if missing:
                raise ValueError(
                    f"{path}: no column {', '.join(map(repr, missing))} among {columns}; "
                    "rename it, or map it with Field(name, column)"
                )
            for group in range(file.num_row_groups):
                rows = self._rows(file, group)
                for row, values in enumerate(rows):
                    try:
                        read_record(values, self._fields)
                        scan.accept()
                        yield number, group, row
                    except ValueError as error:
                        scan.reject(path, first_row + row, error)
                first_row += len(rows)

    def _rows(self, file: Any, group: int) -> list[dict[str, Any]]:
        import pyarrow

        table = file.read_row_group(group, columns=[field.key for field in self._fields])
        for position, column in enumerate(table.schema):
            if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                # As bytes: a string that is not UTF-8 would make the whole group unreadable.
                kind = pyarrow.large_binary() if pyarrow.types.is_large_string(column.type) else pyarrow.binary()
                table = table.set_column(position, column.name, table.column(position).cast(kind))
        return table.to_pylist()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, group, row = (int(value) for value in self._places[checked_index(index, len(self))])
        with self._lock:
            if self._loaded[0] != (number, group):
                with self._open(number) as file:
                    self._loaded = ((number, group), self._rows(file, group))
            values = self._loaded[1][row]
        return read_record(values, self._fields)

    def fingerprint(self) -> str:
        return _file_fingerprint("parquet", self._files, self._fields)


class TextFolderSource:
    """Whole texts by author: one folder per author, or flat files AUTHOR_Title.txt (author up to the first
    `_`).

    Records have `text`, `author` and `work` (the rest of the file's name). Files are .txt, plain or .gz,
    UTF-8 with or without byte-order mark; line ends become "\\n". Texts are read when asked for, not held.

    Raises:
        ValueError: Missing folder, no texts in it, too many that are blank, unnamed or not UTF-8.
    """

    def __init__(self, path: PathLike, *, max_malformed_rate: float = 0.01) -> None:
        self._root = pathlib.Path(path)
        if not self._root.is_dir():
            raise ValueError(
                f"no folder at {self._root}; give a folder with one folder, or one file prefix, per author"
            )
        scan = RecordScan(str(self._root), max_malformed_rate)
        digest: list[str] = []
        self._texts: list[tuple[pathlib.Path, str, str]] = []
        for file, author, work in self._list():
            try:
                if not author or not work:
                    raise ValueError(
                        "no author in the file's name; name it AUTHOR_Title.txt, or use a folder per author"
                    )
                text = self._read(file)
                if not text.strip():
                    raise ValueError("the file is blank")
            except ValueError as error:
                scan.reject(file, 1, error)
                continue
            scan.accept()
            digest += [author, work, content_hash(text)]
            self._texts.append((file, author, work))
        scan.finish()
        self.malformed = scan.malformed
        self._fingerprint = content_hash("text folder", *digest)

    def _list(self) -> Iterator[tuple[pathlib.Path, str, str]]:
        """(file, author, work) of every text, in a fixed order."""
        nested = sorted(file for file in self._root.rglob("*") if file.parent != self._root and _is_text(file))
        flat = sorted(file for file in self._root.iterdir() if _is_text(file))
        if nested and flat:
            logger.warning("%s has a folder per author: its %d loose files are ignored", self._root, len(flat))
        if nested:
            for file in nested:
                author, *rest = file.relative_to(self._root).parts
                yield file, author, _stem("/".join(rest))
        else:
            for file in flat:
                author, _, work = _stem(file.name).partition("_")
                yield file, author, work

    def _read(self, file: pathlib.Path) -> str:
        text = decode_text(_read_bytes(file)).removeprefix("\ufeff")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, author, work = self._texts[checked_index(index, len(self))]
        return {"text": self._read(file), "author": author, "work": work}

    def fingerprint(self) -> str:
        return self._fingerprint


def _is_text(file: pathlib.Path) -> bool:
    return file.name.endswith((".txt", ".txt.gz")) and not file.name.startswith(".") and file.is_file()


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".txt")
