"""Options that several commands share, and the types that check the values of options.

A wrong value ends a command with status 2 and one line, before any work.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import harness, peers

ALLOCATOR = ("--tune-allocator", "--as-started")
SMALLEST = 8  # pixels of the images of a network
GROUP = 4  # samples that the discriminators of StyleGAN2 compare with each other


def at_least(least: int, why: str = "") -> Callable[[str], int]:
    """The type of an integer that is not below ``least``."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}{why}, got {text!r}")
        return value

    return integer


def image_size(text: str) -> int:
    """The type of the pixels of a network's images."""
    size = at_least(SMALLEST)(text)
    if size & (size - 1):
        raise argparse.ArgumentTypeError(f"expected a power of two, got {text!r}")
    return size


def seconds(text: str) -> float:
    """The type of a time limit."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of seconds above 0, got {text!r}")
    return value


def output_file(text: str) -> Path:
    """The type of a file that a command writes into a folder that exists."""
    path = Path(text)
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text!r}")
    _check_writable(path.resolve().parent, text)  # of what a link points to
    return path


def output_folder(text: str) -> Path:
    """The type of a folder that a command makes, with those around it, and writes files into."""
    folder = Path(text)
    _check_writable(next((p for p in (folder, *folder.parents) if os.path.exists(p)), folder), text)
    return folder


def _check_writable(folder: Path, text: str) -> None:
    # Permissions alone do not tell: they say nothing of a read-only file system, and do not bind root.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"expected a path that can be written, got {text!r}: {folder}: {error.strerror}"
        raise argparse.ArgumentTypeError(message) from None


def checkout(name: str, mark: str) -> Callable[[str], Path]:
    """The type of a checkout of the project ``name``, which holds the file or folder ``mark``."""

    def path_of(text: str) -> Path:
        if not (Path(text) / mark).exists():
            raise argparse.ArgumentTypeError(f"expected a checkout of {name} with {mark}, got {text!r}")
        return Path(text)

    return path_of


class Distinct(argparse.Action):
    """Keeps a value that was given twice once, in the order of the values."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def peer_paths(parser: argparse.ArgumentParser, entries: Iterable[str], **wanted: Any) -> dict[str, Path]:
    """Read the entries of ``--peer`` by :func:`benchmarks.peers.parse`, or end with its complaint."""
    try:
        return peers.parse(entries, **wanted)
    except ValueError as error:
        parser.error(str(error))


def check_groups(parser: argparse.ArgumentParser, batches: Iterable[int], group: int | None = GROUP) -> None:
    """Complain of a batch that a discriminator cannot divide into groups; a smaller batch forms one group."""
    for n in batches:
        if group is not None and n % min(group, n):
            parser.error(
                f"--batch: expected less than {group}, the group size of the discriminator, or a multiple, got {n}"
            )


def lacks_gpu(dry_run: bool) -> bool:
    """Tell whether a command lacks the GPU that it needs, and say so."""
    if dry_run or torch.cuda.is_available():
        return False
    print("no CUDA device here; --dry-run takes the same steps on the CPU", file=sys.stderr)
    return True


def add_allocator(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the choice between two settings of glibc's allocator; returns the group, for a third option."""
    group = parser.add_mutually_exclusive_group()
    tuned, started = ALLOCATOR
    group.add_argument(
        tuned, dest="allocator", action="store_const", const="tuned", help="let glibc's allocator keep freed memory"
    )
    group.add_argument(
        started, dest="allocator", action="store_const", const="as started", help="leave glibc's defaults"
    )
    return group


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the folder and the name of the files that a command writes."""
    parser.add_argument("--out", type=output_folder, default="out/benchmarks", metavar="DIR")
    parser.add_argument(
        "--name", type=_file_name, help="name of the files; default: what was measured, device and allocator"
    )


def _file_name(text: str) -> str:
    if Path(text).name != text:
        raise argparse.ArgumentTypeError(f"expected a name without a folder, got {text!r}")
    return text


def run_again(module: str, argv: Sequence[str], setting: str) -> int:
    """Run a command in a new process, since the allocator reads its settings when a process starts.

    Args:
        module: the module of the command.
        argv: its arguments; those that choose the allocator are left out.
        setting: "tuned" or "as started".

    Returns:
        The exit code.
    """
    kept = [a for a in argv if a not in (*ALLOCATOR, "--both")]
    command = [sys.executable, "-m", module, *kept]
    return subprocess.run(command, env=harness.environment_for(setting)).returncode
