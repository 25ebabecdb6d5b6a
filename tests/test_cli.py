"""The command ``posgan-fast``: which command runs, what it prints, with which status it ends."""

from __future__ import annotations

import runpy
import sys

import pytest

import posgan_fast
from posgan_fast import cli, demo, doctor, run

COMMANDS = ("run", "doctor", "verify", "demo")


@pytest.fixture
def calls(monkeypatch):
    """Notes in place of the four commands, each with a status of its own."""
    noted = []

    def note(command: str, status: int):
        return lambda *arguments: noted.append((command, *arguments)) or status

    monkeypatch.setattr(run, "main", note("run", 3))
    monkeypatch.setattr(doctor, "main", note("doctor", 4))
    monkeypatch.setattr(doctor, "verify", note("verify", 5))
    monkeypatch.setattr(demo, "main", note("demo", 6))
    return noted


@pytest.mark.parametrize(
    "argv, call, status",
    [
        (["run", "--quiet", "x.py", "--help"], ("run", ["--quiet", "x.py", "--help"]), 3),
        (["run"], ("run", []), 3),
        (["doctor"], ("doctor",), 4),
        (["verify"], ("verify",), 5),
        (["demo", "--quick"], ("demo", ["--quick"]), 6),
    ],
)
def test_a_command_gets_its_arguments_and_gives_its_status(argv, call, status, calls, capsys):
    given = tuple(argv)
    assert cli.main(given) == status and calls == [call]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "argv", [[], ["-h"], ["--help"], ["doctor", "-h"], ["doctor", "--help"], ["verify", "-h"], ["verify", "--help"]]
)
def test_help_names_every_command(argv, calls, capsys):
    assert cli.main(argv) == 0 and not calls
    out, err = capsys.readouterr()
    assert out.startswith("usage: posgan-fast COMMAND ...\n") and not err
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"{posgan_fast.__version__}\n", "")


def test_an_unknown_command_is_named(calls, capsys):
    assert cli.main(["docter", "--fix"]) == 2 and not calls
    out, err = capsys.readouterr()
    assert err.startswith("posgan-fast: no command 'docter'\n\nusage: posgan-fast") and not out


@pytest.mark.parametrize("command", ["doctor", "verify"])
def test_commands_without_arguments_refuse_them(command, calls, capsys):
    assert cli.main([command, "--help", "cuda"]) == 2 and not calls
    assert capsys.readouterr() == ("", f"posgan-fast {command}: takes no arguments, got ['--help', 'cuda']\n")


def test_the_module_runs_the_command_line_of_the_process(monkeypatch, calls):
    monkeypatch.setattr(sys, "argv", ["posgan-fast", "run", "x.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("posgan_fast", run_name="__main__")
    assert ended.value.code == 3 and calls == [("run", ["x.py"])]
