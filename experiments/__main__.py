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
import logging
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

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
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    command, *rest = arguments or ["list"]
    if command in {"-h", "--help", "help"}:
        print(USAGE)
        return 0
    commands = {"list": _list, "run": _run, "verify": _verify, "compile": _compile}
    try:
        if command not in commands:
            raise ValueError(f"unknown command {command!r}: expected one of {', '.join(commands)}")
        return commands[command](rest)
    except BrokenPipeError:  # the reader of our output (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _exit_code(error)


def _exit_code(error: Exception) -> int:
    """The exit code of an error that has one, its message printed on a line; other errors are bugs, and raised."""
    from jaxcore.distributed import ExitCode, FingerprintMismatch
    from jaxcore.evaluation import Interrupted
    from jaxcore.training import NonFiniteLoss, Preempted, RunDirectoryInUse

    codes = {
        ValueError: ExitCode.USAGE,
        Preempted: ExitCode.PREEMPTED,
        Interrupted: ExitCode.PREEMPTED,
        NonFiniteLoss: ExitCode.NUMBERS_BAD,
        RunDirectoryInUse: ExitCode.BAD_CONFIG,
        FingerprintMismatch: ExitCode.BAD_CONFIG,
    }
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
    if code is None or os.environ.get("JAXCORE_DEBUG"):
        raise error
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return int(code)


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


def _keep_freed_memory() -> None:
    """Start once more with an allocator that keeps freed memory, in huge pages: steps on CPU run 1.4 times as fast.

    A step's temporaries are allocated anew every time; by default glibc hands them back to the kernel, which clears
    every page again. The setting is read at process start only. Whoever sets GLIBC_TUNABLES decides for themselves.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    limits = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
    environment = {**os.environ, "GLIBC_TUNABLES": f"{limits}:glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def console() -> int:
    """The entry point of the installed command ``jaxcore-experiments``, and of ``python -m experiments``."""
    _keep_freed_memory()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
