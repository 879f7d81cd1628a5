"""Where records come from: TFDS, JSONL, CSV, Parquet, folders of texts, lists, all behind one small
interface.

A `Source` is a random-access sequence of dict records (what grain calls a random-access data source) with a
content hash. Files are checked once, when opened: a malformed record is logged with its file and line,
counted, and left out; more of them than `max_malformed_rate` stop the run. `open_source` picks the source
from a path.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxcore.data.array_cache import content_hash
from jaxcore.data.file_sources import CsvSource, JsonlSource, ParquetSource, TextFolderSource
from jaxcore.data.records import (
    AUTHOR_FIELDS,
    Field,
    MalformedRecord,
    PathLike,
    RecordScan,
    checked_index,
    read_record,
)


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of records, with a hash of their content."""

    malformed: list[MalformedRecord]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def fingerprint(self) -> str:
        """A hash that changes whenever the records do."""
        ...


class ListSource:
    """Records that are already in memory: embedded corpora and tests."""

    def __init__(
        self,
        records: Iterable[Mapping[str, Any]],
        *,
        fields: Sequence[Field] = AUTHOR_FIELDS,
        name: str = "list",
        max_malformed_rate: float = 0.01,
    ) -> None:
        scan = RecordScan(name, max_malformed_rate)
        self._records: list[dict[str, Any]] = []
        for position, values in enumerate(records, start=1):
            try:
                self._records.append(read_record(values, fields))
                scan.accept()
            except ValueError as error:
                scan.reject(name, position, error)
        scan.finish()
        self.malformed = scan.malformed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._records[checked_index(index, len(self))])

    def fingerprint(self) -> str:
        return content_hash("list", *(json.dumps(record, sort_keys=True) for record in self._records))


class TfdsSource:
    """A split of a TFDS dataset stored as ArrayRecord, read at random without TensorFlow.

    TFDS checks types when it writes, so only the schema is checked here, not every record.

    Args:
        dataset: A name ("author_world/seed0"), the folder of a prepared dataset, or a builder object.
        split: Split, e.g. "train" or "train[:10%]".
        fields: What a record must have.
        data_dir: Where datasets are stored; TFDS's own default where None.

    Raises:
        ValueError: Unknown or unprepared dataset, unknown split, missing feature, no records.
    """

    def __init__(
        self,
        dataset: Any,
        split: str = "train",
        *,
        fields: Sequence[Field] = AUTHOR_FIELDS,
        data_dir: PathLike | None = None,
    ) -> None:
        self._builder = _tfds_builder(dataset, data_dir)
        info = self._builder.info
        self._split, self._fields = split, tuple(fields)
        self._name = f"tfds:{info.full_name}/{split}"
        self.malformed: list[MalformedRecord] = []
        if not info.splits:
            raise ValueError(
                f"TFDS dataset {info.full_name} is not prepared in {self._builder.data_path}; run "
                f'builder.download_and_prepare(file_format="array_record"), or name its data_dir'
            )
        missing = [field.key for field in fields if field.required and field.key not in info.features]
        if missing:
            raise ValueError(
                f"{self._name}: no feature {', '.join(map(repr, missing))} among {sorted(info.features)}; "
                "map it with Field(name, column)"
            )
        try:
            self._records = self._builder.as_data_source(split=split)
        except (ValueError, KeyError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self._name} cannot be read ({reason}); splits: {sorted(info.splits)}") from error
        if not len(self._records):
            raise ValueError(f"{self._name} has no records: the corpus is empty; choose another split")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = checked_index(index, len(self))
        try:
            return read_record(self._records[position], self._fields)
        except ValueError as error:
            raise ValueError(f"{self._name}, record {position}: {error}") from error

    def fingerprint(self) -> str:
        """Hash of the dataset's identity (name, config, version, sizes) and of 64 records spread over the
        split: TFDS versions its data, and a full read of a bucket would cost more than it saves."""
        info = self._builder.info
        lengths = {name: list(split.shard_lengths or []) for name, split in sorted(info.splits.items())}
        spread = np.unique(np.linspace(0, len(self) - 1, num=64).astype(int))
        records = [json.dumps(self[int(index)], sort_keys=True) for index in spread]
        return content_hash("tfds", self._name, str(lengths), str(len(self)), repr(self._fields), *records)


def _tfds_builder(dataset: Any, data_dir: PathLike | None) -> Any:
    if not isinstance(dataset, (str, os.PathLike)):
        return dataset
    import tensorflow_datasets as tfds

    from jaxcore.data import tfds_builders  # noqa: F401  (registers this project's own datasets)

    name = os.fspath(dataset)
    try:
        if (pathlib.Path(name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(name)
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError, RuntimeError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"no TFDS dataset {name} ({reason}); give a registered name or a prepared folder") from error


_BY_EXTENSION = {
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
    ".csv": CsvSource,
    ".tsv": CsvSource,
    ".parquet": ParquetSource,
}


def open_source(spec: PathLike, **options: Any) -> Source:
    """The source that `spec` names; `options` go to its constructor.

    `tfds:NAME/SPLIT` (NAME may hold a config, or be a prepared folder); a .jsonl, .csv, .tsv (each also .gz)
    or .parquet file; a folder prepared by TFDS, of several such files of one kind, or of texts by author.

    Raises:
        ValueError: Nothing there, or nothing that can be read.
    """
    name = os.fspath(spec)
    if name.startswith("tfds:"):
        dataset, slash, split = name.removeprefix("tfds:").rpartition("/")
        if not slash or not dataset or not split:
            raise ValueError(f"{name} names no split; write tfds:NAME/SPLIT, e.g. tfds:author_world/seed0/train")
        return TfdsSource(dataset, split, **options)
    path = pathlib.Path(name)
    if path.is_dir():
        return _open_folder(path, options)
    if not path.exists():
        raise ValueError(f"no file or folder at {path} (from {pathlib.Path.cwd()}); check the path")
    extension = _extension(path)
    if extension not in _BY_EXTENSION:
        known = ", ".join(sorted(_BY_EXTENSION))
        raise ValueError(f"{path} has no known extension ({known}); for texts by author give their folder")
    return _BY_EXTENSION[extension](path, **options)


def _extension(path: pathlib.Path) -> str:
    found = re.search(r"(\.[a-z]+)(\.gz)?$", path.name.lower())
    return found.group(1) if found else ""


def _open_folder(folder: pathlib.Path, options: dict[str, Any]) -> Source:
    if (folder / "dataset_info.json").is_file():
        return TfdsSource(folder, **options)
    files = sorted(path for path in folder.iterdir() if path.is_file() and _extension(path) in _BY_EXTENSION)
    kinds = {_BY_EXTENSION[_extension(path)] for path in files}
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} mixes {', '.join(sorted({_extension(path) for path in files}))} files; keep one kind"
        )
    return kinds.pop()(files, **options) if kinds else TextFolderSource(folder, **options)
