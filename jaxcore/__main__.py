"""The command line of the library: ``python -m jaxcore COMMAND``, installed as ``jaxcore``.

    embed --model PATH --input FILE --output FILE.npy    texts to vectors, sharded, resumable
    attribute --model PATH --text "..."                  which tokens made a classifier say what it says, by any method
    generate --model PATH --prompt "..."                 continuations from a decoder, by any strategy; resumable
    steer --model PATH --pairs FILE --output FILE        directions that steer a decoder, found on preference pairs
    steer --model PATH --vectors FILE --prompt "..."     continuations under them, beside those without

`COMMAND --help` lists the options. Exit codes are those of `jaxcore.distributed.ExitCode`; JAXCORE_DEBUG=1 shows
tracebacks of usage errors. Experiments have a command line of their own: ``python -m experiments``.
"""

import sys

from jaxcore.commands.console import keep_freed_memory, run_command


def _embed(arguments: list[str]) -> int:
    from jaxcore.commands import embed

    return embed.main(arguments)


def _attribute(arguments: list[str]) -> int:
    from jaxcore.commands import attribute

    return attribute.main(arguments)


def _generate(arguments: list[str]) -> int:
    from jaxcore.commands import generate

    return generate.main(arguments)


def _steer(arguments: list[str]) -> int:
    from jaxcore.commands import steer

    return steer.main(arguments)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    commands = {"embed": _embed, "attribute": _attribute, "generate": _generate, "steer": _steer}
    return run_command(commands, arguments, usage=__doc__)


def console() -> int:
    """The entry point of the installed command ``jaxcore``, and of ``python -m jaxcore``."""
    keep_freed_memory()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
