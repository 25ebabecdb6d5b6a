"""``posgan-fast interpolate``: images between two pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..recipes import codes, inverting
from .invert import add_generator, open_generator
from .sample import refuse_existing

_DESCRIPTION = """\
Interpolate between the codes of two pictures, or between the average image and a picture: in the latents, which tell
style, in the padding space, which tells structure, or in both. What is not interpolated stays that of the first.
Writes a strip of images, a row for each picture in the files of codes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("first", metavar="A", help='codes of posgan-fast invert, or the word "average"')
    parser.add_argument("second", metavar="B", help="codes of as many pictures")
    add_generator(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="the strip")
    parser.add_argument("--space", choices=codes.SPACES, default="both", help="(default: both)")
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="images in a row, 2 or more (default: 7)")
    parser.add_argument("--overwrite", action="store_true", help="replace a strip that is there already")


def run(options: argparse.Namespace) -> int:
    if options.steps < 2:
        raise ValueError(f"--steps: expected at least 2, got {options.steps}")
    refuse_existing([options.out], options.overwrite)
    sampler, G = open_generator(options)
    a, b = (inverting.codes_from([path], G) for path in (options.first, options.second))
    if options.first == "average":
        a = codes.joined([a] * len(b), G)
    degrees = torch.linspace(0, 1, options.steps).tolist()
    made = [inverting.shown(sampler, codes.interpolate(G, a, b, t, options.space)) for t in degrees]
    space = {"both": "latents and padding"}.get(options.space, options.space)
    title = f"{a.names[0]} to {b.names[0]} in {space}" if len(a) == 1 else f"interpolation in {space}"
    rows = [f"{one} to {other}" for one, other in zip(a.names, b.names, strict=True)]
    inverting.write_strip(options.out, made, [f"{t:.2f}" for t in degrees], title, rows if len(rows) > 1 else ())
    print(options.out)
    return 0
