"""``posgan-fast blend``: the details of one picture in the structure of another."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..recipes import codes, inverting
from .invert import add_generator, open_generator
from .sample import refuse_existing

_DESCRIPTION = """\
Blend pictures: the latents of one, which tell its details, with the padding maps of another, which tell its outline and
its background. Writes blend.png, one row a structure, one column a picture of details, and the codes of each blend.
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
        (i, k): options.out / f"{_stem(a)}-in-{_stem(b)}.safetensors"
        for i, a in enumerate(details.names)
        for k, b in enumerate(structures.names)
    }
    refuse_existing([options.out / "blend.png", *paths.values()], options.overwrite)
    if len(set(paths.values())) < len(paths):
        raise ValueError("--details, --structure: expected pictures of different names")
    mark = codes.fingerprint(G)
    shown = [inverting.shown(sampler, structures)]
    for i, one in enumerate(details):
        blends = [codes.blend(one, structure) for structure in structures]
        for k, blended in enumerate(blends):
            codes.save_codes(paths[i, k], blended, mark)
        shown.append(inverting.shown(sampler, codes.joined(blends, G)))
    labels = ["structure", *details.names]
    inverting.write_strip(options.out / "blend.png", shown, labels, "details of each column in the structure")
    print(options.out / "blend.png")
    return 0


def _stem(name: str) -> str:
    return name.replace("/", "_").replace("\\", "_")
