"""The typed command line of an experiment: run options and every field of its configuration, in one parser."""

import argparse
import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments import protocol


def preset_config(module: Any, preset: str) -> Any:
    """The configuration of a preset; ValueError with the known names for any other."""
    if preset not in module.PRESETS:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(module.PRESETS)}")
    return module.PRESETS[preset]


def split_preset(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
    """The value of ``--preset`` and the other arguments. It decides the defaults, so it is read first."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=default)
    known, others = parser.parse_known_args(list(arguments))
    return known.preset, others


def parse(command: str, name: str, options: type, arguments: Sequence[str], *, preset: str) -> tuple[Any, Any]:
    """Parse ``COMMAND NAME [options] [fields]`` into the options' dataclass and the experiment's configuration.

    Fields of the configuration stand beside the options (``--seed``, ``--model.num-layers``), with the preset's
    values as defaults. Anything that does not parse is a ValueError of one line; ``--help`` prints and exits.

    Args:
        options: a dataclass of what the command takes besides the configuration.
        preset: default of ``--preset``.
    """
    module = protocol.load(name)
    preset, others = split_preset(arguments, preset)
    config = preset_config(module, preset)
    shown: Any = Annotated[
        module.Config, tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")
    ]
    both = dataclasses.make_dataclass(
        f"{command}_{name}",
        [
            (
                "options",
                Annotated[options, tyro.conf.arg(name="")],
                dataclasses.field(default_factory=options),
            ),
            ("config", shown, dataclasses.field(default=config)),
        ],
    )
    description = (
        f"{module.PAPER.title} ({module.PAPER.year}). {module.PAPER.claim}\n\n"
        f"Presets: --preset {{{','.join(module.PRESETS)}}} (now {preset}); the defaults below are the preset's."
    )
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed: Any = tyro.cli(
                both,
                prog=f"python -m experiments {command} {name}",
                description=description,
                args=others,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_first_sentence(printed.getvalue())} (see {command} {name} --help)") from None
    return parsed.options, dataclasses.replace(parsed.config, preset=preset)


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
