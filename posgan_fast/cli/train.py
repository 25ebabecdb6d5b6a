"""``posgan-fast train``: one recipe on pictures of the user's."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from .. import recipes
from ..recipes import checkpoint

_DESCRIPTION = """\
Train a system of "Positional Encoding as Spatial Inductive Bias in GANs", or the encoder of "High-fidelity GAN
Inversion with Padding Space". The folder given with --out gets a checkpoint (replaced as a whole), a log
(metrics.jsonl), grids of samples and the settings. Ctrl-C saves and stops; --resume goes on: on the CPU, with as many
threads, bit for bit as without the interruption. Several processes:
torchrun --nproc-per-node N -m posgan_fast train ...
"""
_TITLES = {
    "mspie": "MS-PIE StyleGAN2",
    "singan": "SinGAN, on one picture",
    "pggan": "PGGAN",
    "dcgan": "DCGAN",
    "padinv": "PadInv, an encoder that inverts a StyleGAN2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    systems = parser.add_subparsers(dest="system", metavar="SYSTEM", required=True, title="systems")
    for name, recipe in recipes.RECIPES.items():
        one = systems.add_parser(
            name, help=_TITLES[name], description=_DESCRIPTION, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        for field in dataclasses.fields(recipe.settings_type):
            _add(one, field)
        one.add_argument(
            "--resume",
            action="store_true",
            help="go on from the checkpoint in --out, with its settings where none is given",
        )
        one.add_argument("--quiet", action="store_true", help="print nothing")


def run(options: argparse.Namespace) -> int:
    recipe = recipes.RECIPES[options.system]
    names = {field.name for field in dataclasses.fields(recipe.settings_type)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if options.resume:
        before = recipes.load(Path(options.out, checkpoint.NAME), recipe.name)["settings"]
        given = {name: value for name, value in before.items() if name in names} | given
    try:
        path = recipes.train(recipe, recipe.settings_type(**given), resume=options.resume, quiet=options.quiet)
    except KeyboardInterrupt as interruption:
        if interruption.args and not options.quiet and os.environ.get("RANK", "0") == "0":
            print(f"interrupted; the run is saved in {interruption}, --resume continues it")
        raise
    if not options.quiet:
        print(path)
    return 0


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Add the option of a setting."""
    name, default, text = f"--{field.name.replace('_', '-')}", field.default, field.metadata["help"]
    more: dict[str, Any] = {}
    if isinstance(default, bool):
        parser.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if default is None:
        more = dict(type=int, nargs="+", metavar="N")
    elif default == "":
        more = dict(required=field.name == "out", metavar="PATH")
    else:
        more = dict(type=type(default), metavar=type(default).__name__.upper())
        if choices := field.metadata.get("choices"):
            more = dict(choices=choices)
        text = f"{text} (default: {default})"
    parser.add_argument(name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **more)
