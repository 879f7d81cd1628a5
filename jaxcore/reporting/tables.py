"""Numbers and tables as text, written one way in the terminal and in HTML reports."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from rich.cells import cell_len

Cell = str | int | float | None
Align = Literal["left", "right", "center"]

MISSING = "–"
_ALIGNMENTS = ("left", "right", "center")
_SCIENTIFIC_FROM = 1e6
_NUMERIC_TEXT = re.compile(r"[-+±−<>≥≤~]?\s?\.?\d")


@dataclass(frozen=True)
class Table:
    """A table of `rows` (each as long as `columns`); cells are text, numbers (NumPy's and JAX's
    scalars too) or None for "not measured".

    Floats of one column share their decimals (see `format_column`). `align` gives "left", "right" or "center"
    for each column; by default columns of numbers stand right and columns of text left.

    Raises:
        ValueError: no columns, a row or `align` of another length, an unknown alignment or type of cell.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    align: Sequence[Align] | None = None

    def __post_init__(self) -> None:
        _checked_rows(self.columns, self.rows)
        column_alignments(self.columns, self.rows, self.align)


def format_number(x: Cell, digits: int = 3, *, signed: bool = False) -> str:
    """A number for a reader: `digits` decimals below 10, fewer above, scientific where those would hide it.

    0.5 -> "0.500", 12.345 -> "12.35", 16384 -> "16,384", 2.5e-5 -> "2.50e-5", None -> "–", True -> "yes".

    Args:
        x: number, text (returned as it is) or None.
        digits: decimals of a number between 10^-digits and 10; at least 0.
        signed: write "+" before positive numbers too.
    """
    value = _plain(x)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:+,}" if signed else f"{value:,}"
    return format_decimals(value, _decimals(value, digits), signed=signed)


def format_decimals(x: float, decimals: int, *, signed: bool = False) -> str:
    """`x` with exactly `decimals` decimals; scientific where these would hide it, and from a million on."""
    sign = "+" if signed else ""
    if math.isnan(x):
        return "nan"
    if math.isinf(x):
        return "-inf" if x < 0 else f"{sign}inf"
    if x != 0 and (abs(x) >= _SCIENTIFIC_FROM or abs(x) < 10.0**-decimals):
        mantissa, exponent = f"{x:{sign}.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if x == 0:
        return f"{0.0:.{decimals}f}"
    return f"{x:{sign},.{decimals}f}"


def format_interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """An estimate with its interval, all three to the same decimals: "0.566 [0.548, 0.584]"."""
    centre, lower, upper = format_column([mean, low, high], digits)
    return f"{centre} [{lower}, {upper}]"


def format_column(values: Sequence[Cell], digits: int = 3) -> list[str]:
    """Cells of one column as text; its floats share the decimals that its smallest magnitude calls for.

    Raises:
        ValueError: a cell is neither text, a real number nor None; it is named by its place.
    """
    plain = [_plain(value, place=f"cell {i}") for i, value in enumerate(values)]
    floats = [value for value in plain if isinstance(value, float) and math.isfinite(value) and value != 0]
    decimals = max((_decimals(value, digits) for value in floats), default=digits)
    return [
        format_decimals(value, decimals) if isinstance(value, float) else format_number(value, digits)
        for value in plain
    ]


def format_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 3) -> list[list[str]]:
    """`rows` with every cell as text, formatted column by column."""
    checked = _checked_rows(columns, rows)
    if not checked:
        return []
    by_column = [format_column(column, digits) for column in zip(*checked, strict=True)]
    return [list(row) for row in zip(*by_column, strict=True)]


def column_alignments(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], align: Sequence[Align] | None = None
) -> list[Align]:
    """The alignment of each column: as asked for, else right where all cells read as numbers, else left."""
    if align is not None:
        if len(align) != len(columns):
            raise ValueError(f"table has {len(columns)} columns but align has {len(align)} entries: give one each")
        if wrong := [a for a in align if a not in _ALIGNMENTS]:
            raise ValueError(f"unknown alignment {wrong[0]!r}: expected one of {', '.join(_ALIGNMENTS)}")
        return list(align)

    def reads_as_number(cell: Cell) -> bool:
        return not isinstance(cell, str) or bool(_NUMERIC_TEXT.match(cell)) or cell in ("", MISSING)

    found: list[Align] = []
    for column in range(len(columns)):
        cells = [row[column] for row in rows if row[column] is not None]
        found.append("right" if cells and all(map(reads_as_number, cells)) else "left")
    return found


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    align: Sequence[Align] | None = None,
    digits: int = 3,
) -> str:
    """A table for the terminal: a header, a rule, one line for each row; no trailing newline.

    Widths count terminal cells (wide characters take two). Control characters in cells, which could move the
    cursor or recolour the terminal, are replaced by spaces.

    Raises:
        ValueError: as for `Table`.
    """
    alignments = column_alignments(columns, rows, align)
    header = [_one_line(str(name)) for name in columns]
    body = [[_one_line(cell) for cell in row] for row in format_rows(columns, rows, digits)]
    widths = [max(map(cell_len, column)) for column in zip(header, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (_pad(*item) for item in zip(cells, widths, alignments, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("─" * width for width in widths), *map(line, body)])


def _decimals(x: float, digits: int) -> int:
    """`digits` decimals for `x` below 10, one fewer for each further digit before the point."""
    if digits < 0:
        raise ValueError(f"digits must be at least 0, got {digits}")
    if not math.isfinite(x) or abs(x) < 10:
        return digits
    return max(0, digits - math.floor(math.log10(abs(x))))


def _plain(value: Any, *, place: str = "value") -> str | bool | int | float | None:
    """`value` as a plain Python object; NumPy and JAX scalars are unwrapped."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise ValueError(f"{place} has type {type(value).__name__}: expected str, int, float or None; format it first")


def _checked_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    if not columns:
        raise ValueError("table has no columns: name at least one")
    checked = []
    for i, row in enumerate(rows):
        if isinstance(row, str) or len(row) != len(columns):
            raise ValueError(f"row {i} has {len(row)} cells, expected {len(columns)}: {', '.join(columns)}")
        checked.append(
            [_plain(cell, place=f"row {i}, column {name!r}") for name, cell in zip(columns, row, strict=True)]
        )
    return checked


def _one_line(text: str) -> str:
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _pad(text: str, width: int, alignment: Align) -> str:
    space = width - cell_len(text)
    before = {"left": 0, "right": space, "center": space // 2}[alignment]
    return " " * before + text + " " * (space - before)
