"""``posgan-fast invert``: the codes of pictures."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from tqdm import tqdm

from ..models import Generator
from ..recipes import inversion, inverting, loop, perception, ranks, sampling
from .sample import assignment

_DESCRIPTION = """\
Find the codes, latents and padding maps, with which a StyleGAN2 generator draws pictures of yours: by an encoder, by
optimisation, or by both. Each picture of a folder or zip archive gets two files, NAME.png, the picture beside its
inversion, and NAME.safetensors, its codes, where NAME has its ending, as in photo.jpg.png; inversion.json keeps the
settings. A second start with the same settings goes on where the first stopped. Several processes share the pictures:
torchrun --nproc-per-node N -m posgan_fast invert ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    add_generator(parser)
    parser.add_argument("--data", required=True, metavar="PATH", help="folder, zip archive or picture")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for codes and images")
    parser.add_argument(
        "--encoder", metavar="CKPT", help="a run of posgan-fast train padinv, or a file of PadInv or pSp"
    )
    parser.add_argument(
        "--average", choices=inverting.AVERAGES, default="file",
        help="where a published encoder's average latent comes from: its file, the generator, or none (default: file)",
    )  # fmt: skip
    parser.add_argument(
        "--encoder-set", nargs="+", default=[], metavar="NAME=VALUE",
        help="arguments that no tensor of a published encoder tells, such as pad_constant=false",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, metavar="N", help="side of the pictures without an encoder (default: the generator's)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="steps of optimisation (default: 0 with an encoder, 200 without)"
    )
    parser.add_argument(
        "--layers", type=int, nargs="*", metavar="K",
        help="padding maps to optimise: 0 the constant, 1 3 5 7 9 at 4 8 16 32 64 pixels, 2 4 6 ... around upsampled "
        "features; no number: latents alone (default: those of 0 1 3 5 7 that the generator has)",
    )  # fmt: skip
    parser.add_argument("--optimizer", choices=inversion.OPTIMIZERS, default="adam", help="(default: adam)")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="(default: 0.05 for adam, 1 for lbfgs)")
    parser.add_argument(
        "--regularisation", type=float, default=0.0, metavar="W",
        help="weight of the distance to the latents at the start (default: 0)",
    )  # fmt: skip
    parser.add_argument("--perceptual", metavar="FILE", help="LPIPS network whose distance joins the squared error")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at a time (default: 8)")
    parser.add_argument("--precision", choices=tuple(loop.PRECISIONS), default="float32", help="(default: float32)")
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def run(options: argparse.Namespace) -> int:
    device = ranks.choose_device(options.device)
    with ranks.joined(device):
        sampler, generator = open_generator(options)
        if not options.quiet and sampler.report is not None:
            print(sampler.report)
        encoder = perceptual = None
        if options.encoder is not None:
            arguments = dict(map(assignment, options.encoder_set))
            encoder = inverting.open_encoder(options.encoder, generator, options.average, **arguments)
            encoder = encoder.to(device).eval()
            if not options.quiet and hasattr(encoder, "report"):
                print(encoder.report)
        if options.perceptual is not None:
            perceptual = perception.load_lpips(options.perceptual, name="--perceptual").to(device)
        steps = options.steps if options.steps is not None else 200 if encoder is None else 0
        result = inverting.invert_pictures(
            sampler, options.data, options.out,
            encoder=encoder, size=options.size, batch=options.batch, steps=steps, layers=options.layers,
            autocast=loop.PRECISIONS[options.precision], optimizer=options.optimizer,
            learning_rate=options.learning_rate, regularisation=options.regularisation, perceptual=perceptual,
            quiet=options.quiet, say=_complain if options.quiet else tqdm.write,
        )  # fmt: skip
    if ranks.rank() == 0 and not options.quiet:
        words = [f"{len(result.errors)} inverted"]
        if result.errors:
            words[0] += f", mean MSE {statistics.mean(result.errors.values()):.4f}"
        if result.before:
            words.append(f"{result.before} done before")
        if result.failed:
            words.append(f"{len(result.failed)} left out")
        print(f"{'; '.join(words)}; in {options.out}")
    return 1 if result.failed and not result.errors and not result.before else 0


def _complain(text: str) -> None:
    """Print what was left out, also where nothing else is printed."""
    if not text.startswith("note: "):
        print(text, file=sys.stderr)


def add_generator(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a generator."""
    parser.add_argument("--generator", required=True, metavar="CKPT", help="a StyleGAN2 of any family")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments that no tensor tells")
    parser.add_argument("--channels", choices=("auto", "rgb", "bgr"), default="auto", help="order in the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def open_generator(options: argparse.Namespace) -> tuple[sampling.Sampler, Generator]:
    """Load the generator that the options name."""
    if not Path(options.generator).is_file():
        raise ValueError(f"--generator: expected a file, got {options.generator}")
    sampler = sampling.load(options.generator, **dict(map(assignment, options.set)))
    generator = sampler.generator
    if not isinstance(generator, Generator):
        raise ValueError(f"--generator: expected a StyleGAN2, got a {sampler.kind}")
    if options.channels != "auto":
        sampler.bgr = options.channels == "bgr"
    return sampler, generator.to(ranks.choose_device(options.device)).requires_grad_(False)
