"""The command line: ``python -m experiments [list | run NAME | verify NAME | compile NAME]``.

    list                                    the papers: what each claims and what it needs
    run NAME [--preset P] [--run-dir DIR] [--resume] [fields]
                                            train, evaluate, report
    verify NAME [--seeds N] [--json FILE] [fields]
                                            the paper's claims over seeds; exit code 1 when one fails
    compile NAME --topology v5e:16x16 [--preset pod] [fields]
                                            every jitted step, compiled for a TPU topology without a TPU

`COMMAND NAME --help` lists the options and every field of the experiment's configuration. Exit codes are those of
`jaxcore.distributed.ExitCode`; JAXCORE_DEBUG=1 shows tracebacks of usage errors.
"""

import dataclasses
import datetime
import pathlib
import sys
from collections.abc import Sequence

from jaxcore.commands.console import keep_freed_memory, run_command

USAGE = __doc__


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What `run` takes besides the configuration."""

    run_dir: pathlib.Path | None = None
    """Where the run is written; by default a new folder under runs/."""
    resume: bool = False
    """Continue the run that --run-dir holds."""


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    commands = {"list": _list, "run": _run, "verify": _verify, "compile": _compile}
    return run_command(commands, arguments, usage=USAGE, default="list")


def _list(arguments: list[str]) -> int:
    from experiments import protocol

    if arguments:
        raise ValueError(f"list takes no arguments: got {' '.join(arguments)}")
    for name in protocol.names():
        module = protocol.load(name)
        paper = module.PAPER
        print(f"{name}  {paper.title} ({paper.year})")
        print(f"    claims   {paper.claim}")
        print(f"    checks   {len(module.CLAIMS.claims)} claims: python -m experiments verify {name}")
        print(f"    presets  {', '.join(module.PRESETS)}")
        print(f"    needs    {paper.needs}")
    return 0


def _run(arguments: list[str]) -> int:
    from experiments import arguments as command_line
    from experiments import protocol
    from jaxcore import distributed
    from jaxcore.training import as_plain

    name, rest = _name(arguments, "run")
    options, config = command_line.parse("run", name, RunOptions, rest, preset="cpu")
    if options.resume and options.run_dir is None:
        raise ValueError("--resume needs --run-dir: name the folder of the run to continue")
    process = distributed.start(config_hash=distributed.hash_config(as_plain(config)))
    run_dir = options.run_dir or _new_run_directory(name, config.preset, process.num_processes)
    results = protocol.load(name).run(config, run_dir, resume=options.resume, tick=distributed.tick)
    if process.is_first:
        _print_results(results, run_dir)
    return 0


def _new_run_directory(name: str, preset: str, process_count: int) -> pathlib.Path:
    if process_count > 1:
        raise ValueError("several processes need --run-dir: name one folder that all of them can reach")
    return pathlib.Path("runs") / name / f"{preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _print_results(results, run_dir: pathlib.Path) -> None:
    from jaxcore.reporting import format_number, text_table

    print(text_table(("metric", "value"), [(k, format_number(v)) for k, v in results.metrics.items()]))
    print(f"{results.steps} steps in {results.seconds:.0f} s on {results.device}, seed {results.seed}")
    print(f"parameters {results.params_digest}")
    print(f"report     {run_dir / 'report.html'}")


def _verify(arguments: list[str]) -> int:
    from experiments import arguments as command_line
    from experiments import protocol
    from experiments.verification import VerifyOptions, verify
    from jaxcore import distributed

    name, rest = _name(arguments, "verify")
    preset = protocol.load(name).CLAIMS.preset
    options, config = command_line.parse("verify", name, VerifyOptions, rest, preset=preset)
    distributed.start()
    return 0 if verify(name, options, config) else 1


def _compile(arguments: list[str]) -> int:
    from experiments import arguments as command_line
    from experiments.compilation import CompileOptions, compile_experiment

    name, rest = _name(arguments, "compile")
    options, config = command_line.parse("compile", name, CompileOptions, rest, preset="pod")
    return 0 if compile_experiment(name, options, config) else 1


def _name(arguments: list[str], command: str) -> tuple[str, list[str]]:
    from experiments import protocol

    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"{command} needs the name of an experiment: one of {', '.join(protocol.names())}")
    protocol.load(arguments[0])
    return arguments[0], arguments[1:]


def console() -> int:
    """The entry point of the installed command ``jaxcore-experiments``, and of ``python -m experiments``."""
    keep_freed_memory()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
