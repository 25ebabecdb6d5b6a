"""python -m benchmarks --base REV: compare the working tree with a git revision, or another checkout, call by call.

Each tree is built and imported from a folder of its own, and measured in a process of its own, in interleaved rounds.
The working tree's harness makes the calls of both, with public functions. A second process of the base shows the noise.
A case that is slower by more than the noise is measured again in new processes, and marked if it is slower again.
Environment variables apply to both trees: POSGAN_FAST_NATIVE=0 compares the pure Python packages, and
POSGAN_FAST_BACKEND=triton that backend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from . import ROOT, compare, harness, subjects
from .compare import AGAIN, BASE, HERE, Comparison
from .trees import Tree, TreeError, base_tree, note, working_tree

# Fewer rounds do not show the noise.
FULL = harness.Effort(rounds=25, least=9, seconds=10.0, sample=0.02)
QUICK = harness.Effort(rounds=9, least=5, seconds=0.5, sample=0.002)


def run(args: argparse.Namespace, plan: Sequence[subjects.Subject], device: torch.device) -> int:
    """Compare the trees on the calls of a plan, print the table and write it; returns the exit code.

    Args:
        args: the options of ``python -m benchmarks``.
        plan: the calls.
        device: the device of the calls.

    Raises:
        TreeError: a tree cannot be built or imported.
    """
    effort = QUICK if args.quick else FULL
    end = math.inf if args.budget is None else time.perf_counter() + args.budget
    with _terminable(), working_tree(device.type) as here:
        base = base_tree(args.base, device.type, native=bool(here.library))
        measure = _Measure(here, base, device, args.threads, effort)
        rows = measure(plan, end)
        floor = compare.limit(rows)
        for row in [row for row in rows if compare.exceeds(row, floor)]:
            for second in measure([row.subject], end):
                if second.clock == row.clock and second.timed:
                    compare.confirm(row, second, floor)
    content = {
        "schema": 1,
        "provenance": {**harness.provenance(device), "threads": measure.threads},
        "base": base.as_json(),
        "here": here.as_json(),
        "effort": asdict(effort),
        "noise": floor,
        "rows": [asdict(row) for row in rows],
        "disagreements": measure.disagreements,
    }
    _write(args, device, content, compare.text(rows, base.label, here.label))
    return 1 if measure.disagreements or any(row.status == compare.FAILS for row in rows) else 0


def _write(args: argparse.Namespace, device: torch.device, content: dict[str, Any], table: str) -> None:
    """Write the JSON and the table, and print one of them."""
    name = args.name or f"base-{device.type}-{harness.allocator().replace(' ', '-')}"
    harness.write_json(args.out / f"{name}.json", content)
    (args.out / f"{name}.txt").write_text(table + "\n")
    print(json.dumps(content, indent=1) if args.json else table)
    for line in content["disagreements"]:
        note(f"DISAGREES: {line}")
    note(f"wrote {args.out / name}.json and .txt")


class _Measure:
    """Measures calls in new processes, three at a time: the base, the working tree, and the base again."""

    def __init__(self, here: Tree, base: Tree, device: torch.device, threads: int | None, effort: harness.Effort):
        self.trees = {BASE: base, HERE: here, AGAIN: base}
        self.start = {"device": device.type, "threads": threads, "effort": asdict(effort)}
        self.effort = effort
        self.threads = 0
        self.disagreements: list[str] = []

    def __call__(self, plan: Sequence[subjects.Subject], end: float) -> list[Comparison]:
        """Compare some calls; those that would start after ``end`` are cut."""
        rows: list[Comparison] = []
        with contextlib.ExitStack() as stack:
            processes = {name: stack.enter_context(_Process(name, tree)) for name, tree in self.trees.items()}
            for process in processes.values():
                try:
                    self.threads = process.ask("start", **self.start)["threads"]
                except _Failed as error:
                    raise TreeError(f"{process.tree.name} cannot be measured: {error}") from None
            for count, subject in enumerate(plan, 1):
                if time.perf_counter() > end:
                    rows.append(Comparison(subject, status=compare.CUT))
                    continue
                note(f"[{count}/{len(plan)}] {subject}")
                rows += self._compare(subject, processes)
        return rows

    def _compare(self, subject: subjects.Subject, processes: dict[str, _Process]) -> list[Comparison]:
        """The comparisons of a call by each clock, or a single one with the reason why a tree cannot run the call."""
        try:
            prepared = {name: processes[name].ask("prepare", **asdict(subject)) for name in (HERE, BASE, AGAIN)}
            difference = _relative(prepared[HERE]["values"], prepared[BASE]["values"])
            if not difference <= subjects.AGREE[subject.dtype]:
                self.disagreements.append(f"{subject}: relative L2 {difference:.1e} between here and the base")
            rows = []
            for clock in prepared[HERE]["clocks"]:
                if all(clock in of_one["clocks"] for of_one in prepared.values()):
                    samplers = {
                        name: partial(process.ask, "sample", clock=clock) for name, process in processes.items()
                    }
                    rows.append(compare.judge(subject, clock, harness.interleave(samplers, self.effort)))
            return rows
        except _Failed as error:
            status = compare.FAILS if error.process == HERE else compare.NEW
            return [Comparison(subject, status=status, note=str(error))]


class _Failed(Exception):
    """The reason why a worker did not answer a request."""

    def __init__(self, process: str, reason: str):
        super().__init__(reason)
        self.process = process


class _Process:
    """A worker that imports a tree; leaving the context ends it."""

    def __init__(self, name: str, tree: Tree):
        self.name, self.tree = name, tree

    def __enter__(self) -> _Process:
        path = [str(self.tree.folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"], cwd=self.tree.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: str, **more: Any) -> Any:
        """Send a request and return the answer.

        Raises:
            _Failed: the worker could not do what was asked.
            TreeError: the worker ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"request": request, **more}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise TreeError(f"the process of {self.tree.name} ended with code {self._process.wait()}, see above")
        reply = json.loads(line)
        if "error" in reply:
            raise _Failed(self.name, reply["error"])
        return reply["result"]


def _relative(found: list[float], expected: list[float]) -> float:
    """The relative L2 of two results; infinite if their sizes differ."""
    if len(found) != len(expected):
        return math.inf
    difference = math.dist(found, expected)
    return difference / (math.hypot(*expected) or 1.0)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
