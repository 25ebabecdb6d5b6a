"""The command ``posgan-fast``."""

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
    """Run one command; returns the exit status."""
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
    if command in ("doctor", "verify"):
        if arguments in (["-h"], ["--help"]):
            print(USAGE, end="")
            return 0
        from . import doctor

        return _without_arguments(command, arguments) or (doctor.main() if command == "doctor" else doctor.verify())
    if command == "demo":
        from . import demo

        return demo.main(arguments)
    print(f"posgan-fast: no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


def _without_arguments(command: str, arguments: list[str]) -> int:
    if arguments:
        print(f"posgan-fast {command}: takes no arguments, got {arguments}", file=sys.stderr)
        return 2
    return 0
