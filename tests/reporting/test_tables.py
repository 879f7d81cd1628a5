"""Number formats against numbers written by hand; tables against their alignment and width."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from jaxcore.reporting import Table, format_column, format_interval, format_number, text_table
from jaxcore.reporting.tables import column_alignments


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (9.25, "9.250"),
        (12.345678, "12.35"),
        (123.456, "123.5"),
        (16384, "16,384"),
        (-3, "-3"),
        (4.5e6, "4.50e6"),
        (2.5e-5, "2.50e-5"),
        (-0.25, "-0.250"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "–"),
        (True, "yes"),
        ("as it is", "as it is"),
        (np.float32(0.5), "0.500"),
        (np.int64(1000), "1,000"),
        (np.array(0.25), "0.250"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_format_number_signed_and_digits():
    assert format_number(0.5, signed=True) == "+0.500"
    assert format_number(-0.5, signed=True) == "-0.500"
    assert format_number(2e-7, signed=True) == "+2.00e-7"
    assert format_number(0.123456, 5) == "0.12346"
    with pytest.raises(ValueError, match="digits must be at least 0, got -1"):
        format_number(0.5, -1)


@given(st.floats(-1e300, 1e300))
def test_a_formatted_number_reads_back_close(x):
    back = float(format_number(x).replace(",", ""))
    assert abs(back - x) <= max(0.0005, 0.006 * abs(x))
    assert (back != 0) == (x != 0)


def test_scalars_of_jax_are_numbers_and_its_arrays_are_not():
    assert format_column([jnp.float32(0.5), jnp.bfloat16(0.25), jnp.int32(7)]) == ["0.500", "0.250", "7"]
    with pytest.raises(ValueError, match="expected str, int, float or None"):
        format_number(jnp.ones(1))  # type: ignore[arg-type]


def test_format_column_shares_decimals_and_interval_is_a_column():
    assert format_column([12.5, 0.25, None, 3, "n/a"]) == ["12.500", "0.250", "–", "3", "n/a"]
    assert format_column([123.4, 12.3]) == ["123.40", "12.30"]
    assert format_interval(0.566, 0.5481, 0.584) == "0.566 [0.548, 0.584]"
    assert format_interval(12.0, 9.5, 14.0) == "12.000 [9.500, 14.000]"


def test_text_table_aligns_numbers_right_and_text_left():
    table = text_table(["model", "accuracy"], [["SupCon", 0.566], ["untrained encoder", 0.04]])
    assert table.splitlines() == [
        "model              accuracy",
        "─────────────────  ────────",
        "SupCon                0.566",
        "untrained encoder     0.040",
    ]


def test_text_table_counts_terminal_cells_and_keeps_the_cursor_still():
    table = text_table(["名前", "x"], [["漢字かな", 1], ["a\x1b[2J\nb", 2]])
    _header, rule, first, second = table.splitlines()
    assert "\x1b" not in table
    assert cell_len(first) == cell_len(second) == cell_len(rule)


def test_alignment_by_content_and_by_hand():
    rows: list[list[Any]] = [["a", "0.5 [0.4, 0.6]", None], ["b", "−0.1", 3]]
    assert column_alignments(["t", "n", "m"], rows) == ["left", "right", "right"]
    assert column_alignments(["t", "n", "m"], rows, ["center", "left", "left"]) == ["center", "left", "left"]
    assert column_alignments(["empty"], []) == ["left"]
    assert text_table(["abc"], [["x"]], align=["center"]).splitlines()[-1] == " x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no columns"),
        ((["a", "b"], [[1]]), "row 0 has 1 cells, expected 2"),
        ((["a"], ["x"]), "row 0 has 1 cells"),
        ((["a"], [[[1]]]), "row 0, column 'a' has type list"),
        ((["a"], [[1 + 2j]]), "type complex"),
        ((["a"], [[1]], "", ["left", "left"]), "1 columns but align has 2"),
        ((["a"], [[1]], "", ["middle"]), "unknown alignment 'middle'"),
    ],
)
def test_table_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Table(*arguments)
