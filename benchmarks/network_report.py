"""Reports what ``python -m benchmarks.networks`` measured: rows, lines, the cases that ours lost, and a plot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS, REFERENCE, COMPILED, NVLABS, FLOOR, ZEROS = "ours", "reference", "nvlabs, compiled", "nvlabs", "floor", "zeros"
PREPACKED, OPENVINO = "prepacked", "openvino"
GRAPH = ", graph"  # the end of the name of a contender whose graph is replayed
NO_PEERS = (OURS, PREPACKED, FLOOR, ZEROS)


@dataclass
class Row:
    """One measured call, with an entry per contender.

    Medians and quartiles are in seconds. A ratio is the contender's time over ours, the median of the ratios within
    each round, which drift of the machine does not change. Errors are relative to the reference, or a PSNR.
    """

    what: str
    case: str
    medians: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


@dataclass
class GpuRow(Row):
    """A row of a GPU. A contender's replayed graph is a contender of its own, with ours replayed as its rival.

    Errors are relative to float32 on the reference backend, in the first sample.
    """

    batch: int = 1
    launches: dict[str, dict[str, int]] = field(default_factory=dict)  # of a call: kernels, copies
    counted_launches: int | None = None  # ours, as benchmarks.traffic counts them
    predicted: float | None = None  # seconds of our kernels at the rates of this GPU
    roofline: float | None = None  # the predicted seconds over the measured ones
    compile_seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # contender: the reason why it was not measured
    failed: str = ""  # the error of ours


def slower(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """List what, case and contender wherever a contender takes less time than ours."""
    return [
        (row.what, row.case, name)
        for row in rows
        for name in row.medians
        if name.removesuffix(GRAPH) not in NO_PEERS and row.ratios.get(name, 1) < 1
    ]


def line(row: Row) -> str:
    unit, factor = ("GiB", 1.0) if row.what == "memory" else ("ms", 1e3)
    times = "  ".join(f"{n} {v * factor:.2f} {unit}" for n, v in row.medians.items())
    ratios = "  ".join(f"{v:.2f}x {n}" for n, v in row.ratios.items() if n.removesuffix(GRAPH) != OURS)
    errors = "  ".join(f"{n} {v:.1e}" if "dB" not in n else f"{n} {v:.1f}" for n, v in row.errors.items())
    compared = f"ours is {ratios}" if ratios else ""
    return f"{row.what} {row.case}: {times}  |  {compared}  |  {errors}"


def gpu_line(row: GpuRow) -> str:
    """Return what a row of a GPU says."""
    if row.failed:
        return f"{row.what} {row.case}: FAILED, {row.failed}"
    lines = [line(row)] if row.medians else [f"{row.what} {row.case}:"]
    for name, found in row.launches.items():
        kernels, copies = found["kernels"], found["copies"]
        lines.append(
            f"{name}: {kernels} kernels and {copies} copies a call, {(kernels + copies) / row.batch:.3g} an image"
        )
    if row.counted_launches is not None and row.launches:
        lines.append(f"{OURS}, counted without a GPU: {row.counted_launches} launches a call")
    if row.roofline is not None:
        lines.append(f"{row.roofline:.2f} of the roofline")
    lines += [f"{name}: {seconds:.1f} s to compile" for name, seconds in row.compile_seconds.items()]
    lines += [f"{name}: not measured, {why}" for name, why in row.refused.items()]
    return "\n    ".join(lines)


def plot(rows: Sequence[Row], content: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    shown = [r for r in rows if r.what != "memory" and r.medians]
    if not shown:
        return
    names = [n for n in _COLOURS if any(n in r.medians for r in shown)]
    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.55 * len(shown)), layout="constrained")
    for k, name in enumerate(names):
        at = [(i, r.ratios[name]) for i, r in enumerate(shown) if name in r.ratios]
        height = 0.8 / len(names)
        axis.barh([i + k * height for i, _ in at], [v for _, v in at], height, label=name, color=_COLOURS[name])
    axis.set_yticks([i + 0.4 for i in range(len(shown))], [f"{r.what} {r.case}" for r in shown])
    axis.invert_yaxis()
    axis.set_xlabel("time relative to ours")
    dry = "dry run on the CPU, " if content["settings"].get("dry_run") else ""
    axis.set_title(dry + _machine(content["provenance"]), fontsize=9)
    axis.legend()
    axis.grid(axis="x", alpha=0.3)
    os.makedirs(path.parent, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _machine(p: dict[str, Any]) -> str:
    if "gpu" in p:
        return f"{p['gpu']['name']}, torch {p['torch']}"
    return f"{p['cpu']['model']}, {p['threads']} threads, torch {p['torch']}, allocator {p['allocator']}"


_COLOURS = {
    OURS: "#1b7f79",
    PREPACKED: "#7fc8a9",
    OURS + GRAPH: "#54a8a2",
    NVLABS: "#d1495b",
    NVLABS + GRAPH: "#e39aa5",
    REFERENCE: "#8d99ae",
    COMPILED: "#5c677d",
    OPENVINO: "#4059ad",
    ZEROS: "#edae49",
    FLOOR: "#cccccc",
}
