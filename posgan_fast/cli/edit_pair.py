"""``posgan-fast edit-pair``: pictures that change as one picture was changed by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..recipes import codes, images, inverting
from ..recipes.checkpoint import replacing
from ..recipes.inversion import errors
from .invert import add_generator, open_generator
from .sample import refuse_existing

_DESCRIPTION = """\
Edit pictures by an example: the difference between the codes of a picture and of the same picture as you have changed
it, with a brush for example, is added to the codes of others. The padding space carries changes of shape, the latents
changes of colour. Writes edit.png, one row a picture, one column a strength; the codes of each; and edit.json with the
mean squared change, outside of a mask if one is given. For an example of your own paint on a copy of a picture, and
invert both in the same way.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("codes", nargs="+", metavar="CODES", help="codes of the pictures to edit, ahead of the options")
    parser.add_argument("--before", required=True, metavar="CODES", help="codes of the example")
    parser.add_argument("--after", required=True, metavar="CODES", help="codes of the changed example")
    add_generator(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--space", choices=codes.SPACES, default="padding", help="(default: padding)")
    parser.add_argument(
        "--strength", type=float, nargs="+", default=[1.0], metavar="S", help="factors of the difference (default: 1)"
    )
    parser.add_argument(
        "--mask", metavar="PICTURE", help="white where the edit was meant to change pixels; of the generator's size"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")


def run(options: argparse.Namespace) -> int:
    sampler, G = open_generator(options)
    given = inverting.codes_from(options.codes, G)
    before, after = (inverting.codes_from([path], G) for path in (options.before, options.after))
    mask = None if options.mask is None else images.read_mask(options.mask)
    files = [
        [options.out / f"{inverting.file_name(name)}{strength:+g}.safetensors" for name in given.names]
        for strength in options.strength
    ]
    flat = [path for row in files for path in row]
    if len(set(flat)) < len(flat):
        some = f"{', '.join(given.names)}; {options.strength}"
        raise ValueError(f"CODES, --strength: expected different names and strengths, got {some}")
    refuse_existing([options.out / "edit.png", options.out / "edit.json", *flat], options.overwrite)
    mark, shown = codes.fingerprint(G), [inverting.shown(sampler, given)]
    changes: dict[str, dict[str, float]] = {}
    for strength, paths in zip(options.strength, files, strict=True):
        edited = codes.edit_pair(G, given, before, after, options.space, strength)
        shown.append(inverting.shown(sampler, edited))
        mse = errors(shown[-1], shown[0], mask).tolist()
        changes[f"{strength:g}"] = dict(zip(given.names, mse, strict=True))
        for one, path in zip(edited, paths, strict=True):
            codes.save_codes(path, one, mark)
    pair = [inverting.shown(sampler, before), inverting.shown(sampler, after)]
    pair += [torch.ones_like(pair[0])] * (len(shown) - 2)
    columns = [torch.cat([example, column]) for example, column in zip(pair, shown, strict=True)]
    labels = ["", *(f"{strength:+g}" for strength in options.strength)]
    title = f"edit in {options.space}; first row: the example, before and after"
    inverting.write_strip(options.out / "edit.png", columns, labels, title, ["example", *given.names])
    with replacing(options.out / "edit.json", "w") as file:
        content = {"space": options.space, "outside of a mask": mask is not None, "mean squared change": changes}
        json.dump(content, file, indent=1)
        file.write("\n")
    print(options.out / "edit.png")
    return 0
