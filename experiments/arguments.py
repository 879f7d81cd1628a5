"""The typed command line of an experiment: run options and every field of its configuration, in one parser."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments import protocol
from jaxcore.commands.arguments import parse_arguments


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
    parsed: Any = parse_arguments(both, others, prog=f"python -m experiments {command} {name}", description=description)
    return parsed.options, dataclasses.replace(parsed.config, preset=preset)
