"""python -m benchmarks.traffic: count the bytes and kernels of layers and networks on a GPU, without a GPU.

Counts what ours and NVlabs' code would read, write and launch, forward and backward, and predicts times from it by a
roofline. ``benchmarks/traffic_counter.py`` has the rules. "S" is the bytes of a layer's result or of a network's
images; inference counts no graph for autograd. All times are predictions; no GPU measured any of them.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from posgan_fast import __version__
from posgan_fast.models import Discriminator, Generator

from . import harness, peers, subjects, traffic_rates
from .traffic_calls import LAYERS, NETWORKS, Contender, Ours, Result, count_layer, count_network
from .traffic_counter import Traffic

DTYPES = tuple(name for name in subjects.DTYPES if name != "float64")
_MOST_OPS = 25


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    contenders = _contenders(args, parser)
    print(_heading(args))
    results = []
    for result in _results(args, contenders):
        print(_text(result, args.ops), flush=True)
        results.append(result)
    print(_rates())
    if args.json:
        harness.write_json(args.json, _json(args, results))
        print(f"wrote {args.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layer", nargs="+", choices=[*LAYERS, "all"], default=[], help="default: all, if there is no --network"
    )
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=[])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="samples (default: 4)")
    parser.add_argument("--channels", type=int, default=64, metavar="C", help="of a layer (default: 64)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="of a layer's result (default: 128)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of our networks; with those that mix"
        " dtypes by themselves take --dtype float32, which adds no autocast",
    )  # fmt: skip
    parser.add_argument("--peer", metavar="NAME=PATH", help="nvlabs=CHECKOUT of stylegan2-ada-pytorch or stylegan3")
    parser.add_argument("--ops", action="store_true", help="also list the operators that move most")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _contenders(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Contender]:
    """Complain of options that are wrong; return ours and the peer."""
    for name, least in (("batch", 1), ("channels", 1), ("size", 2)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(args, name)}")
    if args.size % 2:
        parser.error(f"--size: expected an even number, got {args.size}")
    args.layer = list(LAYERS) if "all" in args.layer or not (args.layer or args.network) else args.layer
    found: list[Contender] = [Ours(_settings(args, parser))]
    if args.peer:
        try:
            paths = peers.parse([args.peer])
        except ValueError as error:
            parser.error(str(error))
        if "nvlabs" not in paths:
            parser.error(f"--peer: expected nvlabs=PATH, got {args.peer!r}")
        from .traffic_peer import NVlabs

        found.append(NVlabs(paths["nvlabs"]))
    return found


def _settings(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read NAME=VALUE options, and refuse a name that a network of the call does not take."""
    kinds = {NETWORKS[name][0] for name in args.network}
    takers: list[Any] = [Generator] if kinds & {"generator", "training"} else []
    takers += [Discriminator] if kinds & {"discriminator", "training"} else []
    found = {}
    for entry in args.set:
        name, _, text = entry.partition("=")
        if not takers or any(name not in inspect.signature(taker).parameters for taker in takers):
            parser.error(f"--set: expected an argument of all networks of --network, got {entry!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            found[name] = text  # a word
    return found


def _results(args: argparse.Namespace, contenders: list[Contender]) -> Iterator[Result]:
    """Count every case that the options ask for, and say which are left out."""
    for name in (*args.layer, *args.network):
        is_layer = name in LAYERS
        for dtype in args.dtype:
            for by in contenders:
                if reason := by.refuses("layer" if is_layer else NETWORKS[name][0], dtype):
                    print(f"\n{name}, {dtype}, {by.name}: left out, {reason}")
                elif is_layer:
                    yield count_layer(by, name, dtype, args.batch, args.channels, args.size)
                else:
                    yield count_network(by, name, dtype, args.batch)


def _heading(args: argparse.Namespace) -> str:
    layer = f"layers of {args.channels} channels at {args.size} pixels, " if args.layer else ""
    return f"Counted on the device meta, for the cuda backend: {layer}N={args.batch}. Times are PREDICTIONS (us)."


def _text(result: Result, ops: bool) -> str:
    """The table of a case, a line for each phase."""
    gpus = traffic_rates.GPUS
    lines = [f"\n{result.case}, {result.dtype}, {result.contender}; S = {result.unit / 1e6:.2f} MB"]
    heads = "".join(f"{f'{gpu.arch} graph':>14}{'eager':>10}" for gpu in gpus)
    lines.append(f"  {'':<16}{'MB':>10}{'in S':>9}{'GFLOP':>10}{'launches':>10}{heads}")
    for phase, traffic in result.phases.items():
        times = "".join(f"{graph * 1e6:>14.1f}{eager * 1e6:>10.1f}" for graph, eager in map(_times(traffic), gpus))
        counts = f"{traffic.moved / 1e6:>10.2f}{result.in_units(phase):>9.2f}{traffic.flops / 1e9:>10.2f}"
        lines.append(f"  {phase:<16}{counts}{traffic.launches:>10}{times}")
    if ops:
        for phase, traffic in result.phases.items():
            lines += _ops(phase, traffic)
    return "\n".join(lines)


def _ops(phase: str, traffic: Traffic) -> list[str]:
    """The lines of the operators that move most bytes in a phase."""
    rows = traffic.by_name()
    lines = [f"  {phase}: operator, launches, MB read, MB written"]
    lines += [f"    {name:<28}{n:>6}{read / 1e6:>12.3f}{written / 1e6:>12.3f}" for name, n, read, written in rows]
    more = len(rows) - _MOST_OPS
    return lines if more <= 0 else [*lines[: _MOST_OPS + 1], f"    and {more} more"]


def _times(traffic: Traffic) -> Any:
    return lambda gpu: (traffic_rates.graph_seconds(traffic, gpu), traffic_rates.eager_seconds(traffic, gpu))


def _rates() -> str:
    """The table of the rates that the predictions take."""
    lines = ["\nPredicted, not measured: a kernel takes the longer of its bytes and its operations at these rates."]
    lines.append(f"  {'':<24}{'copy TB/s':>10}{'half':>8}{'TF32':>8}{'float32':>9}   TFLOP/s, dense")
    for gpu in traffic_rates.GPUS:
        rates = f"{gpu.copy / 1e12:>10.1f}{gpu.half / 1e12:>8.0f}{gpu.tf32 / 1e12:>8.0f}{gpu.float32 / 1e12:>9.1f}"
        lines.append(f"  {f'{gpu.arch} {gpu.name}':<24}{rates}   {gpu.source}")
    lines.append(
        f"  graph: launches cost nothing; eager: at least {traffic_rates.LAUNCH * 1e6:.0f} us of the host each."
    )
    return "\n".join(lines)


def _json(args: argparse.Namespace, results: list[Result]) -> dict[str, Any]:
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    checkout = peers.parse([args.peer])["nvlabs"] if args.peer else None
    return {
        "schema": 1,
        "provenance": {**harness.provenance(torch.device("meta")), "posgan_fast": __version__},
        "settings": settings,
        "peer": harness.commit(checkout) if checkout else None,
        "rates": {"note": "predictions, not measured", "launch": traffic_rates.LAUNCH,
                  "gpus": [gpu._asdict() for gpu in traffic_rates.GPUS]},
        "cases": [_case(result) for result in results],
    }  # fmt: skip


def _case(result: Result) -> dict[str, Any]:
    phases = {}
    for phase, traffic in result.phases.items():
        predicted = {
            gpu.arch: dict(zip(("graph", "eager"), _times(traffic)(gpu), strict=True)) for gpu in traffic_rates.GPUS
        }
        phases[phase] = {
            "read": traffic.read, "written": traffic.written, "in_units": result.in_units(phase),
            "launches": traffic.launches, "flops": traffic.flops, "predicted_seconds": predicted,
            "ops": [dict(zip(("name", "launches", "read", "written"), row, strict=True)) for row in traffic.by_name()],
        }  # fmt: skip
    return {
        "case": result.case, "contender": result.contender, "dtype": result.dtype, "batch": result.batch,
        "unit_bytes": result.unit, "phases": phases,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
