"""python -m benchmarks.traffic_table: print the traffic in several files of ``benchmarks.traffic`` side by side.

The table is Markdown, a row for each phase of a case; ``docs/gpu-traffic.md`` holds it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FILES = {"before": RESULTS / "traffic-before.json", "now": RESULTS / "traffic.json"}
HEADER = "| case | dtype | phase | before | now | NVlabs | now / NVlabs |"


def rows(files: dict[str, Path]) -> list[str]:
    """Return the table of the files "before" and "now", line by line; each cell is megabytes and kernels."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, file in reversed(files.items()):  # those of today give the order
        for case in json.loads(file.read_text())["cases"]:
            column = name if case["contender"] == "ours" else case["contender"]
            for phase, counts in case["phases"].items():
                found.setdefault((case["case"], case["dtype"], phase), {})[column] = counts
    lines = [HEADER, "|---|---|---|---|---|---|---|"]
    for key, columns in found.items():
        if "now" in columns:
            before, now, peer = (columns.get(name) for name in ("before", "now", "nvlabs"))
            ratio = "" if peer is None else f"{_bytes(now) / _bytes(peer):.2f}"
            lines.append(f"| {' | '.join(key)} | {_cell(before)} | {_cell(now)} | {_cell(peer)} | {ratio} |")
    return lines


def _bytes(counts: Any) -> int:
    return counts["read"] + counts["written"]


def _cell(counts: Any) -> str:
    return "" if counts is None else f"{_bytes(counts) / 1e6:.1f} MB, {counts['launches']}"


def main(arguments: list[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.traffic_table", description=description
    )
    for name, file in FILES.items():
        parser.add_argument(f"--{name}", type=Path, default=file, help="default: %(default)s")
    options = parser.parse_args(arguments)
    print("\n".join(rows({name: getattr(options, name) for name in FILES})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
