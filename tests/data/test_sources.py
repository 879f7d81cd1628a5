"""Lists as sources, and which source `open_source` opens for a path."""

import gzip
import json

import pytest

from jaxcore.data import (
    CsvSource,
    Field,
    JsonlSource,
    ListSource,
    ParquetSource,
    Source,
    TextFolderSource,
    open_source,
)

RECORDS = [{"text": f"t{i}", "author": "ab"[i % 2]} for i in range(4)]


def test_list_source(caplog):
    source = ListSource([*RECORDS, {"text": "no author"}], max_malformed_rate=0.2, name="poems")
    assert isinstance(source, Source)
    assert [source[i] for i in range(len(source))] == RECORDS
    assert [str(record) for record in source.malformed] == ["poems:5: missing field 'author'"]
    assert "poems:5" in caplog.text
    source[0]["text"] = "changed"
    assert source[0]["text"] == "t0"  # a record given out is the caller's own
    assert source.fingerprint() == ListSource(RECORDS).fingerprint() != ListSource(RECORDS[1:]).fingerprint()
    with pytest.raises(ValueError, match="the corpus is empty"):
        ListSource([])
    with pytest.raises(IndexError):
        source[4]


def test_open_source_goes_by_extension(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.JSONL.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.csv").write_text("text,author\nt,a\n")
    assert isinstance(open_source(tmp_path / "a.jsonl"), JsonlSource)
    assert len(open_source(str(tmp_path / "a.JSONL.gz"))) == 4
    assert isinstance(open_source(tmp_path / "a.csv"), CsvSource)
    renamed = open_source(tmp_path / "a.jsonl", fields=(Field("words", "text"),))
    assert renamed[1] == {"words": "t1"}


def test_open_source_looks_into_folders(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in range(2):
        pq.write_table(pa.Table.from_pylist(RECORDS[2 * part : 2 * part + 2]), tmp_path / f"part-{part}.parquet")
    shards = open_source(tmp_path)
    assert isinstance(shards, ParquetSource) and [shards[i] for i in range(4)] == RECORDS
    (tmp_path / "more.csv").write_text("text,author\nt,a\n")
    with pytest.raises(ValueError, match=r"mixes \.csv, \.parquet files; keep one kind"):
        open_source(tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "A_b.txt").write_text("text")
    assert isinstance(open_source(texts), TextFolderSource)


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path):
    (tmp_path / "book.txt").write_text("text")
    for spec, message in [
        (tmp_path / "absent.jsonl", r"no file or folder at .*check the path"),
        (tmp_path / "book.txt", r"no known extension .*for texts by author give their folder"),
        ("tfds:author_world", r"names no split; write tfds:NAME/SPLIT"),
        ("tfds:no_such_dataset/train", r"no TFDS dataset no_such_dataset"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            open_source(spec)
        assert "\n" not in str(caught.value)
