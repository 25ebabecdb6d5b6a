"""``posgan-fast doctor``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none."""


def run(options: argparse.Namespace) -> int:
    from .. import doctor

    return doctor.main()
