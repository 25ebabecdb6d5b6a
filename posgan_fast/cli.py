"""The command ``posgan-fast``: finds the command to run and imports no more than that."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """\
usage: posgan-fast COMMAND ...

  run [options] SCRIPT.py ARGS ...   run a program with this library's ops in place of its own (run --help)
  run [options] -m MODULE ARGS ...
  doctor                             what is installed, what is missing, why, and the command that mends it
  verify                             compare every backend that runs here with the definition in float64
  demo [--out DIR] [--quick]         a published StyleGAN2 package, unmodified: generate and train, both ways
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after ``posgan-fast``; None: those of this process.

    Returns:
        The exit status; 2 if the arguments are wrong.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: posgan-fast COMMAND ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        import posgan_fast

        print(posgan_fast.__version__)
        return 0
    if command == "run":
        from . import run

        return run.main(arguments)
    if command == "demo":
        from . import demo

        return demo.main(arguments)
    if command in ("doctor", "verify"):
        return _without_arguments(command, arguments)
    print(f"posgan-fast: no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


def _without_arguments(command: str, arguments: list[str]) -> int:
    """Run a command that takes no arguments other than --help."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if arguments:
        print(f"posgan-fast {command}: takes no arguments, got {arguments}", file=sys.stderr)
        return 2
    from . import doctor

    return doctor.main() if command == "doctor" else doctor.verify()
