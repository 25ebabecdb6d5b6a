"""``posgan-fast experiment``: a claim of a paper, as a figure, numbers and one sentence."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ..experiments import EXPERIMENTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="experiment", metavar="NAME", required=True, title="experiments")
    for name, text in EXPERIMENTS.items():
        module = importlib.import_module(f"..experiments.{name}", __package__)
        one = names.add_parser(
            name, help=text, description=module.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        one.add_argument(
            "--out", type=Path, default=Path("out"), metavar="DIR",
            help="folder for figure and JSON, which replace those of an earlier run (default: out)",
        )  # fmt: skip
        module.add_arguments(one)
        one.set_defaults(experiment_module=module)


def run(options: argparse.Namespace) -> int:
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # before the minutes that an experiment takes
    except OSError as error:
        raise ValueError(f"--out: expected a folder that can be written, got {options.out}: {error.strerror}") from None
    return options.experiment_module.run(options)
