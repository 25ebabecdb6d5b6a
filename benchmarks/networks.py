"""python -m benchmarks.networks: measure StyleGAN2 layers, generators, discriminators and training steps.

Ours is compared with the reference backend and with NVlabs' own networks of the same weights; a generator also with its
floor, the time of its convolutions alone. Prints the medians of interleaved rounds and every case where ours is slower;
writes them as JSON with their provenance, and as a plot.

On the CPU calls are eager and in float32 unless their name says otherwise. On a GPU :mod:`benchmarks.networks_gpu`
measures the rows of :mod:`benchmarks.networks_plan`: in half precision too, eagerly and as replayed graphs.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import posgan_fast
from posgan_fast import _native
from posgan_fast import functional as PF

from . import exported, harness, network_calls, network_peers, networks_plan, options
from .network_calls import in_dtype, on_reference
from .network_report import (
    COMPILED,
    FLOOR,
    NVLABS,
    OPENVINO,
    OURS,
    PREPACKED,
    REFERENCE,
    ZEROS,
    Row,
    line,
    plot,
    slower,
)

DTYPES = tuple(name for name in network_calls.PRECISIONS if name != "tf32")
CPU_DTYPES = ("float32", "bfloat16")
WHAT = ("layer", "generator", "padding", "discriminator", "training", "memory")
# The rows that do not heed an option.
FIXED = {"size": ("layer", "training"), "batch": ("padding", "training", "memory")}
Calls = dict[str, Callable[[], Any]]


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    on_gpu = args.dry_run or torch.cuda.is_available()
    paths = _checked(args, parser, on_gpu)
    if args.peak:
        print(_peak(args.peak, args.size[0], args.batch[0], args.peer))
        return 0
    if args.allocator and args.allocator != harness.allocator():
        return options.run_again("benchmarks.networks", sys.argv[1:] if argv is None else argv, args.allocator)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.dry_run else "cpu")
    library = _native.load(device.type)
    if not library.loaded:  # ours would be the reference
        raise SystemExit(f"python -m benchmarks.networks: {library.reason}; {library.remedy}")
    if on_gpu:
        from . import networks_gpu

        return networks_gpu.main(args, paths)
    nvlabs, note = network_peers.nvlabs_module(args.peer, device)
    rows: list[Row] = []
    for row in _rows(args, device, nvlabs):
        print(line(row), flush=True)
        rows.append(row)
    _write(args, device, rows, note)
    return 0


def _checked(args: argparse.Namespace, parser: argparse.ArgumentParser, on_gpu: bool) -> dict[str, Path]:
    """Complain of options that do not go together, fill in the CPU's defaults, and return the peers' checkouts."""
    paths = options.peer_paths(parser, args.peer, networks=True, alone=NVLABS)
    args.peer = paths.get(NVLABS)
    for option in ("openvino", "compile"):
        if getattr(args, option) and (args.peer is None or on_gpu):
            parser.error(f"--{option}: expected --peer, whose generator it runs, and a machine without a GPU")
    if args.seconds is not None and not on_gpu:
        parser.error("--seconds: expected a GPU or --dry-run")
    for option in ("what", "dtype"):
        known = {"what": networks_plan.WHAT if on_gpu else WHAT, "dtype": DTYPES if on_gpu else CPU_DTYPES}[option]
        wrong = [value for value in getattr(args, option) or () if value not in known]
        if wrong:
            parser.error(
                f"--{option}: expected {', '.join(known)} {'on a GPU' if on_gpu else 'on the CPU'}, got {wrong[0]}"
            )
    for option, fixed in (networks_plan.FIXED if on_gpu else FIXED).items():
        if getattr(args, option) and args.what and set(args.what) <= set(fixed):
            parser.error(
                f"--{option}: expected --what beyond {', '.join(fixed)}, which do not heed it, got {args.what[0]}"
            )
    if "discriminator" in (args.what or WHAT):
        options.check_groups(parser, args.batch or ())
    if not on_gpu:
        args.what, args.dtype = args.what or list(WHAT), args.dtype or list(CPU_DTYPES)
        args.size, args.batch = args.size or [256, 1024], args.batch or [1]
    return paths


def _write(args: argparse.Namespace, device: torch.device, rows: list[Row], note: str) -> None:
    """Print the cases where ours is slower, and write the JSON and the plot."""
    lost = slower(rows)
    for what, case, name in lost:
        print(f"slower than {name}: {what} {case}")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("peer", "out")}
    content = {
        "schema": 1,
        "provenance": {**harness.provenance(device), "posgan_fast": posgan_fast.__version__},
        "settings": settings,
        "peer": harness.commit(args.peer) if args.peer else None,
        "peer_note": note,
        "rows": [asdict(row) for row in rows],
        "slower": lost,
    }
    name = args.name or f"networks-{device.type}-{harness.allocator().replace(' ', '-')}"
    harness.write_json(args.out / f"{name}.json", content)
    plot(rows, content, args.out / f"{name}.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.networks", description=__doc__.splitlines()[0]
    )
    several: dict[str, Any] = dict(nargs="+", action=options.Distinct)
    parser.add_argument("--what", **several, choices=sorted({*WHAT, *networks_plan.WHAT}), help="default: all")
    parser.add_argument("--size", **several, type=options.image_size, metavar="PIXELS", help="default: 256 1024")
    parser.add_argument(
        "--batch", **several, type=options.at_least(1), metavar="N", help="default: 1 on the CPU, 1 and 32 on a GPU"
    )
    parser.add_argument("--dtype", **several, choices=DTYPES, help="default: all; float16 on a GPU only")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="[NAME=]PATH",
        help="checkout of NVlabs stylegan2-ada-pytorch or stylegan3; rosinality=PATH: compiled on a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=options.seconds, help="on a GPU: begin no row later, most important rows first"
    )
    parser.add_argument("--dry-run", action="store_true", help="measure small networks on the CPU as if it were a GPU")
    parser.add_argument("--compile", action="store_true", help="on the CPU: also torch.compile of the peer's generator")
    parser.add_argument(
        "--openvino", action="store_true", help="also OpenVINO running the peer's generator, exported, on the CPU"
    )
    parser.add_argument("--rounds", type=options.at_least(2, ", for quartiles"), default=7)
    options.add_allocator(parser)
    options.add_output(parser)
    parser.add_argument("--peak", choices=[OURS, NVLABS], help=argparse.SUPPRESS)  # a child that measures its memory
    parser.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)  # a child that compiles
    return parser


def _rows(args, device, nvlabs) -> Iterator[Row]:
    """Measure everything that the options ask for."""
    for what in args.what:
        yield from globals()[f"_{what}"](args, device, nvlabs)


def _layer(args, device, nvlabs) -> Iterator[Row]:
    """Measure style layers at four resolutions of the largest network."""
    for r in network_calls.LAYER_SIZES:
        for up in (1, 2):
            arguments = network_calls.style_layer(r, up, args.batch[0], device)
            call = functools.partial(PF.modulated_conv2d, **arguments)
            calls: Calls = {OURS: call, REFERENCE: functools.partial(call, backend="reference")}
            if nvlabs is not None:
                calls[NVLABS] = network_peers.nvlabs_op(nvlabs, **arguments)
            yield _measured("layer", f"{network_calls.layer_name(r, up)}, float32", calls, args.rounds)


def _generator(args, device, nvlabs) -> Iterator[Row]:
    for size in args.size:
        g, peer = network_peers.pair(size, device, nvlabs)
        packed = posgan_fast.nn.prepack(copy.deepcopy(g))
        for n in args.batch:
            ws = network_calls.latents(g, n, device)
            compiled = exported.openvino(peer, ws) if args.openvino else {}
            for dtype in args.dtype:
                calls = _generator_calls(args, dtype, g, packed, peer, ws)
                if compiled:
                    calls[OPENVINO] = compiled[dtype]
                calls[FLOOR] = network_calls.convolutions_alone(size, n, dtype, device)
                yield _measured("generator", f"{size}, N={n}, {dtype}", calls, args.rounds)


def _generator_calls(args, dtype: str, g, packed, peer, ws) -> Calls:
    calls: Calls = {
        OURS: lambda: in_dtype(dtype, lambda: g.synthesis(ws)),
        PREPACKED: lambda: in_dtype(dtype, lambda: packed.synthesis(ws)),
    }
    if dtype == "float32":
        calls[REFERENCE] = lambda: on_reference(lambda: g.synthesis(ws))
    if peer is not None:
        calls[NVLABS] = lambda: peer.synthesis(ws, noise_mode="const")
    if args.compile and peer is not None and dtype == "float32":
        torch._dynamo.config.recompile_limit = 64  # every block has shapes of its own
        compiled = torch.compile(peer.synthesis, dynamic=False)
        calls[COMPILED] = lambda: compiled(ws, noise_mode="const")
    return calls


def _padding(args, device, nvlabs) -> Iterator[Row]:
    """Measure a generator with PadInv's padding maps, and with zero padding."""
    for size in args.size[:1]:
        g, _ = network_peers.pair(size, device, None)
        ws, maps = network_calls.latents(g, 1, device), network_calls.padding_maps(device)
        for dtype in args.dtype:
            calls = {
                OURS: lambda: in_dtype(dtype, lambda: g.synthesis(ws, pad_maps=maps)),  # noqa: B023
                ZEROS: lambda: in_dtype(dtype, lambda: g.synthesis(ws)),  # noqa: B023
            }
            yield _measured("padding", f"{size}, {dtype}", calls, 3 * args.rounds)


def _discriminator(args, device, nvlabs) -> Iterator[Row]:
    for size in args.size[:1]:
        d, peer = network_peers.pair(size, device, nvlabs, "Discriminator")
        for n in args.batch:
            x = torch.randn(n, 3, size, size, device=device)
            calls = {OURS: lambda: d(x), REFERENCE: lambda: on_reference(lambda: d(x))}  # noqa: B023
            if peer is not None:
                calls[NVLABS] = lambda: peer(x, None)  # noqa: B023
            yield _measured("discriminator", f"{size}, N={n}, float32", calls, args.rounds)


def _training(args, device, nvlabs) -> Iterator[Row]:
    """Measure the gradients of a training step with both regularisers."""
    size, n = network_calls.TRAINING_SIZE, network_calls.TRAINING_BATCH
    g, peer_g = network_peers.pair(size, device, nvlabs)
    d, peer_d = network_peers.pair(size, device, nvlabs, "Discriminator")
    z, real = network_calls.training_inputs(device)
    step = network_calls.training_step
    calls = {OURS: lambda: step(g, d, z, real), REFERENCE: lambda: on_reference(lambda: step(g, d, z, real))}
    if peer_g is not None:
        calls[NVLABS] = lambda: step(peer_g, lambda x: peer_d(x, None), z, real, (z.new_zeros(n, 0),))
    name = f"{size}, N={n}, float32, R1 and path length"
    yield _measured("training", name, calls, max(3, args.rounds // 2), grad=True)


def _memory(args, device, nvlabs) -> Iterator[Row]:
    """Measure the peak memory of a forward pass beyond the weights, each in a process of its own (CPU only)."""
    if device.type == "cpu":
        size, n = max(args.size), 4
        row = Row("memory", f"generator {size}, N={n}, float32, GiB")
        for name in (OURS, NVLABS) if args.peer else (OURS,):
            command = [sys.executable, "-m", "benchmarks.networks", "--peak", name]
            command += ["--size", str(size), "--batch", str(n), "--out", str(args.out)]
            command += ["--peer", str(args.peer)] if args.peer else []
            env = harness.environment_for("as started")  # a tuned allocator keeps memory that is not needed
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            row.medians[name] = float(done.stdout.split()[-1]) / 2**30
            row.ratios[name] = row.medians[name] / row.medians[OURS]
        yield row


def _peak(who: str, size: int, n: int, checkout: Path | None) -> int:
    device = torch.device("cpu")
    g, peer = network_peers.pair(
        size, device, network_peers.nvlabs_module(checkout, device)[0] if who == NVLABS else None
    )
    with torch.no_grad():
        ws = g.mapping(torch.randn(n, 512))
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = resident("VmRSS")
        g.synthesis(ws) if who == OURS else peer.synthesis(ws, noise_mode="const", fused_modconv=True)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """The physical memory in bytes: now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _measured(what: str, case: str, calls: Calls, rounds: int, grad: bool = False) -> Row:
    row = Row(what, case)
    with torch.set_grad_enabled(grad):
        results = {name: call() for name, call in calls.items()}
        base = results.get(REFERENCE, results.get(NVLABS))
        for name, result in results.items():
            if base is not None and name not in (FLOOR, ZEROS):
                row.errors[name] = ((result - base).norm() / base.norm()).item()
        if OURS in results and base is not None and "bfloat16" in case:
            error = (results[OURS].clamp(-1, 1) - base.clamp(-1, 1)).square().mean()
            row.errors["PSNR, dB"] = (10 * torch.log10(4 / error)).item()
        del results
        timers = {name: functools.partial(_seconds, call) for name, call in calls.items()}
        samples = harness.interleave(timers, harness.Effort(rounds, rounds, 0.0, 0.0))
    for name, times in samples.items():
        row.medians[name] = statistics.median(times)
        row.ratios[name] = statistics.median(t / ours for t, ours in zip(times, samples[OURS], strict=True))
        low, _, high = statistics.quantiles(times, n=4)
        row.quartiles[name] = (low, high)
    return row


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
