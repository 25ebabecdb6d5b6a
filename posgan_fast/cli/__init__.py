"""The command ``posgan-fast``: one module a command, of which only the one that runs is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": "run a program with this library's ops in place of its own",
    "train": "train MS-PIE, SinGAN, PGGAN, DCGAN or PadInv's encoder on pictures of yours",
    "sample": "make images from a checkpoint or a file of published weights",
    "edit": "change images of a StyleGAN2 along directions of its latent space",
    "invert": "find the codes that make a StyleGAN2 draw pictures of yours",
    "interpolate": "images between two pictures, in the latents, the padding space or both",
    "blend": "the details of one picture in the structure of another",
    "edit-pair": "change pictures as one picture was changed by hand",
    "experiment": "test a claim of a paper: a figure, numbers and one sentence",
    "doctor": "what is installed, what is missing, why, and the command that mends it",
    "verify": "compare every backend that runs here with the definition in float64",
    "demo": "a published StyleGAN2 package, unmodified, both ways; and a SinGAN on a photograph",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after ``posgan-fast``; None: those of this process.

    Returns:
        The exit status: 2 if the arguments are wrong, 1 if the command failed, 130 after Ctrl-C.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: posgan-fast [-h] [--version] COMMAND ...
        ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    try:
        options = _parser(command).parse_args(arguments or ["--help"])
    except ImportError as error:
        if command is None:
            raise
        return _failed(command, f"{error.name} is missing; pip install 'posgan_fast[train]'", 2)
    except SystemExit as ended:  # argparse has printed help or an error
        return int(ended.code or 0)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        if command == "run":  # the program's own
            raise
        return 130
    except (MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, RuntimeError) else ""
        lacks_memory = isinstance(error, MemoryError) or "alloc" in said or "out of memory" in said
        if command == "run" or (isinstance(error, RuntimeError) and not lacks_memory):
            raise
        return _failed(options.command, "not enough memory" if lacks_memory else str(error), 1)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser, with the options of one command."""
    parser = argparse.ArgumentParser(prog="posgan-fast", description="Fast ops and systems of convolutional GANs.")
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        one = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == command:
            module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
            module.add_arguments(one)
            one.set_defaults(run=module.run)
    return parser


class _Version(argparse.Action):
    """Prints the version, for which alone the package is imported."""

    def __init__(self, option_strings: Sequence[str], dest: str, **keywords: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help=str(keywords["help"]))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import posgan_fast

        print(posgan_fast.__version__)
        parser.exit()


def _failed(command: str, problem: str, status: int) -> int:
    print(f"posgan-fast {command}: {problem}", file=sys.stderr)
    return status
