"""SinGAN on one photograph: what do padding and encodings tell the generator about the place in the image?

Figures 1 and 7 of "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021): zero padding is what lets SinGAN
keep the layout of its photograph; without padding the layout is lost; an explicit encoding brings it back, CSG by
stretching it over a wider image and SPE by continuing it. The published generators with an encoding have zero padding
as well, in each convolution. So each encoding is tried beside zero padding and alone. The two waves of the published
SPE are 2 pi and 20000 pi pixels long: alone, neither can tell the place in the 40 pixels of the first stage. Six
trainings of about two minutes on 2 cores.

Random images of each generator are compared with the photograph, at its size and at 1.5 times its width:

- layout: correlation of the average image with the photograph, each channel about its mean; for wide images the
  photograph is stretched. If nothing tells the place, the average has one colour, and only chance correlates.
- border, centre: sliced Wasserstein distance of the 7x7 patches that touch the border, or that lie in the middle half
  of rows and columns, to those of the photograph, in units of the distance between border and centre of the photograph.
  At 1, patches are as wrong as if they came from the other place.
- spread: deviation of a pixel over the images, in the patches at the border over those in the centre.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from ..recipes.draws import generator
from ..recipes.images import to_float
from . import pictures
from .report import write
from .sliced_wasserstein import distance, windows

CONFIGS = {
    "zero padding": "original",
    "no padding": "no-pad",
    "CSG with zero padding": "csg",
    "SPE with zero padding": "spe",
    "CSG alone": "csg-no-pad",
    "SPE alone": "spe-no-pad",
}
SCALES = {"1x": 1.0, "1.5x": 1.5}  # of the width
MOST = 5000  # patches of a set
LEAST = 0.3  # layout of zero padding below which nothing was learnt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photo", default="rocket", choices=pictures.PHOTOGRAPHS, metavar="NAME",
        help=f"photograph of scikit-image: {', '.join(pictures.PHOTOGRAPHS)} (default: rocket)",
    )  # fmt: skip
    parser.add_argument("--iterations-per-stage", type=int, default=100, metavar="N", help="(default: 100)")
    parser.add_argument("--max-size", type=int, default=80, metavar="PIXELS", help="longer side (default: 80)")
    parser.add_argument("--width", type=int, default=16, metavar="N", help="channels of the first stages (default: 16)")
    parser.add_argument(
        "--images", type=int, default=50, metavar="N", help="images to measure, 2 or more (default: 50)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and noise (default: 0)")


def run(options: argparse.Namespace) -> int:
    if options.images < 2:
        raise ValueError(f"--images: expected at least 2, got {options.images}")
    settings = {name: getattr(options, name) for name in ("iterations_per_stage", "max_size", "width", "seed")}
    picture = pictures.photograph(options.photo)
    found: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        print(f"SinGAN, {name}")
        sampler = pictures.trained_on_photograph(picture, config=config, **settings)
        images = {
            scale: torch.stack(list(sampler.images(options.images, scale=(1, factor), seed=options.seed)))
            for scale, factor in SCALES.items()
        }
        network: Any = sampler.generator
        with torch.no_grad():
            found[name] = {"images": images, "reconstruction": network.reconstruct()}
    real = to_float(torch.from_numpy(picture).permute(2, 0, 1)[None])
    real = _resized(real, found["zero padding"]["reconstruction"].shape[2:])
    for one in found.values():
        one["measures"] = {scale: measures(images, real) for scale, images in one["images"].items()}
    numbers = {
        "settings": {"photo": options.photo, "images": options.images, "size": list(real.shape[2:]), **settings},
        "measures": {name: one["measures"] for name, one in found.items()},
    }
    write(options.out, "singan", _figure(real, found), numbers, _sentence(found))
    return 0


def measures(images: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Compare ``images`` [N, 3, H, W] with the photograph [1, 3, H, W']; the module's text defines the measures."""
    pair = images.mean(0, keepdim=True), _resized(real, images.shape[2:])
    average, expected = (image - image.mean((2, 3), keepdim=True) for image in pair)
    layout = F.cosine_similarity(average.flatten(), expected.flatten(), dim=0)
    border, centre = patches(real)
    unit = distance(border, centre)
    found = {"layout": float(layout)}
    for name, ours, theirs in zip(("border", "centre"), patches(images), (border, centre), strict=True):
        found[name] = distance(ours, theirs) / unit
    outside, inside = patches(images.std(0, keepdim=True))
    return found | {"spread": float(outside.mean() / inside.mean())}


def patches(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches of ``images`` [N, C, H, W] at the border and in the centre, ``MOST`` of each: [M, C * 49]."""
    every = windows(images)
    h, w = every.shape[1:3]
    at_border = torch.ones(h, w, dtype=torch.bool)
    at_border[1:-1, 1:-1] = False
    in_centre = torch.zeros(h, w, dtype=torch.bool)
    in_centre[h // 4 : h - h // 4, w // 4 : w - w // 4] = True
    found = []
    for chosen in (at_border, in_centre):
        one = every[:, chosen].flatten(0, 1)
        order = torch.randperm(len(one), generator=generator(0, "patches"))
        found.append(one[order[:MOST]].flatten(1))
    return found[0], found[1]


def _resized(image: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(image, size, mode="bicubic", antialias=True)


def _figure(real: torch.Tensor, found: dict[str, Any]) -> Figure:
    h, w = real.shape[2:]
    ratios = [w, w, w, 1.5 * w, 1.5 * w, w]
    height = 14 / sum(ratios) * h * (len(found) + 1) * 1.4
    figure = Figure(figsize=(14, height))
    axes = figure.subplots(len(found) + 1, len(ratios), width_ratios=ratios)
    for axis in axes.flat:
        axis.set_xticks([]), axis.set_yticks([])
    axes[0, 0].imshow(pictures.shown(real[0]))
    axes[0, 0].set_title("photograph", fontsize=9)
    for axis in axes[0, 1:]:
        axis.set_axis_off()
    for row, (name, one) in zip(axes[1:], found.items(), strict=True):
        narrow, wide = one["images"].values()
        for axis, image in zip(row, [*one["reconstruction"], *narrow[:2], *wide[:2]], strict=False):
            axis.imshow(pictures.shown(image))
        row[0].set_ylabel(name.replace(" with ", "\nwith "), fontsize=9)
        row[0].set_title("reconstruction", fontsize=9)
        row[1].set_title("two samples", fontsize=9, loc="left")
        row[1].set_xlabel(_numbers(one["measures"]["1x"]), fontsize=8, loc="left")
        row[3].set_title("1.5 times as wide", fontsize=9, loc="left")
        row[3].set_xlabel(_numbers(one["measures"]["1.5x"]), fontsize=8, loc="left")
        row[5].imshow(narrow.std(0).mean(0), vmin=0)
        row[5].set_title("spread over samples", fontsize=9)
    return figure


def _numbers(one: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in one.items())


def _sentence(found: dict[str, Any]) -> str:
    layouts = {name: [one["layout"] for one in every["measures"].values()] for name, every in found.items()}
    values = "; ".join(f"{name} {narrow:.2f} and {wide:.2f}" for name, (narrow, wide) in layouts.items())
    padded = layouts["zero padding"][0]
    lost = [name for name, (narrow, _) in layouts.items() if narrow < padded / 2]
    published = [name for name in lost if not name.endswith("alone")]
    if padded < LEAST:
        verdict = "Zero padding itself has not learnt the layout, so nothing follows."
    else:
        verdict = (
            f"The layout is lost with: {', '.join(lost) or 'none'}. Among the published generators this is "
            f"{'as' if published == ['no padding'] else 'unlike'} in the paper."
        )
    return (
        f"Correlation of the average image with the photograph, at its size and 1.5 times as wide: {values}. {verdict}"
    )
