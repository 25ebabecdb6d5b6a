"""python -m benchmarks.systems: measure SinGAN, MS-PIE and DCGAN as their users run them, sampling and training.

Ours is compared with the same networks, weights and algorithm in plain torch layers, and SinGAN's iteration also with
the algorithm of the released code in those layers, which builds the graph through all stages. With a checkout of
mmgeneration its own generator samples beside ours. Times are medians of interleaved rounds, ratios medians of the
ratios within each round.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import stylegan2_peers as peers
import torch
from PIL import Image
from torch.nn import functional as F

from posgan_fast.models import SinGANGenerator
from posgan_fast.models.singan import resize
from posgan_fast.recipes import DCGAN, MSPIE, DCGANSettings, MSPIESettings, SinGAN, SinGANSettings, losses
from posgan_fast.recipes.singan import CONFIGS, PENALTY, RECONSTRUCTION, STEPS

from . import harness, options
from .plain import plain_layers
from .timed import OURS, Row, line, measured, write

WHAT = ("singan-sample", "singan-train", "mspie-train", "dcgan-train")
PLAIN, RELEASED, THEIRS = "plain torch", "plain torch, released algorithm", "mmgeneration"
SIZES = [(25, 33), (32, 43), (41, 55), (53, 71), (69, 91), (88, 118), (113, 151), (145, 194), (186, 248)]  # balloons


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.allocator and args.allocator != harness.allocator():
        return options.run_again("benchmarks.systems", sys.argv[1:] if argv is None else argv, args.allocator)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in args.what:
            for row in globals()[f"_{what.replace('-', '_')}"](args, Path(folder)):
                print(line(row), flush=True)
                rows.append(row)
    write(args, rows, "systems")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.systems", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--what", nargs="+", action=options.Distinct, choices=WHAT, default=list(WHAT))
    parser.add_argument(
        "--peer", type=options.checkout("mmgeneration", "mmgen"), metavar="PATH",
        help="checkout of mmgeneration, whose SinGAN samples beside ours",
    )  # fmt: skip
    rounds = options.at_least(2, ", for quartiles")
    parser.add_argument("--rounds", type=rounds, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all runs")
    options.add_allocator(parser)
    options.add_output(parser)
    return parser


def _singan_sample(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Sample images of 186 x 248 pixels, and of 1.5 times that width, from nine stages."""
    sizes = SIZES[:3] if args.quick else SIZES
    weights = [1.0] + [0.1] * (len(sizes) - 1)
    for name in ("spe", "original", "interp-pad"):
        generator = SinGANGenerator(len(sizes), **CONFIGS[name]).eval()
        for wider, n in ((1.0, 1), (1.5, 4)):
            scaled = [(h, round(w * wider)) for h, w in sizes]
            noises = generator.draw_noises(scaled, n, seed=0)

            def sample(g: Any = generator, z: Any = noises) -> torch.Tensor:
                with torch.no_grad():
                    return g(z, weights)

            calls = {OURS: sample, PLAIN: _plain(sample)}
            if args.peer and (name, n) != ("original", 4):  # whose code repeats noise for no batch
                calls[THEIRS] = _mmgeneration(args.peer, name, generator, noises, weights)
            yield measured("SinGAN sampling", f"{name}, {n} of {scaled[-1][0]} x {scaled[-1][1]}", calls, args.rounds)


def _mmgeneration(
    path: Path, name: str, ours: SinGANGenerator, noises: list[torch.Tensor], weights: list[float]
) -> Callable[[], torch.Tensor]:
    """Return a call of mmgeneration's generator with the weights and noises of ours."""
    kind, arguments, _, _, (_, channels) = peers.SINGANS["interp" if name == "interp-pad" else name]
    with peers.checkout(path, peers.mmcv(path)):
        theirs = peers.mmgeneration_network(kind)(3, 3, len(noises) - 1, **arguments).eval()
    theirs.load_state_dict(theirs.state_dict() | ours.state_dict())
    first = torch.zeros(len(noises[0]), 3, *(side - ours.margin for side in noises[0].shape[2:]))
    noises = [noises[0], *(noise.expand(-1, channels, -1, -1) for noise in noises[1:])]
    keywords = dict(fixed_noises=noises, noise_weights=weights, rand_mode="recon", curr_scale=len(noises) - 1)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return theirs(first, **keywords)

    return run


def _singan_train(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """One iteration of a middle stage and of the last one: three steps of each network."""
    picture = folder / "picture.png"
    Image.fromarray(_photograph(*(SIZES[3] if args.quick else SIZES[-1]))).save(picture)
    for config in ("spe", "interp-pad"):
        settings = SinGANSettings(data=str(picture), out=str(folder), config=config, iterations_per_stage=1)
        for stage in (1, 2) if args.quick else (4, 7):
            recipe = SinGAN(settings, torch.device("cpu"))
            for t in range(stage + 1):
                recipe.step(t, None)

            def step(r: SinGAN = recipe, t: int = stage) -> float:
                r._start(t)
                r.noise_weights = r.noise_weights[: t + 1]
                r.step(t, None)
                return 0.0

            def released(r: SinGAN = recipe, t: int = stage) -> float:
                r._start(t)
                _released_iteration(r)
                return 0.0

            h, w = recipe.reals[stage].shape[2:]
            calls = {OURS: step, PLAIN: _plain(step), RELEASED: _plain(released)}
            yield measured("SinGAN training", f"{config}, stage {stage}, {h} x {w}", calls, args.rounds)


def _released_iteration(recipe: SinGAN) -> None:
    """Take the steps of an iteration with the graph of the released code: through all stages, detached at inputs."""
    stage, weights = recipe.stage, recipe.noise_weights
    real = recipe.reals[stage]

    def generate(random: bool) -> torch.Tensor:
        image = recipe.noises[0].new_zeros(1, 3, *recipe.reals[0].shape[2:])
        for t in range(stage + 1):
            image = resize(image, recipe.reals[t].shape[2:])
            noise = torch.randn_like(recipe.noises[t]) if random else recipe.noises[t]
            inside = resize(image, noise.shape[2:]) if recipe.G.margin else image
            first = t == 0 and recipe.G.encode is not None
            layer = recipe.G.input if t else recipe.G.first_input
            x = layer(noise, None if first else inside, weights[t])
            image = recipe.G.blocks[t](x.detach()) + image
        return image

    for _ in range(STEPS):
        with torch.no_grad():
            fake = generate(random=True)
        loss = recipe._judge(fake).mean() - recipe._judge(real).mean()
        penalty = losses.gradient_penalty(recipe._judge, real, fake, torch.rand(1), per_pixel=True)
        recipe.update(recipe.optimizers["discriminator"], loss + PENALTY * penalty)
    recipe.D.requires_grad_(False)
    for _ in range(STEPS):
        adversarial = -recipe._judge(generate(random=True)).mean()
        recipe.update(
            recipe.optimizers["generator"], adversarial + RECONSTRUCTION * F.mse_loss(generate(random=False), real)
        )
    recipe.D.requires_grad_(True)


def _mspie_train(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Four iterations of configuration f, one with R1 and with path length."""
    _photographs(folder / "faces", 8, 48)
    for size, channels in ((16, 32),) if args.quick else ((32, 128), (64, 64)):
        settings = MSPIESettings(
            data=str(folder / "faces"), out=str(folder), size=size, channel_max=channels, batch=4, iterations=10_000
        )
        recipe = MSPIE(settings, torch.device("cpu"))
        yield measured("MS-PIE training", f"f at {size}, 4 iterations of 4", _steps(recipe, 4), args.rounds)


def _dcgan_train(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Four iterations at 32 pixels, with padding and without."""
    _photographs(folder / "faces", 8, 48)
    for config in ("original", "no-pad-spe"):
        width, batch = (64, 8) if args.quick else (256, 64)
        settings = DCGANSettings(
            data=str(folder / "faces"), out=str(folder), size=32, base_channels=width, batch=batch, config=config,
            iterations=10_000,
        )  # fmt: skip
        recipe = DCGAN(settings, torch.device("cpu"))
        yield measured("DCGAN training", f"{config}, 4 iterations of {batch}", _steps(recipe, 4), args.rounds)


def _steps(recipe: Any, count: int) -> dict[str, Callable[[], Any]]:
    """Return calls that take ``count`` iterations from the first on."""
    batches = recipe.batches(0)
    pictures = list(itertools.islice(batches, count))

    def steps() -> float:
        for iteration, real in enumerate(pictures):
            recipe.step(iteration, real)
        return 0.0

    return {OURS: steps, PLAIN: _plain(steps)}


def _plain(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with plain_layers():
            return call()

    return run


def _photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return smooth random colours, [height, width, 3]."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return image.permute(1, 2, 0).mul(255).byte().numpy()


def _photographs(folder: Path, count: int, side: int) -> None:
    folder.mkdir(exist_ok=True)
    for k in range(count):
        Image.fromarray(_photograph(side, side, k)).save(folder / f"{k}.png")


if __name__ == "__main__":
    raise SystemExit(main())
