"""Options that several commands share."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import harness

ALLOCATOR = ("--tune-allocator", "--as-started")


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
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), metavar="DIR")
    parser.add_argument("--name", help="name of the files; default: what was measured, device and allocator")


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
