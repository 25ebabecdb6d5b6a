"""python -m benchmarks: compare ours with the reference and any peer, case by case, or with another revision of itself.

The first prints a table, geometric means and every case where ours is slower, and writes them as JSON with their
provenance, and as a plot. Exit code 1: one of our backends disagrees with the reference.

``--base REV`` compares the working tree with a git revision, or with the checkout at a path: see ``base.py``. Exit code
1: the trees disagree, or the working tree fails; 2: there is nothing to compare.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cases
import torch

from posgan_fast import __version__, _native

from . import base, harness, options, peers, registry, report, subjects, trees
from .subjects import AGREE, DTYPES, LAYOUTS

COMPILED_RESOLUTION = 256  # of "--compile some": compiling takes longer than the rest of a case


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    args.op = args.op or [*cases.CASES, *(subjects.NETWORKS if args.base is not None else ())]
    _check(args, parser)
    wanted = ["tuned", "as started"] if args.both else [args.allocator] if args.allocator else []
    if wanted and wanted != [harness.allocator()]:
        return max(options.run_again("benchmarks", [*argv, *_name(args, setting)], setting) for setting in wanted)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.base is None:
        return _run(args, device)
    try:
        return base.run(args, _subjects(args), device)
    except trees.TreeError as error:
        print(f"python -m benchmarks: --base: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m benchmarks: interrupted", file=sys.stderr)
        return 130


def _name(args: argparse.Namespace, setting: str) -> list[str]:
    """The option that gives the files of an allocator setting a name of their own, where --both writes two."""
    return ["--name", f"{args.name}-{setting.replace(' ', '-')}"] if args.both and args.name else []


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Complain of options that do not fit together, and of cases that do not exist."""
    networks = [op for op in args.op if op in subjects.NETWORKS]
    if args.base is None:
        rest = {"--json": args.json, f"--op {' '.join(networks)}": networks}
    else:
        rest = {"--peer": args.peer, "--compile": args.compile, "--both": args.both}
    for option, given in rest.items():
        if given:
            parser.error(f"{option}: {'only' if args.base is None else 'not'} with --base")
    args.peer = options.peer_paths(parser, args.peer)
    if "discriminator" in networks:
        options.check_groups(parser, [args.batch])
    known = [subject.case for subject in _subjects(args, words=[])]
    for word in args.case:
        if not any(word in name for name in known):
            names = ", ".join(dict.fromkeys(known))
            parser.error(f"--case: no case of {', '.join(args.op)} contains {word!r}; there are {names}")


def _subjects(args: argparse.Namespace, words: list[str] | None = None) -> list[subjects.Subject]:
    words = args.case if words is None else words
    return subjects.plan(args.op, words, args.dtype, args.layout, args.batch, args.quick)


def _run(args: argparse.Namespace, device: torch.device) -> int:
    """Measure ours beside the reference and the peers, print and write the results; returns the exit code."""
    begin = time.perf_counter()
    if args.threads:
        torch.set_num_threads(args.threads)
    effort = harness.QUICK if args.quick else harness.FULL
    loaded = peers.load(args.peer, device)
    print(
        f"{device.type}, {torch.get_num_threads()} threads, allocator {harness.allocator()}, torch {torch.__version__}"
    )
    content = _header(args, device, effort, loaded)
    for peer in content["peers"]:
        print(f"peer {peer['name']} {peer['commit'] or ''} {peer['note']}".rstrip())
    with harness.tf32(False):  # the reference must not round to TF32
        rows, content["cut"] = _measure(args, device, effort, loaded, begin)
    content["load_average_after"] = os.getloadavg()
    content |= report.as_json(rows)
    content["disagreements"] = disagreements(rows)
    _write(args, device, rows, content)
    return 1 if any(line.startswith("posgan_fast") for line in content["disagreements"]) else 0


def _header(
    args: argparse.Namespace, device: torch.device, effort: harness.Effort, loaded: list[peers.Peer]
) -> dict[str, Any]:
    """The machine, the settings, the peers and the bandwidth of plain copies."""
    return {
        "schema": 1,
        "provenance": {**harness.provenance(device), "posgan_fast": __version__, "build": _native.build_record()},
        "settings": {
            "quick": args.quick, "effort": asdict(effort), "batch": args.batch, "dtypes": args.dtype,
            "layouts": args.layout, "ops": args.op, "compiled": _compiled_setting(args, device), "budget": args.budget,
        },
        "peers": [{"name": p.name, "commit": p.commit, "note": p.note} for p in loaded],
        "bandwidth": harness.bandwidths(device, effort),
    }  # fmt: skip


def _write(
    args: argparse.Namespace, device: torch.device, rows: list[harness.Measurement], content: dict[str, Any]
) -> None:
    """Write the JSON and the plot, and print the table."""
    name = args.name or f"{device.type}-{harness.allocator().replace(' ', '-')}"
    harness.write_json(args.out / f"{name}.json", content)
    print(report.text(rows))
    if content["cut"]:
        print(f"\nCut, no time left: {len(content['cut'])} cases")
    for line in content["disagreements"]:
        print(f"DISAGREES: {line}")
    _plot(rows, content, args.out / f"{name}.png")
    print(f"\nwrote {args.out / name}.json and .png")


def disagreements(rows: list[harness.Measurement]) -> list[str]:
    """The contenders whose result differs from the reference's."""
    return [
        f"{name} on {row.op} {row.case}, {row.dtype}, {row.layout}: relative L2 {error:.1e}"
        for row in rows
        for name, error in row.errors.items()
        if not error <= AGREE[row.dtype]
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="few small cases and few rounds, to see that all runs")
    parser.add_argument(
        "--base", metavar="REV", help="compare the working tree with a git revision, or with the checkout at a path"
    )
    parser.add_argument("--json", action="store_true", help="with --base: print JSON, not the table")
    several: dict[str, Any] = dict(nargs="+", action=options.Distinct)
    parser.add_argument(
        "--op",
        **several,
        choices=[*cases.CASES, *subjects.NETWORKS],
        help=f"default: all; {', '.join(subjects.NETWORKS)}: with --base only",
    )
    parser.add_argument("--case", **several, default=[], metavar="WORD", help="only cases whose name contains a WORD")
    parser.add_argument("--dtype", **several, choices=list(DTYPES), default=["float32"])
    parser.add_argument("--layout", **several, choices=list(LAYOUTS), default=["nchw"])
    parser.add_argument("--batch", type=options.at_least(1), default=1, metavar="N")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--threads", type=options.at_least(1), metavar="N", help="default: torch's own choice")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="nvlabs=CHECKOUT or rosinality=CHECKOUT"
    )
    parser.add_argument(
        "--compile",
        choices=["none", "some", "all"],
        help="also torch.compile of the reference; some: at 256 pixels (default on CUDA; on the CPU: none)",
    )
    parser.add_argument(
        "--budget",
        type=options.seconds,
        metavar="SECONDS",
        help="start no case after this time; the cases that were cut are recorded",
    )
    options.add_allocator(parser).add_argument(
        "--both", action="store_true", help="measure twice, tuned and as started"
    )
    options.add_output(parser)
    return parser


def _compiled_setting(args: argparse.Namespace, device: torch.device) -> str:
    return args.compile or ("some" if device.type == "cuda" else "none")


def _measure(
    args: argparse.Namespace, device: torch.device, effort: harness.Effort, loaded: list[peers.Peer], begin: float
) -> tuple[list[harness.Measurement], list[str]]:
    """Measure the largest cases first, so that a budget cuts the least informative ones.

    Returns:
        The rows in the order of the registry, and the labels of the cases that were cut.
    """
    compiling = _compiled_setting(args, device)
    plan = [
        (case, dtype, layout)
        for case in registry.selected(args.op, args.quick, args.case)
        for dtype in args.dtype
        for layout in args.layout
    ]
    by_size = sorted(range(len(plan)), key=lambda i: -cases.elements_moved(plan[i][0]))
    rows: dict[int, harness.Measurement] = {}
    cut = []
    for count, i in enumerate(by_size):
        case, dtype, layout = plan[i]
        label = f"{case.op} {case.name}, {dtype}, {layout}"
        if args.budget is not None and time.perf_counter() - begin > args.budget:
            cut.append(label)
            continue
        print(f"[{count + 1}/{len(plan)}] {label}", file=sys.stderr, flush=True)
        compiled = compiling == "all" or (compiling == "some" and case.resolution == COMPILED_RESOLUTION)
        rows[i] = _row(cases.with_batch(case, args.batch), dtype, layout, device, effort, loaded, compiled)
    ordered = sorted(rows, key=lambda i: (args.op.index(plan[i][0].op), plan[i][1:], i))
    return [rows[i] for i in ordered], cut


@torch.inference_mode()
def _row(
    case: cases.Case,
    dtype: str,
    layout: str,
    device: torch.device,
    effort: harness.Effort,
    loaded: list[peers.Peer],
    compiled: bool,
) -> harness.Measurement:
    x, extra = (t if t is None else t.to(device) for t in case.tensors(DTYPES[dtype], LAYOUTS[layout]))
    assert x is not None
    found = registry.contenders(case, x, extra, loaded, compiled)
    traffic = cases.elements_moved(case) * x.element_size()
    row = harness.Measurement(
        case.op, case.name, case.shape, case.resolution, dtype, layout, traffic, found[0].name, cold=False
    )
    expected = next(c for c in found if c.name == registry.REFERENCE).make()(x).double()
    calls = {}
    for contender in found:
        try:
            call = contender.make()
            error = (call(x.clone()).double() - expected).norm() / expected.norm()
        except Exception as failure:
            if contender.kind != "other":
                raise
            row.refused[contender.name] = harness.reason(failure)
            continue
        row.errors[contender.name] = error.item()
        if error <= AGREE[dtype]:
            calls[contender.name] = call
    del expected
    if row.ours in calls:
        harness.measure(row, calls, x, effort)
    return row


def _plot(rows: list[harness.Measurement], content: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    p = content["provenance"]
    where = p["gpu"]["name"] if p["device"] == "cuda" else f"{p['cpu']['model']}, {p['threads']} threads"
    report.plot(rows, f"{where}, torch {p['torch']}, allocator {p['allocator']}", path)


if __name__ == "__main__":
    sys.exit(main())
