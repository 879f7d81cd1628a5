"""Fields of a record: what passes, what is converted, and what each kind of malformed record is called."""

import numpy as np
import pytest

from jaxcore.data import AUTHOR_FIELDS, Field
from jaxcore.data.records import read_record

NUMBERS = (Field("text", column="body"), Field("stars", kind=int), Field("score", kind=float, required=False))


def test_fields_are_renamed_converted_and_nothing_else_passes():
    record = read_record({"body": b"caf\xc3\xa9", "stars": "4", "score": np.float32(0.5), "junk": 1}, NUMBERS)
    assert record == {"text": "café", "stars": 4, "score": 0.5}
    assert type(record["stars"]) is int and type(record["score"]) is float
    assert read_record({"text": "t", "author": "a", "work": " "}, AUTHOR_FIELDS) == {
        "text": "t",
        "author": "a",
    }


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["text"], "expected an object with fields, got list"),
        ({"stars": 1}, "missing field 'body'"),
        ({"body": None, "stars": 1}, "missing field 'body'"),
        ({"body": "  \n", "stars": 1}, "field 'body' is blank"),
        ({"body": 7, "stars": 1}, "field 'body' is int, expected str"),
        ({"body": b"caf\xe9", "stars": 1}, "not UTF-8 text .byte 0xe9 at 3.; convert it"),
        ({"body": "caf\udce9", "stars": 1}, "field 'body' is not UTF-8 text"),
        ({"body": "t", "stars": "four"}, "field 'stars' is 'four', expected int"),
        ({"body": "t", "stars": 1.5}, "field 'stars' is 1.5, expected int"),
        ({"body": "t", "stars": float("inf")}, "expected int"),
        ({"body": "t", "stars": True}, "field 'stars' is bool, expected int"),
        ({"body": "t", "stars": [1]}, "field 'stars' is list, expected int"),
    ],
)
def test_malformed_records_say_why(values, reason):
    with pytest.raises(ValueError, match=reason):
        read_record(values, NUMBERS)
