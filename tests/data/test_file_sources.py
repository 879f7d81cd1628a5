"""File sources: equal records from every format, malformed records by file and line, the rate that stops."""

import csv
import gzip
import json
import logging
import pathlib
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxcore.data import CsvSource, Field, JsonlSource, ParquetSource, Source, TextFolderSource

RECORDS = [
    {
        "text": f'Text {i}, with "quotes", a comma,\nand a naïve line \u2028 break.',
        "author": f"a{i % 3}",
        "work": f"w{i}",
    }
    for i in range(300)
]


def write(path: pathlib.Path, records=RECORDS) -> pathlib.Path:
    name = path.name
    if ".jsonl" in name:
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    elif ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=64)
        return path
    else:
        plain = path.with_name("plain")
        with open(plain, "w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ["text", "author", "work"], delimiter="\t" if ".tsv" in name else ",")
            rows.writeheader()
            rows.writerows(records)
        data = plain.read_bytes()
        plain.unlink()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


FORMATS = {
    "a.jsonl": JsonlSource,
    "a.jsonl.gz": JsonlSource,
    "a.csv": CsvSource,
    "a.csv.gz": CsvSource,
    "a.tsv": CsvSource,
    "a.parquet": ParquetSource,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_records_back_in_any_order(tmp_path, name):
    source = FORMATS[name](write(tmp_path / name))
    assert isinstance(source, Source) and len(source) == 300 and source.malformed == []
    for index in np.random.default_rng(0).permutation(300):
        assert source[index] == RECORDS[index]
    with pytest.raises(IndexError):
        source[300]


@pytest.mark.parametrize("name", FORMATS)
def test_fingerprint_follows_content_and_fields(tmp_path, name):
    kind = FORMATS[name]
    before = kind(write(tmp_path / name)).fingerprint()
    assert kind(tmp_path / name).fingerprint() == before
    assert kind(tmp_path / name, fields=(Field("text"), Field("author"))).fingerprint() != before
    write(tmp_path / name, [{**RECORDS[0], "author": "other"}, *RECORDS[1:]])
    assert kind(tmp_path / name).fingerprint() != before


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_several_files_are_one_sequence(tmp_path, name):
    one = write(tmp_path / name, RECORDS[:100])
    two = write(tmp_path / f"b{name}", RECORDS[100:])
    source = FORMATS[name]([one, two])
    assert [source[i] for i in range(len(source))] == RECORDS


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_threads_read_the_right_records(tmp_path, name):
    source = FORMATS[name](write(tmp_path / name))
    wrong: list[int] = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(300)[:60]
        wrong.extend(int(index) for index in order if source[index] != RECORDS[index])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_malformed_json_lines_are_left_out_with_file_and_line(tmp_path, caplog):
    good = [json.dumps(record).encode() for record in RECORDS]
    bad = {
        4: b'{"text": "cut',
        7: b'{"text": "no author"}',
        9: b'{"text": 5, "author": "a"}',
        12: b'{"text": "caf\xe9", "author": "a"}',
        20: b"[1, 2]",
    }
    lines = list(good)
    for line, data in bad.items():
        lines.insert(line - 1, data)
    lines.insert(2, b"")  # blank lines are no records
    bad = {line if line < 3 else line + 1: data for line, data in bad.items()}
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines))  # and no newline at the end
    with caplog.at_level(logging.WARNING):
        source = JsonlSource(path, max_malformed_rate=0.05)
    assert [record.line for record in source.malformed] == sorted(bad)
    assert all(record.path == str(path) for record in source.malformed)
    reasons = [record.reason for record in source.malformed]
    for part, reason in zip(
        ["not JSON", "missing field 'author'", "is int", "not UTF-8", "got list"], reasons, strict=True
    ):
        assert part in reason
    assert f"{path}:5: not JSON" in caplog.text
    assert [source[i] for i in range(len(source))] == RECORDS


def test_too_many_malformed_records_stop_with_the_first_ones(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n" * 5 + '{"text": "t", "author": "a"}\n' * 95)
    with pytest.raises(ValueError) as caught:
        JsonlSource(path)
    message = str(caught.value)
    assert "5 of 100 records are malformed (5.0%, allowed 1.0%)" in message and "\n" not in message
    assert f"{path}:1: missing field 'text'" in message and "and 2 more" in message and "raise max_malformed" in message
    assert len(JsonlSource(path, max_malformed_rate=0.05)) == 95  # the rate itself is still allowed
    with pytest.raises(ValueError, match="a share of records"):
        JsonlSource(path, max_malformed_rate=5)


def test_csv_names_the_line_where_a_bad_row_starts(tmp_path):
    path = tmp_path / "bad.csv"
    rows = [b"text,author", b'"two\nlines",a', b"short", b"caf\xe9,a", b"t,", b"fine,b"]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\r\n")
    source = CsvSource(path, max_malformed_rate=1)
    assert [(record.line, record.reason[:12]) for record in source.malformed] == [
        (4, "1 values for"),
        (5, "field 'text'"),
        (6, "missing fiel"),
    ]
    assert [source[i] for i in range(len(source))] == [
        {"text": "two\nlines", "author": "a"},
        {"text": "fine", "author": "b"},
    ]


def test_csv_takes_long_fields_and_other_columns(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("body,id\n" + "word " * 60_000 + ",7\n", encoding="utf-8")
    source = CsvSource(path, fields=(Field("text", "body"), Field("author", "id")))
    assert source[0] == {"text": "word " * 60_000, "author": "7"}
    assert csv.field_size_limit() == 131072  # the process-wide limit is as it was
    with pytest.raises(ValueError, match=r"no column 'text', 'author' in the header \['body', 'id'\]; rename it"):
        CsvSource(path)


def test_parquet_rows_that_are_null_or_not_utf8(tmp_path):
    binary = pa.array([b"good", b"caf\xe9", None, b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, binary.buffers())  # a string column with a byte that is not UTF-8
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"text": text, "author": ["a"] * 4}), path, row_group_size=2)
    source = ParquetSource(path, max_malformed_rate=1)
    assert [(record.line, record.reason[:9]) for record in source.malformed] == [
        (2, "not UTF-8"),
        (3, "missing f"),
    ]
    assert [source[0]["text"], source[1]["text"]] == ["good", "fine"]
    with pytest.raises(ValueError, match=r"no column 'body' among \['text', 'author'\]"):
        ParquetSource(path, fields=(Field("text", "body"),))
    path.write_bytes(b"PAR1 but no Parquet")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        ParquetSource(path)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_empty_files(tmp_path, name):
    with pytest.raises(ValueError, match=r"no file at .*give the path of an existing file"):
        FORMATS[name](tmp_path / name)
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(RECORDS[:1]).slice(0, 0), tmp_path / name)
    else:
        write(tmp_path / name, [])
    with pytest.raises(ValueError, match="the corpus is empty"):
        FORMATS[name](tmp_path / name)


def test_damaged_gzip_is_one_line(tmp_path):
    path = write(tmp_path / "a.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is it a complete \.gz file"):
        JsonlSource(path)


def test_text_folder_by_prefix(tmp_path):
    (tmp_path / "Doe_First_Book_1900.txt").write_bytes("\ufeffOne\r\ntwo\r".encode())
    (tmp_path / "Roe_Second.txt.gz").write_bytes(gzip.compress("Drei, vier: größer".encode()))
    (tmp_path / "notes.md").write_text("ignored")
    (tmp_path / ".Hidden_File.txt").write_text("ignored")
    source = TextFolderSource(tmp_path)
    assert [source[i] for i in range(len(source))] == [
        {"text": "One\ntwo\n", "author": "Doe", "work": "First_Book_1900"},
        {"text": "Drei, vier: größer", "author": "Roe", "work": "Second"},
    ]
    before = source.fingerprint()
    (tmp_path / "Roe_Second.txt.gz").write_bytes(gzip.compress(b"changed"))
    assert TextFolderSource(tmp_path).fingerprint() != before


def test_text_folder_with_a_folder_per_author(tmp_path, caplog):
    for name in ("Jane Doe/first_book.txt", "Jane Doe/early/1.txt", "Roe/first_book.txt", "README.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    source = TextFolderSource(tmp_path)
    assert [(source[i]["author"], source[i]["work"]) for i in range(len(source))] == [
        ("Jane Doe", "early/1"),
        ("Jane Doe", "first_book"),
        ("Roe", "first_book"),
    ]
    assert "1 loose files are ignored" in caplog.text


def test_text_folder_errors_are_one_line_and_say_how_to_mend(tmp_path):
    with pytest.raises(ValueError, match=r"no folder at .*one file prefix, per author"):
        TextFolderSource(tmp_path / "absent")
    with pytest.raises(ValueError, match="the corpus is empty"):
        TextFolderSource(tmp_path)
    (tmp_path / "Doe_Latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(ValueError, match=r"Doe_Latin.txt:1: not UTF-8 text .*iconv -f LATIN1 -t UTF-8") as caught:
        TextFolderSource(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "Doe_Latin.txt").unlink()
    (tmp_path / "anonymous.txt").write_text("text")
    with pytest.raises(ValueError, match=r"name it AUTHOR_Title\.txt"):
        TextFolderSource(tmp_path)
    (tmp_path / "anonymous.txt").rename(tmp_path / "A_b.txt")
    (tmp_path / "A_c.txt").write_text(" \n")
    assert [str(record.reason) for record in TextFolderSource(tmp_path, max_malformed_rate=0.5).malformed] == [
        "the file is blank"
    ]
