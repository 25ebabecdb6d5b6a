"""Judges the samples of two source trees, and prints them as a table.

Every round has one sample of the base, one of the working tree ("here") and one of a second process of the base, whose
ratio to the first shows the noise of this machine in this run. Ratios are taken within rounds, since drift of the
machine changes all samples of a round alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .report import aligned, duration, geometric_mean
from .subjects import Subject

BASE, HERE, AGAIN = "base", "here", "base again"
NEW, FAILS, SLOWER = "new", "fails", "slower"
CUT = "cut"


@dataclass
class Comparison:
    """One call in both trees. Times are medians in seconds, ratios are the working tree's time over the base's."""

    subject: Subject
    clock: str = ""  # "host", or on CUDA "graph" (or "events") and "launches"
    base: float = 0.0
    here: float = 0.0
    ratio: float = 0.0  # the median over the rounds
    low: float = 0.0  # quartiles of the ratio
    high: float = 0.0
    noise: float = 0.0  # three in four rounds of the base against itself stay within 1 +- noise
    offset: float = 0.0  # how far the median of the base against itself is from 1
    rounds: int = 0
    second_ratio: float | None = None  # in new processes, if the first ratio exceeded the noise
    status: str = ""  # SLOWER, NEW (the base cannot run it), FAILS (the working tree cannot) or CUT (no time left)
    note: str = ""

    @property
    def timed(self) -> bool:
        return self.rounds > 0


def judge(subject: Subject, clock: str, samples: Mapping[str, Sequence[float]]) -> Comparison:
    """Compare the samples of BASE, HERE and AGAIN, one of each in every round."""
    base = samples[BASE]
    ratios = [here / b for here, b in zip(samples[HERE], base, strict=True)]
    control = [again / b for again, b in zip(samples[AGAIN], base, strict=True)]
    low, high = _quartiles(ratios)
    return Comparison(
        subject, clock, statistics.median(base), statistics.median(samples[HERE]), statistics.median(ratios), low, high,
        noise=_quartiles([abs(c - 1) for c in control])[1], offset=abs(statistics.median(control) - 1),
        rounds=len(base),
    )  # fmt: skip


def limit(rows: Sequence[Comparison]) -> float:
    """The largest offset of the base against itself, the largest twentieth of the cases left out."""
    offsets = sorted(row.offset for row in rows if row.timed)
    return offsets[int(0.95 * (len(offsets) - 1) + 0.5)] if offsets else 0.0


def exceeds(row: Comparison, floor: float) -> bool:
    """Whether the working tree is slower, in three of four rounds, by more than the case's own noise and ``floor``."""
    return row.timed and row.low > 1 + max(row.noise, floor)


def confirm(row: Comparison, second: Comparison, floor: float) -> None:
    """Mark a case as slower if a second measurement, in new processes, exceeds the noise too."""
    row.second_ratio = second.ratio
    if exceeds(second, floor):
        row.status = SLOWER


def text(rows: Sequence[Comparison], base: str, here: str) -> str:
    """A table of the cases, geometric means of the ratios, and every case that is slower, new or failing."""
    return "\n".join(_text(rows, base, here))


def _text(rows: Sequence[Comparison], base: str, here: str) -> Iterator[str]:
    yield f"base: {base}\nhere: {here}"
    timed = [row for row in rows if row.timed]
    table = [["case", "dtype", "layout", "clock", "base", "here", "ratio", "spread", "noise", ""]]
    for row in timed:
        s = row.subject
        name = f"{s.op} {s.case}{f', N={s.batch}' if s.batch > 1 else ''}"
        cells = [name, s.dtype, s.layout or "-", row.clock, duration(row.base), duration(row.here), f"{row.ratio:.3f}"]
        table.append([*cells, f"{row.low:.3f} to {row.high:.3f}", f"{100 * row.noise:.1f} %", row.status])
    yield "\nTime per call; ratio: here over base, above 1 is slower; spread: its quartiles; noise: base over base"
    yield from aligned(table)
    yield "\nGeometric means of the ratio"
    means = [["op", "clock", "cases", "ratio"]]
    for op, clock in dict.fromkeys((row.subject.op, row.clock) for row in timed):
        ratios = [row.ratio for row in timed if (row.subject.op, row.clock) == (op, clock)]
        means.append([op, clock, str(len(ratios)), f"{geometric_mean(ratios):.3f}"])
    yield from aligned(means)
    yield f"\nSlower beyond noise, twice (the base against itself: {100 * limit(timed):.1f} % in 19 of 20 cases)"
    slower = [row for row in timed if row.status == SLOWER]
    yield from (f"  {r.subject}, {r.clock}: {r.ratio:.3f}, then {r.second_ratio:.3f}" for r in slower)
    if not slower:
        yield "  none"
    titles = {NEW: "New: the base cannot run it", FAILS: "Fails here", CUT: "Cut, no time left"}
    for status, title in titles.items():
        found = [row for row in rows if row.status == status]
        if found:
            yield f"\n{title}"
            yield from (f"  {r.subject}{': ' if r.note else ''}{r.note}" for r in found)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return low, high
