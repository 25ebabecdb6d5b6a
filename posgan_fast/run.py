"""``posgan-fast run``: start a Python program as python does, with the hooks in place before its first import."""

from __future__ import annotations

import builtins
import os
import runpy
import sys
import zipfile
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import Any

from ._allocator import tune_allocator
from .integrations import devices, patch, platform, report
from .integrations.changes import Changes


@dataclass(frozen=True)
class Program:
    """A program and the options to run it with.

    Attributes:
        name: the path of a script or, with ``is_module``, the name of a module.
        argv: the program's own arguments.
        backend, device, tune_allocator, quiet: the options of ``posgan-fast run`` of these names.
    """

    name: str
    argv: tuple[str, ...] = ()
    is_module: bool = False
    backend: str | None = None
    device: str | None = None
    tune_allocator: bool = False
    quiet: bool = False


def launch(program: Program) -> int:
    """Run a program, and print what was patched in it.

    Returns:
        The exit status: 0, or 1 if the program raised an exception.

    Raises:
        SystemExit, KeyboardInterrupt: as the program raises them.
    """
    try:
        run(program)
    except Exception as error:
        # Print the traceback here, from the program's first frame on; the interpreter would begin with our frames.
        error.__traceback__ = _from_program(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        _print_report(program, died=True)
        return 1
    except BaseException as error:
        _print_report(program, died=not (isinstance(error, SystemExit) and error.code in (None, 0)))
        raise
    _print_report(program, died=False)
    return 0


def run(program: Program) -> None:
    """Put the hooks in place and run the program as ``__main__``; exceptions of the program propagate.

    The hooks, ``sys.argv`` and ``sys.path[0]`` stay in place afterwards, since the program's threads and exit handlers
    may still run.
    """
    if program.backend is not None:
        os.environ["POSGAN_FAST_BACKEND"] = program.backend  # inherited by processes that the program starts
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


def _print_report(program: Program, died: bool) -> None:
    """Print the report in one paragraph; after an error, only if the hooks did anything."""
    done = report()
    nothing = not (done.patched or done.left_alone or done.plugins or done.standins)
    if not (program.quiet or (died and nothing)) and os.environ.get("RANK", "0") == "0":
        print(f"posgan-fast: {done.paragraph()}", file=sys.stderr)


def _run_path(path: str) -> None:
    """Run a script as python does; runpy sets another ``__file__`` and removes ``__main__`` at the end."""
    if os.path.isdir(path) or path.endswith(".pyc") or zipfile.is_zipfile(path):
        runpy.run_path(path, run_name="__main__")
        return
    loader = SourceFileLoader("__main__", path)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=path, __loader__=loader, __package__=None, __cached__=None)
    exec(loader.source_to_code(loader.get_data(path), path), main.__dict__)


def join(tuned: bool, device: str | None) -> Changes:
    """Put hooks and stand-ins in place, in this process and in those that multiprocessing spawns from it.

    Args:
        tuned: whether to tune the allocator.
        device: "cpu" sends programs with a hard-coded "cuda" there.

    Returns:
        The stand-ins, to be undone; ``unpatch()`` undoes the hooks.
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
    """Installs the hooks in a spawned process, where multiprocessing unpickles it before the program is imported.

    The process imports this package from the same folder as its parent.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"import sys; sys.path.append({root!r}); import posgan_fast.run as r; r.join{self.arguments!r}"
        return exec, (code, {})


def _from_program(traceback: TracebackType | None) -> TracebackType | None:
    """Drop the frames of this module and of runpy from the top of a traceback."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback
