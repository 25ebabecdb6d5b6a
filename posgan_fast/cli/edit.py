"""``posgan-fast edit``: images that change along a direction of the latent space."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..models import Generator
from ..recipes import checkpoint, draws, editing, ranks, sampling
from .sample import assignment, pair, refuse_existing, whole

_DESCRIPTION = """\
Edit images of a StyleGAN2 generator along the directions that its own weights tell (SeFa): a strip of images for each
direction, one row a latent, one column a degree. Takes checkpoints of posgan-fast train mspie and published files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True, title="methods")
    one = methods.add_parser(
        "sefa",
        help="closed-form factorisation of the style layers",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("checkpoint", metavar="CKPT", help="checkpoint or file of weights")
    one.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for direction-000.png, ...")
    one.add_argument(
        "--directions",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="K",
        help="from 0, the strongest (default: 0 1 2)",
    )
    one.add_argument(
        "--degrees", type=float, nargs=2, default=[-3.0, 3.0], metavar=("FROM", "TO"), help="ends (default: -3 3)"
    )
    one.add_argument("--steps", type=int, default=7, metavar="N", help="images in a row (default: 7)")
    one.add_argument("--layers", type=int, nargs="+", metavar="L", help="latents that change (default: all)")
    one.add_argument("--n", type=int, default=4, metavar="N", help="latents, rows of a strip (default: 4)")
    one.add_argument("--seed", type=int, default=2020, metavar="N", help="seed of the latents (default: 2020)")
    one.add_argument("--psi", type=float, default=1.0, metavar="P", help="truncation (default: 1, none)")
    one.add_argument(
        "--scale", type=pair(float), metavar="S or RxC", help="rows and columns added to the first feature map"
    )
    one.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments that no tensor tells")
    one.add_argument("--channels", choices=("auto", "rgb", "bgr"), default="auto", help="order in the weights")
    one.add_argument("--overwrite", action="store_true", help="replace strips that are in the folder already")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(options: argparse.Namespace) -> int:
    device = ranks.choose_device(options.device)
    sampler = sampling.load(options.checkpoint, **dict(map(assignment, options.set)))
    G = sampler.generator.to(device)
    if not isinstance(G, Generator):
        raise ValueError(f"{options.checkpoint}: expected a StyleGAN2 generator, got a {sampler.kind}")
    bgr = sampler.bgr if options.channels == "auto" else options.channels == "bgr"
    if options.n < 1 or options.steps < 2:
        raise ValueError(f"--n, --steps: expected at least 1 and 2, got {options.n} and {options.steps}")
    directions, _ = editing.sefa(G)
    for k in options.directions:
        if not 0 <= k < directions.shape[1]:
            raise ValueError(f"--directions: expected 0 to {directions.shape[1] - 1}, got {k}")
    paths = [options.out / f"direction-{k:03d}.png" for k in options.directions]
    refuse_existing(paths, options.overwrite)
    rows, columns = (0.0, 0.0) if options.scale is None else options.scale
    scale = (whole(rows), whole(columns))
    first, last = options.degrees
    degrees = torch.linspace(first, last, options.steps).tolist()
    random = draws.Draws(options.seed, 0, options.n, device, torch.float32)
    with torch.no_grad():
        label = None if not G.c_dim else torch.eye(G.c_dim, device=device)[:1].expand(options.n, -1)
        ws = G.mapping(random.normal("z", G.z_dim), label, options.psi)
    noises = [random.normal(f"noise {i}", 1, *side) for i, side in enumerate(G.synthesis.noise_sizes(scale))]
    for k, path in zip(options.directions, paths, strict=True):
        made = editing.edited(G, ws, directions[:, k], degrees, layers=options.layers, scale=scale, noises=noises)
        made = [image.flip(1) if bgr else image for image in made]
        with checkpoint.replacing(path) as file:
            editing.strip(made, [f"{d:+.3g}" for d in degrees], f"direction {k}").save(file, "PNG")
        print(path)
    return 0
