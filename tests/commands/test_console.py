import os
import subprocess
import sys
import threading

import pytest

from jaxcore import distributed
from jaxcore.commands.console import run_command
from jaxcore.distributed import ExitCode


def watchdogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "jaxcore-watchdog"]


def begin() -> None:
    distributed.start(distributed.StartConfig(compilation_cache=False))


def finish(arguments: list[str]) -> int:
    begin()
    assert watchdogs() == ["jaxcore-watchdog"]
    return 0


def refuse(arguments: list[str]) -> int:
    begin()
    raise ValueError("no\nsuch thing")


def crash(arguments: list[str]) -> int:
    begin()
    raise KeyError("a bug")


def test_the_watchdog_ends_with_the_command_however_it_ends(capsys):
    """A caller that goes on (a notebook, a test session) would else be ended with 76 ten minutes later."""
    assert run_command({"finish": finish}, ["finish"], usage="") == 0
    assert watchdogs() == []
    assert run_command({"refuse": refuse}, ["refuse"], usage="") == ExitCode.USAGE
    assert watchdogs() == [] and capsys.readouterr().err == "error: no such thing\n"
    with pytest.raises(KeyError, match="a bug"):
        run_command({"crash": crash}, ["crash"], usage="")
    assert watchdogs() == []


def test_a_second_start_takes_over_from_the_first():
    begin()
    begin()
    assert watchdogs() == ["jaxcore-watchdog"]
    distributed.stop_watching()
    distributed.stop_watching()
    assert watchdogs() == []


def test_unknown_commands_and_usage(capsys, monkeypatch):
    monkeypatch.delitem(os.environ, "JAXCORE_DEBUG", raising=False)
    assert run_command({"finish": finish}, ["polish"], usage="") == ExitCode.USAGE
    assert "unknown command 'polish': expected one of finish" in capsys.readouterr().err
    assert run_command({"finish": finish}, [], usage="how to use it") == 0
    assert run_command({"finish": finish}, ["finish", "--help"][::-1], usage="how to use it") == 0
    assert capsys.readouterr().out == "how to use it\nhow to use it\n"


def test_commands_start_without_libraries_that_they_may_not_need():
    """Each of these takes from half a second to several to import."""
    heavy = ("sklearn", "scipy.stats", "matplotlib", "transformers", "torch", "tensorflow", "pandas")
    names = ", ".join(f"jaxcore.commands.{name}" for name in ("attribute", "embed", "generate", "steer"))
    code = f"import sys, {names}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
