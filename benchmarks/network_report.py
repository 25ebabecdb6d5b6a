"""Reports what ``python -m benchmarks.networks`` measured: rows, lines, the cases that ours lost, and a plot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS, REFERENCE, COMPILED, NVLABS, FLOOR, ZEROS = "ours", "reference", "nvlabs, compiled", "nvlabs", "floor", "zeros"
PREPACKED, OPENVINO = "prepacked", "openvino"
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


def slower(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """List what, case and contender wherever a contender takes less time than ours."""
    return [(r.what, r.case, n) for r in rows for n in r.medians if n not in NO_PEERS and r.ratios.get(n, 1) < 1]


def line(row: Row) -> str:
    unit, factor = ("GiB", 1.0) if row.what == "memory" else ("ms", 1e3)
    times = "  ".join(f"{n} {v * factor:.2f} {unit}" for n, v in row.medians.items())
    ratios = "  ".join(f"{v:.2f}x {n}" for n, v in row.ratios.items() if n != OURS)
    errors = "  ".join(f"{n} {v:.1e}" if "dB" not in n else f"{n} {v:.1f}" for n, v in row.errors.items())
    return f"{row.what} {row.case}: {times}  |  ours is {ratios}  |  {errors}"


def plot(rows: list[Row], content: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    shown = [r for r in rows if r.what != "memory"]
    names = [n for n in _COLOURS if any(n in r.medians for r in shown)]
    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.55 * len(shown)), layout="constrained")
    for k, name in enumerate(names):
        at = [(i, r.ratios[name]) for i, r in enumerate(shown) if name in r.ratios]
        height = 0.8 / len(names)
        axis.barh([i + k * height for i, _ in at], [v for _, v in at], height, label=name, color=_COLOURS[name])
    axis.set_yticks([i + 0.4 for i in range(len(shown))], [f"{r.what} {r.case}" for r in shown])
    axis.invert_yaxis()
    axis.set_xlabel("time relative to ours")
    axis.set_title(_machine(content["provenance"]), fontsize=9)
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
    NVLABS: "#d1495b",
    REFERENCE: "#8d99ae",
    COMPILED: "#5c677d",
    OPENVINO: "#4059ad",
    ZEROS: "#edae49",
    FLOOR: "#cccccc",
}
