"""python -m benchmarks.traffic: count the bytes and kernels of layers and networks on a GPU, without a GPU.

Counts what ours and NVlabs' code would read, write and launch, forward and backward, and predicts times from it by a
roofline. ``benchmarks/traffic_counter.py`` has the rules. Inference counts no graph for autograd. All times are
predictions; no GPU measured any of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from posgan_fast import __version__

from . import harness, options, report, subjects, traffic_rates, traffic_settings
from .traffic_calls import LAYERS, NETWORKS, Contender, Ours, Result, count_layer, count_network
from .traffic_counter import Traffic

DTYPES = tuple(name for name in subjects.DTYPES if name != "float64")
_MOST_OPS = 25
UNITS = """S: the bytes of a layer's result, or of a network's images, of the batch. "in S": the bytes that a phase
moves, over those of the results of its own samples."""
RATES = """Convolutions in float32 take the TF32 rate, torch's default, other products in float32 the float32 rate."""


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    paths = options.peer_paths(parser, args.peer, names=("nvlabs",), networks=True)
    settings = _checked(args, parser)
    contenders: list[Contender] = [Ours(settings)]
    if paths:
        from .traffic_peer import NVlabs

        contenders.append(NVlabs(paths["nvlabs"]))
    print(_heading(args))
    results = []
    for result in _results(args, contenders, parser):
        print(_text(result, args), flush=True)
        results.append(result)
    print(_rates())
    if args.json:
        harness.write_json(args.json, _json(args, paths, results))
        print(f"wrote {args.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m benchmarks.traffic",
        description=__doc__.splitlines()[0],
        epilog=f"{UNITS} {RATES}",
    )
    several: dict[str, Any] = dict(nargs="+", action=options.Distinct)
    parser.add_argument(
        "--layer", **several, choices=[*LAYERS, "all"], default=[], help="default: all, if there is no --network"
    )
    parser.add_argument("--network", **several, choices=list(NETWORKS), default=[])
    parser.add_argument("--dtype", **several, choices=DTYPES, help="default: all; float32 with --set num_fp16_res=...")
    number = options.at_least(1)
    parser.add_argument("--batch", type=number, default=4, metavar="N", help="samples (default: 4)")
    parser.add_argument("--channels", type=number, metavar="C", help="of a layer (default: 64)")
    parser.add_argument(
        "--size", type=options.at_least(2), metavar="PIXELS", help="of a layer's result, even (default: 128)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of our networks, whose defaults are"
        " float32 and full width",
    )  # fmt: skip
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH",
        help="nvlabs=CHECKOUT of stylegan2-ada-pytorch or stylegan3",
    )  # fmt: skip
    parser.add_argument("--ops", action="store_true", help="also list the operators that move most")
    parser.add_argument("--json", type=options.output_file, metavar="FILE")
    return parser


def _checked(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Complain of options that do not go together, fill in the defaults, and return the arguments of our networks."""
    if args.network and not args.layer:
        for name in ("channels", "size"):
            if getattr(args, name) is not None:
                parser.error(f"--{name}: expected --layer, since networks have their own, got --network alone")
    args.channels, args.size = args.channels or 64, args.size or 128
    if args.size % 2:
        parser.error(f"--size: expected an even number, got {args.size}")
    args.layer = list(LAYERS) if "all" in args.layer or not (args.layer or args.network) else args.layer
    settings = traffic_settings.read(args.set, args.network, parser)
    halves = [name for name in args.dtype or () if name != "float32"]
    if settings.get("num_fp16_res") and halves:
        parser.error(f"--dtype: expected float32 beside num_fp16_res, which mixes dtypes by itself, got {halves[0]}")
    args.dtype = args.dtype or (["float32"] if settings.get("num_fp16_res") else list(DTYPES))
    if any(NETWORKS[name][0] != "generator" for name in args.network):
        ours = settings.get("mbstd_group_size", options.GROUP) if settings.get("mbstd_num_channels", 1) else None
        for group in {ours, options.GROUP if args.peer else None}:
            options.check_groups(parser, [args.batch], group)
    return settings


def _results(
    args: argparse.Namespace, contenders: list[Contender], parser: argparse.ArgumentParser
) -> Iterator[Result]:
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
                    try:
                        yield count_network(by, name, dtype, args.batch)
                    except ValueError as error:  # a setting that shows only with the sizes of the call
                        if not args.set or by.name != Ours.name:
                            raise
                        parser.error(f"--set: {error}")


def _heading(args: argparse.Namespace) -> str:
    layer = f"layers of {args.channels} channels at {args.size} pixels, " if args.layer else ""
    return (
        f"Counted on the device meta, for the cuda backend: {layer}N={args.batch}. Times are PREDICTIONS (us).\n{UNITS}"
    )


def _text(result: Result, args: argparse.Namespace) -> str:
    """The table of a case, a line for each phase."""
    gpus = traffic_rates.GPUS
    by = result.contender
    if args.set and result.case in NETWORKS:
        by += f" with {' '.join(args.set)}" if by == Ours.name else " with its own settings"
    lines = [f"\n{result.case}, {result.dtype}, {by}; S = {result.unit / 1e6:.2f} MB"]
    table = [
        ["", "MB", "in S", "GFLOP", "launches", *(head for gpu in gpus for head in (f"{gpu.arch} graph", "eager"))]
    ]
    for phase, traffic in result.phases.items():
        times = [f"{seconds * 1e6:.1f}" for pair in map(_times(traffic), gpus) for seconds in pair]
        moved = [f"{traffic.moved / 1e6:.2f}", f"{result.in_units(phase):.2f}", f"{traffic.flops / 1e9:.2f}"]
        table.append([phase, *moved, str(traffic.launches), *times])
    lines += report.aligned(table)
    if args.ops:
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
    lines.append(f"  {RATES}")
    return "\n".join(lines)


def _json(args: argparse.Namespace, paths: dict[str, Path], results: list[Result]) -> dict[str, Any]:
    settings = {k: v for k, v in vars(args).items() if k not in ("peer", "json")}  # those are paths of a machine
    checkout = paths.get("nvlabs")
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
