"""python -m benchmarks.inversion: measure PadInv's encoder, inversion, optimisation and training.

With a checkout of PadInv, ours is compared with its own code and the same weights. Inversion is one pass of the encoder
and one of the generator, of 256 or 1024 pixels in full width. "whole maps" is ours with maps in place of rings. Times
are medians of interleaved rounds, ratios medians of the ratios within each round. Memory is what one pass takes at its
peak beyond the weights, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import stylegan2_peers as peers
import torch

from posgan_fast import nn
from posgan_fast.models import Generator, PadInvEncoder, load_generator

from . import harness, options
from .networks import resident
from .timed import OURS, Row, line, measured, write

WHAT = ("encoder", "inversion", "optimisation", "training", "memory")
MAPS, THEIRS = "whole maps", "PadInv"
LATENTS = 18  # of the released encoders
Call = Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.allocator and args.allocator != harness.allocator():
        return options.run_again("benchmarks.inversion", sys.argv[1:] if argv is None else argv, args.allocator)
    if args.peak:
        print(_peak(args))
        return 0
    rows = []
    for what in args.what:
        for row in globals()[f"_{what}"](args):
            print(line(row), flush=True)
            rows.append(row)
    write(args, rows, "inversion")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.inversion", description=__doc__.splitlines()[0]
    )
    padinv, rounds = options.checkout("PadInv", "models/padinv_encoder.py"), options.at_least(2, ", for quartiles")
    several: dict[str, Any] = dict(nargs="+", action=options.Distinct)
    parser.add_argument("--what", **several, choices=WHAT, default=list(WHAT))
    parser.add_argument("--peer", type=padinv, metavar="PATH", help="checkout of PadInv")
    parser.add_argument("--rounds", type=rounds, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument(
        "--size", **several, type=options.image_size, default=[256, 1024], help="generators (default: 256 1024)"
    )
    parser.add_argument("--batch", type=options.at_least(1), default=1, help="pictures at a time (default: 1)")
    parser.add_argument("--quick", action="store_true", help="narrow networks, to see that all runs")
    parser.add_argument("--peak", choices=(OURS, MAPS, THEIRS), help=argparse.SUPPRESS)  # a child that measures
    options.add_allocator(parser)
    options.add_output(parser)
    return parser


class Networks:
    """Encoder and generator, ours and, with a checkout, PadInv's with the same weights."""

    def __init__(self, args: argparse.Namespace, size: int) -> None:
        torch.manual_seed(0)
        narrow = args.quick
        narrow_encoder: dict[str, Any] = dict(width=16, w_dim=32)
        self.side, self.batch = 256, args.batch
        self.encoder = PadInvEncoder(num_ws=LATENTS, **(narrow_encoder if narrow else {}))
        w_dim, most = (32, 128) if narrow else (512, 512)
        self.generator = Generator(size, z_dim=w_dim, w_dim=w_dim, channel_max=most, mapping_layers=2)
        for network in (self.encoder, self.generator):
            network.eval().requires_grad_(False)
        torch.nn.init.normal_(self.encoder.latent_average[0])
        self.encoder.latent_average.copy_(self.encoder.latent_average[:1].clone())
        self.images = torch.rand(self.batch, 3, self.side, self.side) * 2 - 1
        self.their_encoder: Any = None
        self.their_generator: Any = None
        if args.peer:
            self._load_peer(args.peer, narrow)

    def _load_peer(self, path: Path, narrow: bool) -> None:
        """Build PadInv's networks, and load our encoder's weights into theirs, and their generator's into ours."""
        w_dim = self.generator.w_dim
        with peers.checkout(path, peers.package("models", path)):
            module = importlib.import_module("models.padinv_encoder")
            make: Any = module.PadInvEncoder
            if narrow:
                make = type(
                    "Narrow", (make,), {"stage_in_channels": [16, 16, 32, 64], "stage_out_channels": [16, 32, 64, 128]}
                )
            widths = dict(inplanes=16, fpn_channels=128) if narrow else {}
            self.their_encoder = make(self.side, [w_dim] * LATENTS, list(self.encoder.levels), **widths).eval()
            network = importlib.import_module("models.stylegan2_generator_padinv").StyleGAN2GeneratorPadInv
            widths = dict(fmaps_max=128) if narrow else {}
            theirs = network(
                resolution=self.generator.size,
                z_dim=w_dim,
                w_dim=w_dim,
                mapping_fmaps=w_dim,
                mapping_layers=2,
                **widths,
            )
        state = {name: value for name, value in self.encoder.state_dict().items() if name != "latent_average"}
        self.their_encoder.load_state_dict(state)
        self.their_encoder.avg_latent = self.encoder.latent_average[0].clone()
        self.their_generator = theirs.eval()
        self.generator = load_generator(theirs.state_dict(), "hammer").requires_grad_(False)
        self.their_encoder.requires_grad_(False)
        self.their_generator.requires_grad_(False)

    def ours(self, rings: bool = True) -> torch.Tensor:
        """Invert the pictures: [N, 3, size, size]."""
        ws, pad_maps = self.encoder(self.images, num_ws=self.generator.num_ws, rings=rings)
        return self.generator.synthesis(ws, pad_maps=pad_maps, noise_mode="const")

    def theirs(self) -> torch.Tensor:
        codes = self.their_encoder(self.images)
        return self.their_generator.synthesis(codes["style_latents"], codes["padding_maps"], impl="ref")["image"]

    def calls(self, run: Call, other: Call) -> dict[str, Call]:
        """Name the contenders of a task."""
        return {OURS: run} | ({THEIRS: other} if self.their_encoder is not None else {})


def _encoder(args: argparse.Namespace) -> Iterator[Row]:
    networks = Networks(args, min(args.size))
    nn.prepack(networks.encoder)
    case = f"{networks.side} pixels, N={args.batch}"
    calls = networks.calls(
        lambda: networks.encoder(networks.images)[0],
        lambda: networks.their_encoder(networks.images)["style_latents"],
    )
    with torch.no_grad():
        yield measured("encoder", case, calls, args.rounds)


def _inversion(args: argparse.Namespace) -> Iterator[Row]:
    for size in args.size:
        networks = Networks(args, size)
        nn.prepack(networks.generator)
        nn.prepack(networks.encoder)
        calls = networks.calls(networks.ours, networks.theirs) | {MAPS: lambda n=networks: n.ours(rings=False)}
        with torch.no_grad():
            yield measured("inversion", f"generator {size}, N={args.batch}", calls, args.rounds)


def _optimisation(args: argparse.Namespace) -> Iterator[Row]:
    """One gradient of the pixel error by the latents and five maps, and a step of Adam."""
    size = min(args.size)
    networks = Networks(args, size)
    G, n = networks.generator, args.batch
    target = torch.zeros(n, 3, size, size)
    ws = networks.encoder.latent_average[: G.num_ws].expand(n, -1, -1).clone()

    def step(generate: Callable[[torch.Tensor, list], torch.Tensor], maps: list[torch.Tensor | None]) -> Call:
        leaves = [ws.clone(), *(p for p in maps if p is not None)]
        for leaf in leaves:
            leaf.requires_grad_()
        optimizer = torch.optim.Adam(leaves, 1e-3)

        def run() -> float:
            optimizer.zero_grad(set_to_none=True)
            (generate(leaves[0], maps) - target).square().mean().backward()
            optimizer.step()
            return 0.0

        return run

    def draw(rings: bool) -> list[torch.Tensor | None]:
        with torch.no_grad():
            return [None if p is None else p.clone() for p in networks.encoder(networks.images, rings=rings)[1]]

    def ours(w: torch.Tensor, maps: list) -> torch.Tensor:
        return G.synthesis(w, pad_maps=maps, noise_mode="const")

    def theirs(w: torch.Tensor, maps: list) -> torch.Tensor:  # which writes into the maps, so that leaves need copies
        copies = [None if p is None else p.clone() for p in maps]
        return networks.their_generator.synthesis(w, copies, impl="ref")["image"]

    calls = networks.calls(step(ours, draw(True)), step(theirs, draw(False)))
    calls[MAPS] = step(ours, draw(False))
    yield measured("optimisation", f"one step, generator {size}, N={n}", calls, args.rounds)


def _training(args: argparse.Namespace) -> Iterator[Row]:
    """One iteration of the encoder with the pixel error and the distance to the average latent; batch of 2."""
    args = argparse.Namespace(**vars(args) | dict(batch=2))
    size = min(args.size)
    networks = Networks(args, size)
    G = networks.generator
    target = torch.nn.functional.interpolate(networks.images, (size, size), mode="bilinear", antialias=True)

    def step(encoder: Any, invert: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Call:
        encoder.train().requires_grad_(True)
        optimizer = torch.optim.Adam(encoder.parameters(), 1e-4)

        def run() -> float:
            optimizer.zero_grad(set_to_none=True)
            ws, made = invert()
            loss = (made - target).square().mean() + 0.003 * ws.norm(dim=(1, 2)).mean()
            loss.backward()
            optimizer.step()
            return 0.0

        return run

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        ws, maps = networks.encoder(networks.images)
        return ws, G.synthesis(ws[:, : G.num_ws], pad_maps=maps, noise_mode="const")

    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        codes = networks.their_encoder(networks.images)
        ws = codes["style_latents"]
        return ws, networks.their_generator.synthesis(ws, codes["padding_maps"], impl="ref")["image"]

    other = step(networks.their_encoder, theirs) if networks.their_encoder is not None else _nothing
    yield measured(
        "training", f"generator {size}, N=2", networks.calls(step(networks.encoder, ours), other), args.rounds
    )


def _nothing() -> None:
    """Stands for a contender that is absent."""


def _memory(args: argparse.Namespace) -> Iterator[Row]:
    """Peak of an inversion beyond the weights, in GiB."""
    for size in args.size:
        row = Row("memory", f"inversion, generator {size}, N={args.batch}", unit="GiB")
        for name in (OURS, MAPS, *([THEIRS] if args.peer else [])):
            command = [sys.executable, "-m", "benchmarks.inversion", "--peak", name, "--size", str(size)]
            command += ["--batch", str(args.batch), "--out", str(args.out), *["--quick"] * args.quick]
            command += ["--peer", str(args.peer)] if args.peer else []
            env = harness.environment_for("as started")  # a tuned allocator keeps memory that is not needed
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            row.medians[name] = float(done.stdout.split()[-1]) / 2**30
            row.ratios[name] = row.medians[name] / row.medians[OURS]
        row.ratios.pop(OURS)
        yield row


def _peak(args: argparse.Namespace) -> int:
    networks = Networks(args, args.size[0])
    run = {OURS: networks.ours, MAPS: lambda: networks.ours(rings=False), THEIRS: networks.theirs}[args.peak]
    with torch.no_grad():
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = resident("VmRSS")
        run()
    return resident("VmHWM") - before


if __name__ == "__main__":
    raise SystemExit(main())
