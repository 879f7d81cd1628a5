"""Records: the fields they must have, and the account of those that are malformed."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_LOGGED_MALFORMED = 20  # the log names this many; all of them stay in `source.malformed`
_SHOWN_MALFORMED = 3


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record: its name in the record given out, its column in the file, its Python type."""

    name: str
    column: str = ""
    """Name in the file; the same as `name` by default."""
    kind: type = str
    """str, int or float. Text must not be blank; numbers written as text (CSV) are converted."""
    required: bool = True
    """A record without an optional field is given out without it."""

    @property
    def key(self) -> str:
        return self.column or self.name


AUTHOR_FIELDS = (Field("text"), Field("author"), Field("work", required=False))
"""What authorship needs: the text, who wrote it, and, where known, the work or topic it comes from."""


@dataclasses.dataclass(frozen=True)
class MalformedRecord:
    """A record that was left out: where it is (file, line counted from 1) and why."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def read_record(values: Any, fields: Sequence[Field]) -> dict[str, Any]:
    """The record with these fields, checked and converted.

    Raises:
        ValueError: Not a mapping, a missing field, a value of the wrong type, blank or non-UTF-8 text.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object with fields, got {type(values).__name__}")
    record = {}
    for field in fields:
        value = values.get(field.key)
        if value is None or (isinstance(value, (str, bytes)) and not value.strip()):
            if field.required:
                raise ValueError(f"missing field '{field.key}'" if value is None else f"field '{field.key}' is blank")
            continue
        record[field.name] = _convert(value, field)
    return record


def _convert(value: Any, field: Field) -> Any:
    if isinstance(value, bytes):
        value = decode_text(value)
    if field.kind is str:
        if not isinstance(value, str):
            raise ValueError(f"field '{field.key}' is {type(value).__name__}, expected str")
        try:
            value.encode("utf-8")  # lone surrogates: what decoding left of bytes that are not UTF-8
        except UnicodeEncodeError:
            raise ValueError(
                f"field '{field.key}' is not UTF-8 text; convert it, e.g. iconv -f LATIN1 -t UTF-8"
            ) from None
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"field '{field.key}' is {type(value).__name__}, expected {field.kind.__name__}")
    try:
        converted = field.kind(value)
    except (ValueError, OverflowError):
        raise ValueError(f"field '{field.key}' is {value!r}, expected {field.kind.__name__}") from None
    if isinstance(value, float) and converted != value:
        raise ValueError(f"field '{field.key}' is {value!r}, expected {field.kind.__name__}")
    return converted


def decode_text(data: bytes) -> str:
    """The text of UTF-8 bytes; ValueError with the first bad byte and a way to convert otherwise."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 text (byte {data[error.start]:#04x} at {error.start}); "
            "convert it, e.g. iconv -f LATIN1 -t UTF-8"
        ) from None


class RecordScan:
    """The count of one pass over a source: records read, the malformed among them, and the verdict at the end."""

    def __init__(self, name: str, max_malformed_rate: float) -> None:
        if not 0 <= max_malformed_rate <= 1:
            raise ValueError(f"max_malformed_rate is {max_malformed_rate}; it is a share of records, in [0, 1]")
        self.name, self.max_malformed_rate = name, max_malformed_rate
        self.records = 0
        self.malformed: list[MalformedRecord] = []

    def reject(self, path: PathLike, line: int, reason: object) -> None:
        self.records += 1
        record = MalformedRecord(os.fspath(path), line, str(reason))
        self.malformed.append(record)
        if len(self.malformed) <= _LOGGED_MALFORMED:
            logger.warning("malformed record left out: %s", record)

    def accept(self) -> None:
        self.records += 1

    def finish(self) -> None:
        """Raises ValueError for an empty corpus and for too many malformed records."""
        bad = len(self.malformed)
        if bad > _LOGGED_MALFORMED:
            logger.warning("%s: %d malformed records left out of %d", self.name, bad, self.records)
        if self.records and bad / self.records > self.max_malformed_rate:
            shown = "; ".join(str(record) for record in self.malformed[:_SHOWN_MALFORMED])
            more = f"; and {bad - _SHOWN_MALFORMED} more" if bad > _SHOWN_MALFORMED else ""
            raise ValueError(
                f"{self.name}: {bad} of {self.records} records are malformed ({bad / self.records:.1%}, "
                f"allowed {self.max_malformed_rate:.1%}): {shown}{more}; "
                "mend them or raise max_malformed_rate"
            )
        if self.records == bad:
            raise ValueError(f"{self.name} has no records: the corpus is empty; give a source with at least one")


def checked_index(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"record {index} of {length}")
    return int(index)
