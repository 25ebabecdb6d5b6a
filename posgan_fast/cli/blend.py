"""``posgan-fast blend``: the details of one picture in the structure of another."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..recipes import codes, inverting
from .invert import add_generator, open_generator
from .sample import refuse_existing

_DESCRIPTION = """\
Blend pictures: the latents of one, which tell its details, with the padding maps of another, which tell its outline and
its background. Writes blend.png, one row a structure, one column a picture of details, and the codes of each blend. The
word "average" stands for the codes of the average image.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("--details", required=True, nargs="+", metavar="CODES", help="codes of posgan-fast invert")
    parser.add_argument("--structure", required=True, nargs="+", metavar="CODES", help="codes of posgan-fast invert")
    add_generator(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")


def run(options: argparse.Namespace) -> int:
    sampler, G = open_generator(options)
    details, structures = (inverting.codes_from(paths, G) for paths in (options.details, options.structure))
    paths = {
        (i, k): options.out / f"{inverting.file_name(a)}-in-{inverting.file_name(b)}.safetensors"
        for i, a in enumerate(details.names)
        for k, b in enumerate(structures.names)
    }
    refuse_existing([options.out / "blend.png", *paths.values()], options.overwrite)
    if len(set(paths.values())) < len(paths):
        raise ValueError(
            f"--details, --structure: expected different names, got {', '.join([*details.names, *structures.names])}"
        )
    mark = codes.fingerprint(G)
    own = inverting.shown(sampler, details)
    shown = [torch.cat([torch.ones_like(own[:1]), inverting.shown(sampler, structures)])]
    for i, one in enumerate(details):
        blends = [codes.blend(one, structure) for structure in structures]
        for k, blended in enumerate(blends):
            codes.save_codes(paths[i, k], blended, mark)
        shown.append(torch.cat([own[i : i + 1], inverting.shown(sampler, codes.joined(blends, G))]))
    title = "details of the picture above in the structure of the picture to the left"
    inverting.write_strip(
        options.out / "blend.png", shown, ["", *details.names], title, ["inversions", *structures.names]
    )
    print(options.out / "blend.png")
    return 0
