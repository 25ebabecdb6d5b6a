"""``posgan-fast run``: the options before a program, and the program with its own arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from .. import backend
from .. import run as launcher
from ..integrations import devices

_USAGE = "posgan-fast run [options] SCRIPT.py [ARGS ...]\n       posgan-fast run [options] -m MODULE [ARGS ...]"
_DESCRIPTION = """\
Run a program with this library's ops in place of those of NVlabs or rosinality GAN code, and with stand-ins for what
newer versions of torch and other packages took away from such code (docs/running-scripts.md). Options come before the
program; everything after it is the program's own.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.description = _USAGE, _DESCRIPTION
    parser.add_argument(
        "--backend",
        metavar="NAME",
        type=_checked(backend.check_name, "--backend"),
        help="one of cpu, cuda, reference, triton for every op (default: the best that can run)",
    )
    parser.add_argument(
        "--device",
        metavar="cpu",
        type=_checked(devices.check_name, "--device"),
        help='run a program with a hard-coded "cuda" on the CPU',
    )
    parser.add_argument(
        "--tune-allocator", action="store_true", help="keep freed memory in the process (posgan_fast.tune_allocator)"
    )
    parser.add_argument("--quiet", action="store_true", help="do not say at the end what was patched")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="a module to run")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="SCRIPT.py", help="a script to run")
    parser.set_defaults(parser=parser)


def run(options: argparse.Namespace) -> int:
    words = options.program if options.module is None else options.module
    if not words:
        return _refuse(
            options, "expected SCRIPT.py or -m MODULE" if options.module is None else "-m: expected a module"
        )
    if options.module is None and not os.path.exists(words[0]):
        return _refuse(options, f"SCRIPT.py: expected a file to run, got {words[0]!r}")
    program = launcher.Program(
        words[0],
        tuple(words[1:]),
        is_module=options.module is not None,
        backend=options.backend,
        device=options.device,
        tune_allocator=options.tune_allocator,
        quiet=options.quiet,
    )
    return launcher.launch(program)


def _refuse(options: argparse.Namespace, problem: str) -> int:
    options.parser.print_usage(sys.stderr)
    print(f"{options.parser.prog}: error: {problem}", file=sys.stderr)
    return 2


def _checked(check: Callable[[str, str], str], name: str) -> Callable[[str], str]:
    """Turn a check of this library into a type of argparse, which keeps the message."""

    def convert(value: str) -> str:
        try:
            return check(value, name)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
