"""Timing of whole tasks: ours and others in interleaved rounds, as rows of a table and a file."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import posgan_fast

from . import harness

OURS = "ours"


@dataclass
class Row:
    """One measured task: seconds (or ``unit``) of each contender, and its number over ours."""

    what: str
    case: str
    medians: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    unit: str = "s"
    error: float | None = None  # of ours against the others, relative L2, the largest


def write(args: argparse.Namespace, rows: list[Row], prefix: str) -> None:
    """Print the cases where ours is slower, and write all rows into a file of ``args.out``."""
    slower = [(row.what, row.case, name) for row in rows for name, ratio in row.ratios.items() if ratio < 1]
    for what, case, name in slower:
        print(f"slower than {name}: {what} {case}")
    device = torch.device("cpu")
    content = {
        "schema": 1,
        "provenance": {**harness.provenance(device), "posgan_fast": posgan_fast.__version__},
        "rounds": args.rounds,
        "rows": [asdict(row) for row in rows],
        "slower": slower,
    }
    name = args.name or f"{prefix}-{device.type}-{harness.allocator().replace(' ', '-')}"
    harness.write_json(args.out / f"{name}.json", content)


def measured(what: str, case: str, calls: dict[str, Callable[[], Any]], rounds: int) -> Row:
    """Time the contenders in turns, and compare the results where they are tensors."""
    row = Row(what, case)
    results = {name: call() for name, call in calls.items()}
    if isinstance(results[OURS], torch.Tensor):
        others = (value for name, value in results.items() if name != OURS)
        row.error = max((float((results[OURS] - value).norm() / value.norm()) for value in others), default=None)
    effort = dataclasses.replace(harness.QUICK, rounds=rounds, least=rounds, seconds=0.0, sample=0.0)
    samples = harness.interleave({name: _timer(call) for name, call in calls.items()}, effort)
    for name, times in samples.items():
        row.medians[name] = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        row.quartiles[name] = (low, high)
        if name != OURS:
            row.ratios[name] = statistics.median(t / ours for t, ours in zip(times, samples[OURS], strict=True))
    return row


def _timer(call: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return seconds


def line(row: Row) -> str:
    """Describe a row in one line."""
    factor, unit = (1e3, "ms") if row.unit == "s" else (1, row.unit)
    times = "  ".join(f"{name} {value * factor:.4g} {unit}" for name, value in row.medians.items())
    ratios = "  ".join(f"{value:.2f}x {name}" for name, value in row.ratios.items())
    error = "" if row.error is None else f"  |  error {row.error:.1e}"
    return f"{row.what}, {row.case}: {times}{ratios and f'  |  ours is {ratios}'}{error}"
