"""A typed command line from a dataclass; what does not parse is a ValueError of one line."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro


def parse_arguments(
    kind: Any, arguments: Sequence[str], *, prog: str, description: str, known: Sequence[str] = ()
) -> Any:
    """An instance of the dataclass `kind` from command-line arguments; ``--help`` prints and exits.

    Args:
        known: options, of which the message about one that does not exist names the nearest; see `option_names`.

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
        message = _first_sentence(printed.getvalue())
        unknown = re.search(r"Unrecognized options: --([\w-]+)", message)
        if unknown and known:
            raise ValueError(_unknown_option(unknown[1], known, prog)) from None
        raise ValueError(f"{message} (see {prog} --help)") from None


def option_names(*kinds: Any) -> list[str]:
    """The options that the fields of these dataclasses are on a command line, without their dashes."""
    return [
        field.name.replace("_", "-")
        for kind in kinds
        for field in dataclasses.fields(kind)
        if not (dataclasses.is_dataclass(field.default) or dataclasses.is_dataclass(field.default_factory))
    ]


def _unknown_option(given: str, known: Sequence[str], prog: str) -> str:
    near = difflib.get_close_matches(given.replace("_", "-"), known, n=3, cutoff=0.5)
    meant = f"did you mean --{' or --'.join(near)}?" if near else f"{prog} --help lists all"
    return f"unknown option --{given}: {meant}"


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
