"""``posgan-fast sample``: images from a checkpoint or a published file."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..recipes import checkpoint, images, ranks, sampling

_DESCRIPTION = """\
Make images from a checkpoint of posgan-fast train, or from published weights of StyleGAN2 (five families), MS-PIE,
SinGAN, PGGAN or DCGAN. Each image depends on its number and on the seed only.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint or file of weights")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for 00000.png, 00001.png, ...")
    parser.add_argument("--n", type=int, default=8, metavar="N", help="number of images (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of latents and noise (default: 0)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=pair(int), metavar="HxW", help="height and width in pixels")
    sizes.add_argument(
        "--scale",
        type=pair(float),
        metavar="S or RxC",
        help="SinGAN: factor of the sides; StyleGAN2: rows and columns added to the first feature map, as in MS-PIE",
    )
    parser.add_argument(
        "--psi", type=float, default=1.0, metavar="P", help="truncation of StyleGAN2 (default: 1, none)"
    )
    parser.add_argument("--noises", metavar="PKL", help="the .pkl beside the weights of a published SinGAN")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the network that its tensors do not tell, such as padding=interp or up_after_conv=true",
    )
    parser.add_argument("--channels", choices=("auto", "rgb", "bgr"), default="auto", help="order in the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace images that are in the folder already")
    parser.add_argument("--grid", action="store_true", help="also write grid.png with all images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(options: argparse.Namespace) -> int:
    device = ranks.choose_device(options.device)
    sampler = sampling.load(options.checkpoint, options.noises, **dict(map(assignment, options.set)))
    refuse_existing((options.out / f"{k:05d}.png" for k in range(options.n)), options.overwrite)
    sampler.generator.to(device)
    if options.channels != "auto":
        sampler.bgr = options.channels == "bgr"
    if sampler.report is not None:
        print(sampler.report)
    added = options.size is None and options.scale is not None and sampler.kind == "StyleGAN2"
    scale = tuple(whole(s) for s in options.scale) if added else options.scale
    made, count = [], 0
    for k, image in enumerate(
        sampler.images(options.n, size=options.size, scale=scale, seed=options.seed, psi=options.psi)
    ):
        write(image, options.out / f"{k:05d}.png")
        count += 1
        if options.grid:
            made.append(image.cpu())
    if made:
        import torch

        columns = math.ceil(math.sqrt(len(made)))
        with checkpoint.replacing(options.out / "grid.png") as file:
            images.grid(torch.stack(made), columns).save(file, "PNG")
    print(f"{count} image{'' if count == 1 else 's'} in {options.out}")
    return 0


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise a ValueError if one of the files is there already and may not be replaced."""
    there = next((path for path in paths if path.exists()), None)
    if there is not None and not overwrite:
        raise ValueError(f"--out: {there} exists; choose another folder, or --overwrite")


def write(image: Any, path: Path) -> None:
    """Write an image [3, H, W] from -1 to 1 as PNG."""
    with checkpoint.replacing(path) as file:
        images.grid(image[None], 1).save(file, "PNG")


def pair(number: Callable[[str], Any]) -> Callable[[str], tuple[Any, Any]]:
    """Return a function that reads "2" or "1x1.5"."""

    def convert(text: str) -> tuple[Any, Any]:
        first, _, second = text.lower().partition("x")
        try:
            return number(first), number(second or first)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number or two with an x between them, got {text!r}") from None

    return convert


def assignment(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, with numbers, true, false and none as such.

    Raises:
        ValueError: there is no =.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or name in ("path", "source", "noises"):
        raise ValueError(f"--set: expected NAME=VALUE, got {text!r}")
    known = {"true": True, "false": False, "none": None}
    if value.lower() in known:
        return name, known[value.lower()]
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


def whole(number: float) -> int:
    """Require a whole number as the scale of a StyleGAN2."""
    if not number.is_integer():
        raise ValueError(f"--scale: expected whole numbers for StyleGAN2, got {number:g}")
    return int(number)
