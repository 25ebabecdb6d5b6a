"""Reports a run: the table, the geometric means, the slower cases, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import exp, log
from pathlib import Path
from typing import Any

from cases import MODELS

from .harness import CLONE, COPY, Measurement


@dataclass(frozen=True)
class Summary:
    """Geometric means over the calls of a model, such as "StyleGAN2-256", or over all cases of an op ("all")."""

    op: str
    dtype: str
    layout: str
    model: str
    ours: str
    cases: int
    faster_than: dict[str, float]  # contender: its time over ours
    counted: dict[str, int]  # contender: number of cases that have it
    of_copy: float  # share of copy bandwidth
    of_clone: float


@dataclass(frozen=True)
class Slower:
    """A case where a contender beats ours; ``certain`` if the interquartile ranges of their samples do not overlap."""

    op: str
    case: str
    dtype: str
    layout: str
    against: str
    ratio: float  # its time over ours, below 1
    certain: bool


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(v) for v in values]
    return exp(sum(logs) / len(logs)) if logs else float("nan")


def summarise(rows: Sequence[Measurement]) -> list[Summary]:
    found = []
    for (op, dtype, layout), group in _groups(rows):
        models: list[tuple[str, list[Measurement]]] = [
            (f"StyleGAN2-{m}", [r for r in group if 0 < r.resolution <= m])
            for m in MODELS
            if any(r.resolution == m for r in group)
        ]
        for model, members in [*models, ("all", group)]:
            names = _others(members)
            per_name = {n: [r.ratio(n) for r in members if n in r.timings] for n in names}
            means = {n: geometric_mean(v) for n, v in per_name.items()}
            counted = {n: len(v) for n, v in per_name.items()}
            of_copy, of_clone = (geometric_mean(r.ratio(n) for r in members) for n in (COPY, CLONE))
            ours, count = members[0].ours, len(members)
            found.append(Summary(op, dtype, layout, model, ours, count, means, counted, of_copy, of_clone))
    return found


def slower(rows: Iterable[Measurement]) -> list[Slower]:
    """List the cases where another contender, possibly a backend of ours, has a smaller median; worst first."""
    found = []
    for row in (r for r in rows if r.timings):
        mine = row.timings[row.ours]
        for name in _others([row]):
            ratio = row.ratio(name)
            if ratio < 1:
                certain = row.timings[name].high < mine.low
                found.append(Slower(row.op, row.case, row.dtype, row.layout, name, ratio, certain))
    return sorted(found, key=lambda s: s.ratio)


def as_json(rows: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "rows": [row.as_json() for row in rows],
        "summary": [asdict(s) for s in summarise(rows)],
        "slower": [asdict(s) for s in slower(rows)],
    }


def text(rows: Sequence[Measurement]) -> str:
    return "\n".join(_text(rows))


def plot(rows: Sequence[Measurement], title: str, path: Path) -> None:
    """Plot the bandwidth relative to copy() of the same bytes: a column of panels per op, a row per dtype and layout.

    Cases that move less than a megabyte measure call overhead: they are shown only if there are no others.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [r for r in rows if r.timings]
    shown = [r for r in timed if r.traffic >= 1e6] or timed
    if not shown:
        return
    panels = dict(_groups(shown))
    ops = list(dict.fromkeys(op for op, _, _ in panels))
    settings = list(dict.fromkeys(key[1:] for key in panels))
    heights = [0.9 + 0.4 * max(len(panels.get((op, *s), [])) for op in ops) for s in settings]
    figure, axes = pyplot.subplots(
        len(settings), len(ops), figsize=(0.8 + 6.2 * len(ops), 1.2 + sum(heights)), height_ratios=heights,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    names = _others(shown)
    colours = dict(zip(names, _OTHERS, strict=False)) | {row.ours: _OURS for row in shown}
    drawn: dict[str, Any] = {}
    for line, setting in zip(axes, settings, strict=True):
        for axis, op in zip(line, ops, strict=True):
            group = panels.get((op, *setting), [])
            axis.set_visible(bool(group))
            if group:
                _panel(axis, group, colours, drawn)
                axis.set_title(", ".join((op, *setting)), fontsize=10.5, loc="left", fontweight="bold")
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left", color="#444444")
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower left", ncols=6, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


_OURS, _LINE, _WARNING = "#1b6ca8", "#222222", "#b3261e"
_OTHERS = ("#e0a458", "#a687b8", "#cf7a7f", "#7fae8a", "#a0a0a0", "#b8ad5c")


def _panel(axis: Any, group: Sequence[Measurement], colours: dict[str, str], drawn: dict[str, Any]) -> None:
    names = _others(group)
    right = 1.0
    for y, row in enumerate(group):
        bars = [row.ours, *(n for n in names if n in row.timings)]
        unit = 0.84 / (len(bars) + 0.5)  # ours is 1.5 times as thick
        top = y - 0.42
        for name in bars:
            thick = unit * (1.5 if name == row.ours else 1)
            share = _share(row, name)
            right = max(right, share)
            bar = axis.barh(top + thick / 2, share, thick * 0.9, color=colours[name])
            drawn.setdefault(name, bar)
            top += thick
        best = min((row.ratio(n) for n in bars[1:]), default=None)
        if best is not None:
            at = (_share(row, row.ours) + 0.02, y - 0.42 + 0.75 * unit)
            text = axis.text(*at, f"{best:.1f}x", va="center", fontsize=8, color=_LINE if best >= 1 else _WARNING)
            text.set_bbox(dict(facecolor="white", edgecolor="none", pad=0.6))
        clone = axis.plot([_share(row, CLONE)] * 2, [y - 0.42, y + 0.42], color=_LINE, lw=1, ls=":", zorder=1.5)[0]
    line = axis.axvline(1, color=_LINE, lw=1.2, zorder=1.5)
    drawn.setdefault("copy() into warm memory", line)
    drawn.setdefault("clone()", clone)
    axis.set_yticks(range(len(group)), [row.case for row in group], fontsize=8.5)
    axis.set_ylim(len(group) - 0.45, -0.55)
    axis.set_xlim(0, max(1.12, right + 0.12))
    axis.set_xlabel("share of copy() bandwidth; label: times faster than the best other", fontsize=8.5, color="#444444")
    axis.tick_params(length=0, labelsize=8.5)
    axis.grid(axis="x", color="#e4e4e4", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _share(row: Measurement, name: str) -> float:
    return row.timings[COPY].median / row.timings[name].median


def _text(rows: Sequence[Measurement]) -> Iterator[str]:
    for (op, dtype, layout), group in _groups(rows):
        names = _others(group)
        head = ["case", "MB", group[0].ours, "GB/s", "of copy", "of clone", *names]
        table = [head]
        for row in group:
            cells = [row.case, f"{row.traffic / 1e6:.3g}", duration(row.timings[row.ours].median)]
            cells += [f"{row.bandwidth(row.ours) / 1e9:.1f}", f"{row.ratio(COPY):.2f}", f"{row.ratio(CLONE):.2f}"]
            cells += [_against(row, n) for n in names]
            table.append(cells)
        yield f"\n{op}, {dtype}, {layout}: time per call; in brackets how many times faster ours is"
        yield from aligned(table)
    yield "\nGeometric means: how many times faster ours is, and its share of copy() and clone() bandwidth"
    summaries = summarise(rows)
    names = list(dict.fromkeys(n for s in summaries for n in s.faster_than))
    table = [["op", "dtype", "layout", "cases", "of copy", "of clone", *names]]
    for s in summaries:
        cells = [s.op, s.dtype, s.layout, f"{s.model} ({s.cases})", f"{s.of_copy:.2f}", f"{s.of_clone:.2f}"]
        table.append(cells + [_mean(s, n) for n in names])
    yield from aligned(table)
    yield "\nCases where ours is slower"
    beaten = slower(rows)
    for b in beaten:
        doubt = "" if b.certain else " (within the spread of the samples)"
        yield f"  {b.op} {b.case}, {b.dtype}, {b.layout}: {1 / b.ratio:.2f}x the time of {b.against}{doubt}"
    if not beaten:
        yield "  none"
    refused = list(dict.fromkeys((n, why) for row in rows for n, why in row.refused.items()))
    if refused:
        yield "\nNot timed"
        yield from (f"  {n}: {why}" for n, why in refused)


def _groups(rows: Sequence[Measurement]) -> Iterator[tuple[tuple[str, str, str], list[Measurement]]]:
    timed = (r for r in rows if r.timings)
    for key, group in groupby(timed, key=lambda r: (r.op, r.dtype, r.layout)):
        yield key, list(group)


def _others(rows: Iterable[Measurement]) -> list[str]:
    """The contenders that ours is compared with: all but ours, ours in place, copy and clone."""
    names = dict.fromkeys(n for row in rows for n in row.timings)
    left_out = {COPY, CLONE, *(row.ours for row in rows)}
    return [n for n in names if n not in left_out and not n.endswith("in place")]


def _against(row: Measurement, name: str) -> str:
    return f"{duration(row.timings[name].median)} ({row.ratio(name):.2f})" if name in row.timings else "-"


def _mean(s: Summary, name: str) -> str:
    if name not in s.faster_than or not s.counted[name]:
        return "-"
    return f"{s.faster_than[name]:.2f}" + (f" ({s.counted[name]})" if s.counted[name] != s.cases else "")


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def aligned(table: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield "  " + "  ".join(cells).rstrip()
