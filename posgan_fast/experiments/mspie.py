"""MS-PIE: one generator trained at three sizes, asked for sizes that it never saw.

Section 3.5 and Table 5 of "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021): a StyleGAN2 whose first
feature map is an encoding makes images of several sizes with the same weights. Here the configurations c (constant), d
(CSG), e (SPE, interpolated) and f (SPE, expanded) train on the 100 faces of scikit-image at 32, 48 and 64 pixels, one
seed each, two minutes each on 2 cores. The sliced Wasserstein distance judges images of these sizes, of those between
them (40, 56) and of one beyond (80), each against the faces at that size.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import models
from ..recipes.images import grid
from . import pictures
from .report import write
from .sliced_wasserstein import multi_level

CONFIGS = {"constant": "c", "CSG": "d", "SPE, interpolated": "e", "SPE, expanded": "f"}
SIDE, SHOWN = 32, 4
KINDS = {"trained": (0, 2, 4), "between": (1, 3), "beyond": (6,)}  # scales, 8 pixels each
SCALES = tuple(sorted(scale for scales in KINDS.values() for scale in scales))
SIDES = dict(zip(SCALES, models.mspie.CONFIGS["f"]._replace(size=SIDE, scales=SCALES).sides, strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--iterations", type=int, default=400, metavar="N", help="of each training (default: 400)")
    parser.add_argument("--channel-max", type=int, default=32, metavar="N", help="most channels (default: 32)")
    parser.add_argument(
        "--images",
        type=int,
        default=200,
        metavar="N",
        help="images to compare with as many faces, 4 to 200 (default: 200)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and latents (default: 0)")


def run(options: argparse.Namespace) -> int:
    pictures.check_count(options.images, SHOWN)
    if options.iterations < 1:  # 0 is the recipe's word for a million
        raise ValueError(f"--iterations: expected at least 1, got {options.iterations}")
    chosen = {name: getattr(options, name) for name in ("iterations", "channel_max", "seed")}
    for config in CONFIGS.values():  # refuses channels that a later one cannot have
        models.mspie.generator(config, size=SIDE, channel_max=options.channel_max)
    settings = dict(size=SIDE, scales=KINDS["trained"], batch=4, average=0.98, **chosen)
    largest = SIDES[max(KINDS["trained"])]
    real = {scale: pictures.faces(largest, SIDES[scale])[: options.images] for scale in SCALES}
    halves = {scale: multi_level(faces[::2], faces[1::2])["mean"] for scale, faces in real.items()}
    found: dict[str, dict[int, float]] = {}
    shown: dict[str, dict[int, torch.Tensor]] = {}
    for name, config in CONFIGS.items():
        print(f"MS-PIE, {name}")
        sampler = pictures.trained_on_faces("mspie", largest, config=config, **settings)
        found[name], shown[name] = {}, {}
        for scale in SCALES:
            images = torch.stack(list(sampler.images(options.images, scale=scale, seed=options.seed)))
            found[name][scale] = multi_level(real[scale], images)["mean"]
            shown[name][scale] = images[:SHOWN]
    numbers = {
        "settings": {"images": options.images, **settings},
        "distance x 1000, by side": {name: _by_side(one) for name, one in found.items()},
        "even to odd faces": _by_side(halves),
    }
    write(options.out, "mspie", _figure(found, shown, halves), numbers, _sentence(found))
    return 0


def _by_side(distances: dict[int, float]) -> dict[int, float]:
    return {SIDES[scale]: value for scale, value in distances.items()}


def _figure(found: dict[str, Any], shown: dict[str, Any], halves: dict[int, float]) -> Figure:
    sides = list(SIDES.values())
    figure = Figure(figsize=(14, 14 / sum(sides) * max(sides) * 1.1 * len(found)))
    axes = figure.subplots(len(found), len(SCALES), width_ratios=sides)
    kinds = {scale: kind for kind, scales in KINDS.items() for scale in scales}
    for row, name in zip(axes, found, strict=True):
        for axis, scale in zip(row, SCALES, strict=True):
            axis.imshow(np.asarray(grid(shown[name][scale], SHOWN // 2)))
            axis.set_title(f"{SIDES[scale]} pixels, {kinds[scale]}", fontsize=8)
            axis.set_xlabel(f"SWD {found[name][scale]:.0f}\nfaces {halves[scale]:.0f}", fontsize=8)
            axis.set_xticks([]), axis.set_yticks([])
        row[0].set_ylabel(name)
    return figure


def _sentence(found: dict[str, dict[int, float]]) -> str:
    means = {
        name: [statistics.mean(distances[scale] for scale in scales) for scales in KINDS.values()]
        for name, distances in found.items()
    }
    values = "; ".join(f"{name} {' / '.join(f'{value:.0f}' for value in one)}" for name, one in means.items())
    best = [min(zip(one, found, strict=True))[1] for one in zip(*means.values(), strict=True)]
    return (
        f"SWD x 1000 at the sizes of the training / between them / beyond, one seed: {values}. The lowest are those of "
        f"{' / '.join(best)}; in the paper SPE, expanded has the lowest FID at sizes of the training, and other sizes "
        f"have no figures."
    )
