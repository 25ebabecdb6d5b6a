"""python -m benchmarks.tune FILE SECONDS: measure rows for the launch tables of both GPU backends.

Each call runs with every row of its Triton table that could serve it, whatever size the row is meant for, and with 2, 4
and 8 warps; the CUDA kernels run with other blocks and segments, which ``POSGAN_FAST_CUDA_TABLE`` gives them. For every
row that serves a call today, the program prints the best replacement over the calls that the row serves, ready to be
reviewed and entered. Calls for which no time is left are dropped, the least important ones first.

``--dry-run`` makes the small ones of these calls on the CPU, where there is no row to try.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from posgan_fast import _native

from . import harness, options, tune_calls, tune_rows
from .report import geometric_mean

EFFORT = harness.Effort(rounds=7, least=3, seconds=1.0, sample=0.002)
Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("file", type=options.output_file, help="where the result goes")
    parser.add_argument("seconds", type=options.seconds, help="no measurement begins later than that")
    parser.add_argument("--dry-run", action="store_true", help="make the small calls on the CPU")
    args = parser.parse_args(argv)
    if options.lacks_gpu(args.dry_run):
        return 2
    if args.dry_run:
        return dry_run(args.file)
    device = torch.device("cuda")
    records, failed, cut = measure_all(list(tune_calls.plan()), device, args.seconds)
    info = harness.provenance(device)
    best = best_rows(records, info["gpu"], info["date"][:10])
    for line in best:
        print(f"{line['table']}: {line['text']}  // {line['faster']:.2f}x {line['today']} over {line['calls']} calls")
    result = {"provenance": info, "cut": cut, "failed": failed, "best": best, "records": records}
    harness.write_json(args.file, result)
    print(f"wrote {args.file}")
    return 1 if failed else 0


def dry_run(path: Path) -> int:
    """Make each call of the smallest resolution once, in every dtype and memory format, by the CPU's own backend."""
    made = []
    for call, name in tune_calls.plan(1, tune_calls.RESOLUTIONS[-1:]):
        x, run = call.prepare(torch.device("cpu"))
        y = run(x, None)
        assert tuple(y.shape) == call.out_shape, f"{call.name}: {tuple(y.shape)}"
        made.append(f"{name} {call.op} {call.name} {call.dtype} {call.layout}")
    planned = len(list(tune_calls.plan()))
    harness.write_json(path, {"dry_run": True, "calls": made, "planned": planned})
    print(f"dry run on the CPU: made {len(made)} of {planned} calls, measured none, wrote {path}")
    return 0


def measure_all(
    planned: Sequence[tuple[tune_calls.Call, str]], device: torch.device, seconds: float
) -> tuple[list[Record], list[str], int]:
    """Measure call after call; return the records, the failures, and how many calls were left when time was up."""
    begin = time.perf_counter()
    records: list[Record] = []
    failed: list[str] = []
    for i, (call, name) in enumerate(planned):
        if time.perf_counter() - begin > seconds:
            return records, failed, len(planned) - i
        try:
            record = measure(call, name, device)
        except Exception as error:  # the other calls are still worth their time
            failed.append(f"{name} {call.op} {call.name}, {call.dtype}, {call.layout}: {harness.reason(error)}")
            print(failed[-1], flush=True)
            continue
        if record is not None:
            records.append(record)
    return records, failed, 0


def measure(call: tune_calls.Call, name: str, device: torch.device) -> Record | None:
    """Measure the seconds of a call for every row that a backend could take; None where it has no row to try."""
    impls = {impl.backend: impl for impl in importlib.import_module(f"posgan_fast.ops.{call.op}").IMPLS}
    x, run = call.prepare(device)
    if impls[name].can_run(x) is not None:
        return None
    with torch.inference_mode():
        try:
            found = (_cuda if name == "cuda" else _triton)(call, lambda x: run(x, name), x)
            if found is None:
                return None
            table, today, rows, calls = found
            result = harness.Measurement(
                call.op, call.name, call.shape, call.resolution, str(call.dtype), str(call.layout), call.traffic,
                today, False,
            )  # fmt: skip
            harness.measure(result, calls, x, EFFORT)
        finally:
            tune_rows.set_cuda_table(None)
    return {
        "backend": name, "table": table, "op": call.op, "case": call.name, "dtype": result.dtype,
        "layout": result.layout, "today": today, "seconds": {n: t.median for n, t in result.timings.items()},
        "refused": result.refused, "rows": {row: value._asdict() for row, value in rows.items()},
    }  # fmt: skip


# The table, the name of today's row, the rows and the calls by name.
Found = tuple[str, str, dict[str, Any], dict[str, harness.Call]]


def _triton(call: tune_calls.Call, run: harness.Call, x: torch.Tensor) -> Found | None:
    module = importlib.import_module(f"posgan_fast.kernels.{call.op}")
    today, candidates = tune_rows.triton_candidates(module, lambda: run(x))
    if today is None:
        return None
    rows = {str(row): row for row in [today, *candidates]}
    return call.op, str(today), rows, {n: tune_rows.triton_forced(module, row, run) for n, row in rows.items()}


def _cuda(call: tune_calls.Call, run: harness.Call, x: torch.Tensor) -> Found | None:
    major, minor = torch.cuda.get_device_capability(x.device)
    kernel, size = call.cuda_kernel
    today, candidates = tune_rows.cuda_candidates(_native.cuda_table(), kernel, 10 * major + minor, size)
    if today is None:
        return None
    rows = {str(row): row for row in [today, *candidates]}
    return kernel, str(today), rows, {n: tune_rows.cuda_forced(row, run) for n, row in rows.items()}


def best_rows(records: Iterable[Record], gpu: dict[str, Any], date: str) -> list[dict[str, Any]]:
    """Find for every row chosen today the candidate with the best geometric mean over the calls that the row serves."""
    chosen: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        chosen[record["backend"], record["table"], record["today"]].append(record)
    found = []
    for (name, table, today), members in chosen.items():
        names = set.intersection(*(set(m["rows"]) & set(m["seconds"]) for m in members))
        gains = {n: geometric_mean(m["seconds"][today] / m["seconds"][n] for m in members) for n in names}
        best = max(gains, key=lambda n: gains[n])
        row, text = _entry(name, members[0]["rows"][best], members[0]["rows"][today], gpu, f"{gpu['name']}, {date}")
        found.append({
            "backend": name, "table": table, "today": today, "row": row, "text": text, "faster": gains[best],
            "calls": len(members),
        })  # fmt: skip
    return found


def _entry(name: str, row: Record, today: Record, gpu: dict[str, Any], note: str) -> tuple[Record, str]:
    """The row with the sizes that today's serves, for this GPU, and its text in the sources."""
    arch = int(gpu["capability"].replace(".", ""))
    if name == "cuda":
        given = _native.CudaTableRow(**row)
        return row | {"sm": arch}, tune_rows.cuda_text(given, arch, gpu["multiprocessors"], note)
    bounds = {bound: today[bound] for bound in tune_rows.BOUNDS if bound in today}
    row = {**row, "arch": arch, **bounds, "measured": note}
    return row, tune_rows.triton_text(row)


if __name__ == "__main__":
    sys.exit(main())
