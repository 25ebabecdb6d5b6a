"""Padding, no padding and SPE in DCGAN and PGGAN, judged by the multi-level sliced Wasserstein distance.

Tables 3 and 4 of "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021): without padding the distance
grows, and SPE lowers it again. Here generators of 32 pixels train on the 100 faces of scikit-image, several seeds each,
a minute each on 2 cores. Two distances between real faces tell what a value means: between the even and the odd ones,
and of all faces to themselves, with other patches.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..recipes.images import grid
from . import pictures
from .report import write
from .sliced_wasserstein import multi_level

CONFIGS = {"padded": "padded", "no padding": "no-pad", "no padding, SPE": "no-pad-spe"}
PAPER = {  # changes of the average in Tables 4 and 3
    "dcgan": "12.2 and 13.3, on bedrooms at 128 pixels",
    "pggan": "4.4 and 2.8, on faces at 128 pixels",
}
SIDE, SHOWN = 32, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="dcgan", choices=tuple(PAPER), help="dcgan or pggan (default: dcgan)")
    parser.add_argument("--iterations", type=int, default=800, metavar="N", help="of each training (default: 800)")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each kind, 2 or more (default: 3)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=200,
        metavar="N",
        help="images to compare with as many faces, 8 to 200 (default: 200)",
    )


def run(options: argparse.Namespace) -> int:
    if options.seeds < 2:
        raise ValueError(f"--seeds: expected at least 2, for a deviation, got {options.seeds}")
    pictures.check_count(options.images, SHOWN)
    real = pictures.faces(SIDE)[: options.images]
    between = {"even to odd faces": multi_level(real[::2], real[1::2]), "faces to themselves": multi_level(real, real)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONFIGS}
    shown = {"real": real[:SHOWN]}
    settings = _settings(options.system, options.iterations)
    for seed in range(options.seeds):
        for name, config in CONFIGS.items():
            print(f"{options.system}, {name}, seed {seed}")
            sampler = pictures.trained_on_faces(options.system, SIDE, config=config, seed=seed, **settings)
            images = torch.stack(list(sampler.images(options.images, seed=seed)))
            found[name].append(multi_level(real, images, seed=seed))
            shown.setdefault(name, images[:SHOWN])
    numbers = {
        "settings": {"system": options.system, "seeds": options.seeds, "images": options.images, **settings},
        "between real faces": between,
        "distance x 1000": found,
    }
    name = "swd" if options.system == "dcgan" else f"swd-{options.system}"
    write(
        options.out,
        name,
        _figure(options.system, shown, found, between),
        numbers,
        _sentence(options.system, found, between),
    )
    return 0


def _settings(system: str, iterations: int) -> dict[str, Any]:
    if system == "dcgan":
        return dict(size=SIDE, base_channels=64, batch=32, average=0.99, iterations=iterations)
    eighth = max(1, 16 * iterations // 8)  # of the images: one for 4 pixels, two each for 8 and 16, three for 32
    images = dict(images_first=eighth, images=2 * eighth, transition=eighth)
    return dict(size=SIDE, max_channels=64, batch=16, average=0.99, iterations=iterations, **images)


def _figure(system: str, shown: dict[str, torch.Tensor], found: dict[str, Any], between: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 4))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1.4))
    left.imshow(np.asarray(grid(torch.cat(list(shown.values())), SHOWN)))
    left.set_xticks([])
    left.set_yticks([(SIDE + 2) * k + SIDE // 2 for k in range(len(shown))], list(shown))
    for k, (name, runs) in enumerate(found.items()):
        values = [[one[level] for one in runs] for level in runs[0]]
        means, deviations = zip(*((statistics.mean(v), statistics.stdev(v)) for v in values), strict=True)
        at = [j + 0.25 * (k - 1) for j in range(len(values))]
        right.bar(at, means, 0.25, yerr=deviations, capsize=3, label=name)
    for marker, (name, levels) in zip(("_", "|"), between.items(), strict=True):
        right.scatter(range(len(levels)), list(levels.values()), 200, "black", marker=marker, label=name)
    right.set_xticks(range(len(levels)), list(levels))
    right.set_title(f"{system}: SWD x 1000, deviation over the seeds", fontsize=10)
    right.legend(fontsize=8)
    return figure


def _sentence(system: str, found: dict[str, Any], between: dict[str, Any]) -> str:
    means = {name: [one["mean"] for one in runs] for name, runs in found.items()}
    values = ", ".join(f"{name} {statistics.mean(one):.1f}" for name, one in means.items())
    real = ", ".join(f"{name} {one['mean']:.1f}" for name, one in between.items())
    padded, bare, encoded = means.values()
    return (
        f"SWD x 1000 of {system}, mean of levels and seeds: {values}; for comparison {real}. Removing the padding "
        f"{_change(padded, bare)}; adding SPE then {_change(bare, encoded)}. In the paper the first raises "
        f"and the second lowers it, by {PAPER[system]}."
    )


def _change(before: list[float], after: list[float]) -> str:
    """Describe the mean difference of runs with the same seed, by its standard error."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    verb = "raises it" if mean > 2 * error else "lowers it" if mean < -2 * error else "does not change it significantly"
    return f"{verb} ({mean:+.1f}, standard error {error:.1f})"
