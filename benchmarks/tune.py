"""python -m benchmarks.tune FILE SECONDS: measure every row of the Triton launch tables of upfirdn2d and bias_act.

Each case runs with every row of its table that could serve it, whatever size the row is meant for, and with 2, 4 and
8 warps. For every row that serves a case today, the program prints the best replacement over the cases that the row
serves, ready to be reviewed and entered. The CUDA kernels choose their tiles in C++ and have no rows to try.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import cases
import torch

from posgan_fast import functional as PF

from . import harness
from .report import geometric_mean

WARPS = (2, 4, 8)
RESOLUTIONS = (1024, 256, 64, 32)
EFFORT = harness.Effort(rounds=7, least=3, seconds=1.0, sample=0.002)


def main(path: Path, seconds: float) -> int:
    device = torch.device("cuda")
    records, cut = [], 0
    begin = time.perf_counter()
    for case, dtype, layout in _plan():
        if time.perf_counter() - begin > seconds:
            cut += 1
        else:
            records.append(measure(case, dtype, layout, device))
    info = harness.provenance(device)
    note = f"{info['gpu']['name']}, {info['date'][:10]}"
    arch = int(info["gpu"]["capability"].replace(".", ""))
    best = best_rows(records, arch, note)
    for line in best:
        print(f"{line['op']}: {line['row']}  # {line['faster']:.2f}x {line['today']} over {line['cases']} cases")
    harness.write_json(path, {"provenance": info, "cut": cut, "best": best, "records": records})
    return 0


def measure(case: cases.Case, dtype: torch.dtype, layout: torch.memory_format, device: torch.device) -> dict[str, Any]:
    """Measure the seconds per call of a case for every candidate row; results are keyed by the row's text."""
    module = importlib.import_module(f"posgan_fast.kernels.{case.op}")
    x, extra = (t if t is None else t.to(device) for t in case.tensors(dtype, layout))
    assert x is not None

    def run(x: torch.Tensor) -> Any:
        return getattr(PF, case.op)(x, extra, **case.arguments, backend="triton")

    today, rows = candidates(module, lambda: run(x))
    traffic = cases.elements_moved(case) * x.element_size()
    result = harness.Measurement(
        case.op, case.name, case.shape, case.resolution, str(dtype), str(layout), traffic, str(today), False
    )
    calls = {str(row): _forced(module, row, run) for row in [today, *rows]}
    with torch.inference_mode():
        harness.measure(result, calls, x, EFFORT)
    return {
        "op": case.op, "case": case.name, "dtype": result.dtype, "layout": result.layout, "today": str(today),
        "seconds": {name: t.median for name, t in result.timings.items()}, "refused": result.refused,
        "rows": {str(row): row._asdict() for row in [today, *rows]},
    }  # fmt: skip


def candidates(module: ModuleType, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """Return the row that serves a call today, and all rows that could serve it, each with every number of warps."""
    select = module.select
    with mock.patch.object(module, "select", wraps=select) as spy:
        run()
    arguments = spy.call_args.args

    def serves(row: Any) -> bool:
        alone = (row._replace(arch=None, limit=2**63),)
        try:
            with mock.patch.object(module, "TABLE", alone):
                return bool(select.__wrapped__(*arguments))  # the cache of select holds answers of the whole table
        except LookupError:
            return False

    rows = [row._replace(num_warps=w) for row in module.TABLE if serves(row) for w in WARPS]
    return select(*arguments), list(dict.fromkeys(rows))


def best_rows(records: Iterable[dict[str, Any]], arch: int, note: str) -> list[dict[str, Any]]:
    """Find for every row chosen today the candidate with the best geometric mean over the cases that the row serves."""
    chosen: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        chosen[record["op"], record["today"]].append(record)
    found = []
    for (op, today), members in chosen.items():
        names = set.intersection(*(set(m["rows"]) & set(m["seconds"]) for m in members))
        gains = {n: geometric_mean(m["seconds"][today] / m["seconds"][n] for m in members) for n in names}
        name = max(gains, key=lambda n: gains[n])
        tile = members[0]["rows"][name]
        row = {**tile, "arch": arch, "limit": members[0]["rows"][today]["limit"], "measured": note}
        found.append({"op": op, "today": today, "row": row, "faster": gains[name], "cases": len(members)})
    return found


def _plan() -> Iterator[tuple[cases.Case, torch.dtype, torch.memory_format]]:
    for resolution in RESOLUTIONS:
        for op in cases.CASES:
            for case in (c for c in cases.CASES[op] if c.resolution == resolution):
                for dtype in (torch.float16, torch.float32):
                    for layout in (torch.contiguous_format, torch.channels_last):
                        yield cases.with_batch(case, 8), dtype, layout


def _forced(module: ModuleType, row: Any, run: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def call(x: torch.Tensor) -> Any:
        with mock.patch.object(module, "select", lambda *args, **kwargs: row):
            return run(x)

    return call


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
