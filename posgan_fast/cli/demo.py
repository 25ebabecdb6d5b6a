"""``posgan-fast demo``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for demo.png, demo.json and singan.png (default: out)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="64 pixels and one step of each training, to see that it runs"
    )


def run(options: argparse.Namespace) -> int:
    from .. import demo

    return demo.main(options.out, options.quick)
