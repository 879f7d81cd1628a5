"""A typed command line from a dataclass; what does not parse is a ValueError of one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro


def parse_arguments(kind: Any, arguments: Sequence[str], *, prog: str, description: str) -> Any:
    """An instance of the dataclass `kind` from command-line arguments; ``--help`` prints and exits.

    Raises:
        ValueError: arguments that do not parse.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, prog=prog, description=description, args=list(arguments))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_first_sentence(printed.getvalue())} (see {prog} --help)") from None


def _first_sentence(text: str) -> str:
    """The parser's boxed message as one line: what is between the box's title and its first rule."""
    message: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        if "╭" in line:
            continue
        words = re.sub(r"[│╰╯]", " ", line).strip()
        if message and (not words or re.match(r"─+$|For full|Argument helptext", words)):
            break
        if re.search(r"\w", words):
            message.append(words)
    return " ".join(message).removeprefix("Error parsing config: ")[:400] or "cannot parse the arguments"
