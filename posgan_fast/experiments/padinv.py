"""Padding space: what latents and padding maps of a StyleGAN2 tell, on faces that no network has seen.

"High-fidelity GAN Inversion with Padding Space" (ECCV 2022), Tables 2 and 3 and Figures 5 to 8 and 10. A generator of
32 pixels and encoders with more and more padding maps train on 80 of the 100 faces of scikit-image; the other 20 are
inverted, by optimisation and by the encoders. Interpolation, blending and editing take the codes of the optimisation,
since encoders so briefly trained find worse ones. Pictures and networks stay in the folder ``padinv`` beside the
figures.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..models import Generator
from ..recipes import MSPIE, MSPIESettings, PadInv, PadInvSettings, sampling, train
from ..recipes.codes import Codes, average_codes, blend, edit_pair, interpolate, joined, render
from ..recipes.images import grid
from ..recipes.inversion import encode, errors, optimise
from ..recipes.padinv import load_trained_encoder
from . import pictures
from .report import write

SIDE, HELD_OUT = 32, 20
SETS: dict[str, tuple[int, ...]] = {  # rows of Table 2
    "W+": (), "+ p0": (0,), "+ p0,1": (0, 1), "+ p0,1,3": (0, 1, 3), "+ p0,1,3,5": (0, 1, 3, 5),
    "+ p0,1,3,5,7": (0, 1, 3, 5, 7),
}  # fmt: skip
PAPER = dict(zip(SETS, (0.0344, 0.0343, 0.0341, 0.0252, 0.0190, 0.0186), strict=True))  # Table 2, faces
FULL = "+ p0,1,3,5,7"
EDITS = {  # what is drawn on a face: rows, columns, value
    "bangs (spatial)": (slice(3, 9), slice(6, 26), -0.9),
    "lips (style)": (slice(23, 26), slice(11, 21), 0.6),
}
STEPS = 5  # images of an interpolation
ROUNDS = 5  # of timing
_AT_THE_END: dict[str, Any] = {"save_every": 10**9, "sample_every": 10**9}
_SETTINGS = ("iterations", "encoder_iterations", "steps", "channel_max", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default, text in (
        ("iterations", 1500, "of the generator's training"),
        ("encoder-iterations", 250, "of each encoder's training"),
        ("steps", 200, "of the optimisation"),
        ("channel-max", 64, "most channels of the generator, a multiple of 8, at least 16"),
        ("seed", 0, "seed of all weights"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")


def run(options: argparse.Namespace) -> int:
    if options.channel_max < 16 or options.channel_max % 8:
        raise ValueError(f"--channel-max: expected a multiple of 8, at least 16, got {options.channel_max}")
    for name in ("iterations", "encoder_iterations", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    settings = {name: value for name, value in vars(options).items() if name in _SETTINGS}
    held_out = pictures.faces(SIDE)[: pictures.FACES][-HELD_OUT:]
    work = options.out / "padinv"
    if work.exists():
        raise ValueError(f"--out: {work} exists, with the networks of a run; choose another folder")
    pictures.save_faces(work / "faces", SIDE, slice(None, -HELD_OUT))
    pictures.save_faces(work / "held-out", SIDE, slice(-HELD_OUT, None))
    generator = _train_generator(work, options)
    searched, ratio, longer = _optimised(generator, held_out, options.steps)
    encoded: dict[str, torch.Tensor] = {}
    for name, layers in SETS.items():
        print(f"encoder, {name}")
        encoder = _train_encoder(work, layers, generator, options)
        encoded[name] = errors(_images(generator, encode(encoder, generator, held_out)), held_out)
    numbers = {
        "settings": settings | {"side": SIDE, "faces to train on": pictures.FACES - HELD_OUT, "held out": HELD_OUT},
        "MSE by optimisation": {name: _summary(mse) for name, mse in searched.items()},
        "time of a step with all maps over one of W+": ratio,
        "MSE by optimisation of W+ in the time that all maps take": _summary(longer),
        "MSE by an encoder": {name: _summary(mse) for name, mse in encoded.items()},
        "MSE in the paper": PAPER,
    }
    write(
        options.out, "padinv", _ablation_figure(searched, encoded), numbers,
        _ablation_sentence(searched, longer, encoded),
    )  # fmt: skip
    rows, factors = _edits(generator, held_out, options.steps)
    write(
        options.out, "padinv-editing", _editing_figure(rows), {"settings": settings, "Table 3": factors},
        _editing_sentence(factors),
    )  # fmt: skip
    return 0


def _train_generator(work: Path, options: argparse.Namespace) -> Generator:
    print("generator")
    settings = MSPIESettings(
        data=str(work / "faces"),
        out=str(work / "generator"),
        config="a",
        size=SIDE,
        batch=8,
        average=0.99,
        iterations=options.iterations,
        channel_max=options.channel_max,
        seed=options.seed,
        **_AT_THE_END,
    )
    train(MSPIE, settings)
    return sampling.load(work / "generator" / "checkpoint.pt").generator.requires_grad_(False)  # type: ignore[return-value]


def _train_encoder(work: Path, layers: tuple[int, ...], generator: Generator, options: argparse.Namespace) -> Any:
    kinds: dict[int, dict[str, Any]] = {0: dict(padding="none"), 1: dict(constant_only=True)}
    settings = PadInvSettings(
        data=str(work / "faces"),
        out=str(work / "-".join(["encoder", *map(str, layers)])),
        generator=str(work / "generator" / "checkpoint.pt"),
        size=SIDE,
        batch=16,
        learning_rate=1e-3,
        iterations=options.encoder_iterations,
        seed=options.seed,
        **_AT_THE_END,
        **kinds.get(len(layers), dict(pad_layers=len(layers) - 1)),
    )
    return load_trained_encoder(train(PadInv, settings), generator)


def _optimised(
    generator: Generator, faces: torch.Tensor, steps: int
) -> tuple[dict[str, torch.Tensor], float, torch.Tensor]:
    """Invert with each set of maps; return errors, the time of a step with all maps over one of W+, and the errors of
    W+ with as many more steps."""
    ratio = statistics.median(
        _seconds(generator, faces, SETS[FULL]) / _seconds(generator, faces, SETS["W+"]) for _ in range(ROUNDS)
    )
    found = {name: optimise(generator, faces, layers=layers, steps=steps)[1][-1] for name, layers in SETS.items()}
    more = math.ceil(steps * max(1.0, ratio))
    return found, ratio, optimise(generator, faces, layers=(), steps=more)[1][-1]


def _seconds(generator: Generator, faces: torch.Tensor, layers: tuple[int, ...]) -> float:
    """Time ten steps, after one that nobody counts."""
    optimise(generator, faces, layers=layers, steps=1)
    start = time.perf_counter()
    optimise(generator, faces, layers=layers, steps=10)
    return time.perf_counter() - start


def _edits(generator: Generator, faces: torch.Tensor, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return rows of images for Figures 5 to 8 and 10, and the numbers of Table 3, of codes found by optimisation."""
    codes = optimise(generator, faces, layers=SETS[FULL], steps=steps)[0]
    each = list(codes)
    a, b = each[0], each[1]
    times = torch.linspace(0, 1, STEPS).tolist()
    average = average_codes(generator)

    def between(one: Codes, other: Codes, space: str) -> torch.Tensor:
        return torch.cat([_images(generator, interpolate(generator, one, other, t, space)) for t in times])

    rows = {
        "average latent, padding\nto a face (Fig. 5)": between(average, a, "padding"),
        "the same, another face": between(average, b, "padding"),
        "A to B in padding (Fig. 6)": between(a, b, "padding"),
        "A to B in latents": between(a, b, "latents"),
        "pictures": faces[:STEPS],
        "inversions": _images(generator, joined(each[:STEPS], generator)),
        "latents of the first, padding\nof each (Fig. 8)": _images(
            generator, joined([blend(a, one) for one in each[:STEPS]], generator)
        ),
    }
    plain, factors = _images(generator, codes), {}
    for name, (at_rows, at_columns, value) in EDITS.items():
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[at_rows, at_columns] = True
        drawn = torch.where(mask, value, faces[:1])
        after = optimise(generator, drawn, start=a, layers=SETS[FULL], steps=steps)[0]
        edited = {
            space: _images(generator, edit_pair(generator, codes, a, after, space)) for space in ("padding", "latents")
        }
        others = {space: images[1:] for space, images in edited.items()}  # the first is the example
        changes = {space: float(errors(images, plain[1:], mask).mean()) for space, images in others.items()}
        inside = {space: float(errors(images, plain[1:], ~mask).mean()) for space, images in others.items()}
        factors[name] = {
            "MSE_p": changes["padding"], "MSE_s": changes["latents"],
            "MSE_p / MSE_s": changes["padding"] / changes["latents"], "change inside the drawn region": inside,
        }  # fmt: skip
        rows[f"{name}: the pair,\nits inversions"] = torch.cat([faces[:1], drawn, plain[:1], _images(generator, after)])
        for space, images in edited.items():
            rows[f"{name} in {space}\n(Fig. 10)"] = images[1 : STEPS + 1]
    return rows, factors


def _images(generator: Generator, codes: Codes) -> torch.Tensor:
    with torch.no_grad():
        return render(generator, codes)


def _summary(mse: torch.Tensor) -> dict[str, float]:
    return {"mean": float(mse.mean()), "standard error": float(mse.std() / math.sqrt(len(mse)))}


def _ablation_figure(searched: dict[str, torch.Tensor], encoded: dict[str, torch.Tensor]) -> Figure:
    figure = Figure(figsize=(9, 3.5))
    axes = figure.subplots()
    places = range(len(SETS))
    for k, (label, found) in enumerate({"optimisation": searched, "encoder": encoded}.items()):
        summaries = [_summary(mse / found["W+"].mean()) for mse in found.values()]
        means, bars = ([one[key] for one in summaries] for key in ("mean", "standard error"))
        axes.bar([p + 0.27 * (k - 1) for p in places], means, 0.27, yerr=bars, capsize=3, label=label)
    axes.bar([p + 0.27 for p in places], [value / PAPER["W+"] for value in PAPER.values()], 0.27, label="paper")
    axes.set_xticks(places, list(SETS))
    axes.set_ylabel("MSE / MSE of W+")
    axes.set_title(f"Inversion of {HELD_OUT} faces that no network has seen; bars: standard error", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def _editing_figure(rows: dict[str, torch.Tensor]) -> Figure:
    figure = Figure(figsize=(7, 0.62 * len(rows) * 1.5))
    blank = torch.ones(1, 3, SIDE, SIDE)
    sheet = torch.cat([torch.cat([images, *[blank] * (STEPS - len(images))]) for images in rows.values()])
    axes = figure.subplots()
    axes.imshow(np.asarray(grid(sheet, STEPS)))
    axes.set_xticks([])
    axes.set_yticks([(SIDE + 2) * k + SIDE // 2 for k in range(len(rows))], list(rows), fontsize=7)
    return figure


def _ablation_sentence(
    searched: dict[str, torch.Tensor], longer: torch.Tensor, encoded: dict[str, torch.Tensor]
) -> str:
    parts = []
    for label, found in (("optimisation", searched), ("an encoder", encoded)):
        values = ", ".join(f"{name} {float(mse.mean()):.4f}" for name, mse in found.items())
        parts.append(f"MSE on held-out faces by {label}: {values}; all maps {_change(found['W+'], found[FULL])}")
    parts.append(
        f"W+ alone, in the time that all maps take, reaches {float(longer.mean()):.4f}; all maps then "
        f"{_change(longer, searched[FULL])}"
    )
    ratio = PAPER[FULL] / PAPER["W+"]
    return ". ".join(parts) + f". In the paper's Table 2 an encoder with all maps has {ratio:.2f} of pSp's error."


def _change(before: torch.Tensor, after: torch.Tensor) -> str:
    """Describe the mean difference over the faces by its standard error."""
    difference = (after - before).tolist()
    mean, error = statistics.mean(difference), statistics.stdev(difference) / math.sqrt(len(difference))
    verb = "lower it" if mean < -2 * error else "raise it" if mean > 2 * error else "do not change it significantly"
    return f"{verb} ({mean:+.4f}, standard error {error:.4f})"


def _editing_sentence(factors: dict[str, Any]) -> str:
    values = "; ".join(
        f"{name}: MSE_p {one['MSE_p']:.2e}, MSE_s {one['MSE_s']:.2e}, ratio {one['MSE_p / MSE_s']:.2f}"
        for name, one in factors.items()
    )
    spatial, style = (one["MSE_p / MSE_s"] for one in factors.values())
    agree = "as" if spatial > 1 > style else "unlike"
    places = ["above" if ratio > 1 else "below" for ratio in (spatial, style)]
    return (
        f"Change of {HELD_OUT - 1} faces outside the drawn region by an edit in padding (p) and in latents (s), with "
        f"codes found by optimisation: "
        f"{values}. "
        f"The ratio is {places[0]} 1 for the spatial and {places[1]} 1 for the style edit, "
        f"{agree} in the paper's Table 3 (5.8 to 12.9, and 0.06 to 0.07, with an encoder)."
    )
