"""``posgan-fast edit-pair``: pictures that change as one picture was changed by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..recipes import codes, inverting
from ..recipes.checkpoint import replacing
from ..recipes.inversion import errors
from .invert import add_generator, open_generator
from .sample import refuse_existing

_DESCRIPTION = """\
Edit pictures by an example: the difference between the codes of a picture and of the same picture as you have changed
it, with a brush for example, is added to the codes of others. The padding space carries changes of shape, the latents
changes of colour. Writes edit.png, one row a picture, one column a strength; the codes of each; and edit.json with the
mean squared change, outside of a mask if one is given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("codes", nargs="+", metavar="CODES", help="pictures to edit, codes of posgan-fast invert")
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
    mask = None if options.mask is None else _mask(options.mask)
    files = [
        [options.out / f"{Path(name).name}{strength:+g}.safetensors" for name in given.names]
        for strength in options.strength
    ]
    flat = [path for row in files for path in row]
    if len(set(flat)) < len(flat):
        raise ValueError("CODES, --strength: expected pictures of different names, and different strengths")
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
    labels = ["inversion", *(f"{strength:+g}" for strength in options.strength)]
    inverting.write_strip(options.out / "edit.png", shown, labels, f"edit in {options.space}")
    with replacing(options.out / "edit.json", "w") as file:
        content = {"space": options.space, "outside of a mask": mask is not None, "mean squared change": changes}
        json.dump(content, file, indent=1)
        file.write("\n")
    print(options.out / "edit.png")
    return 0


def _mask(path: str) -> torch.Tensor:  # => [H, W]
    """Read a picture as True where it is brighter than half."""
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("L")) > 127)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"--mask: cannot read {path}: {error}") from None
