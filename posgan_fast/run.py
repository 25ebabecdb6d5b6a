"""``posgan-fast run``: a Python program, started as python itself would start it, with the hooks in place before its
first import."""

from __future__ import annotations

import builtins
import os
import runpy
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import Any

from . import backend
from ._allocator import tune_allocator
from .integrations import devices, patch, platform, report
from .integrations.changes import Changes

USAGE = """\
usage: posgan-fast run [options] SCRIPT.py [ARGS ...]
       posgan-fast run [options] -m MODULE [ARGS ...]

Run a program with this library's ops in place of those of NVlabs or rosinality GAN code, and with stand-ins for what
newer versions of torch and other packages took away from such code (docs/running-scripts.md). Options come before the
program; everything after it is the program's own.

options:
  --backend NAME    one of cpu, cuda, reference, triton for every op (default: the best that can run)
  --device cpu      run a program with a hard-coded "cuda" on the CPU
  --tune-allocator  keep freed memory in the process (posgan_fast.tune_allocator)
  --quiet           do not say at the end what was patched
  -h, --help        show this text
"""


def main(argv: Sequence[str]) -> int:
    """Run ``posgan-fast run`` with these arguments; returns the exit status, or raises the program's SystemExit."""
    try:
        program = parse(argv)
    except (TypeError, ValueError) as error:
        print(f"posgan-fast run: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    if program is None:
        print(USAGE, end="")
        return 0
    try:
        run(program)
    except Exception as error:
        # Shown here, so that it starts at the program's first frame; the interpreter would begin with ours.
        error.__traceback__ = _from_program(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        _say(program, died=True)
        return 1
    except BaseException as error:
        _say(program, died=not (isinstance(error, SystemExit) and error.code in (None, 0)))
        raise
    _say(program, died=False)
    return 0


@dataclass(frozen=True)
class Program:
    """What to run: a script, or a module with ``is_module``; ``argv`` are its own arguments."""

    name: str
    argv: tuple[str, ...] = ()
    is_module: bool = False
    backend: str | None = None
    device: str | None = None
    tune_allocator: bool = False
    quiet: bool = False


def parse(argv: Sequence[str]) -> Program | None:
    """The program an argument list asks for; None: help.

    Raises:
        ValueError: an unknown option, backend or device, a missing value, or nothing to run.
    """
    options: dict[str, Any] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            return None
        if option in ("--tune-allocator", "--quiet") and not equals:
            options[option[2:].replace("-", "_")] = True
        elif option in ("--backend", "--device", "-m"):
            if not equals and not rest:
                raise ValueError(f"{option}: expected a value after it")
            value = value if equals else rest.pop(0)
            if option == "-m":
                return Program(value, tuple(rest), is_module=True, **options)
            check = backend.check_name if option == "--backend" else devices.check_name
            options[option[2:]] = check(value, option)
        else:
            raise ValueError(f"{option}: no such option; options of the program come after it")
    if not rest:
        raise ValueError("expected SCRIPT.py or -m MODULE")
    if not os.path.exists(rest[0]):
        raise ValueError(f"SCRIPT.py: expected a file to run, got {rest[0]!r}")
    return Program(rest[0], tuple(rest[1:]), **options)


def run(program: Program) -> None:
    """Put the hooks in place and run the program as ``__main__``; whatever it raises comes through.

    The hooks, ``sys.argv`` and ``sys.path[0]`` stay as they are afterwards: threads and exit handlers of the program
    may still be running.
    """
    if program.backend is not None:
        os.environ["POSGAN_FAST_BACKEND"] = program.backend  # processes that the program starts are to follow
    if program.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    join(program.tune_allocator, program.device)
    sys.argv = [program.name, *program.argv]
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        path = os.path.realpath(program.name)
        sys.path[0] = os.getcwd() if program.is_module else path if os.path.isdir(path) else os.path.dirname(path)
    if program.is_module:
        runpy.run_module(program.name, run_name="__main__", alter_sys=True)
    else:
        _run_path(os.path.abspath(program.name))


def _say(program: Program, died: bool) -> None:
    """The report in one paragraph; of a program that died, only what may have to do with it."""
    done = report()
    nothing = not (done.patched or done.left_alone or done.plugins or done.standins)
    if not (program.quiet or (died and nothing)) and os.environ.get("RANK", "0") == "0":
        print(f"posgan-fast: {done.paragraph()}", file=sys.stderr)


def _run_path(path: str) -> None:
    """As python does for a script, where runpy differs in ``__file__`` and takes ``__main__`` away at the end."""
    if os.path.isdir(path) or path.endswith(".pyc") or zipfile.is_zipfile(path):
        runpy.run_path(path, run_name="__main__")
        return
    loader = SourceFileLoader("__main__", path)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=path, __loader__=loader, __package__=None, __cached__=None)
    exec(loader.source_to_code(loader.get_data(path), path), main.__dict__)


def join(tuned: bool, device: str | None) -> Changes:
    """Put hooks and stand-ins in place in this process and in those that multiprocessing spawns from it.

    Returns:
        The stand-ins, which can be undone; the hooks are undone by ``unpatch()``.
    """
    from multiprocessing import spawn

    if tuned:
        tune_allocator()
    patch()
    changes = Changes()
    platform.stand_in(changes)
    if device == "cpu":
        devices.send_to_cpu(changes)
    theirs = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**theirs(name), "posgan_fast": _Join(tuned, device)}

    changes.put(spawn, "get_preparation_data", get_preparation_data)
    return changes


class _Join:
    """Travels in what multiprocessing sends to a spawned process, and installs the hooks there by being unpickled:
    before that process imports the program, and from wherever this package was imported here."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"import sys; sys.path.append({root!r}); import posgan_fast.run as r; r.join{self.arguments!r}"
        return exec, (code, {})


def _from_program(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback
