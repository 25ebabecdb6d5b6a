"""Measures the rows that :mod:`benchmarks.networks_plan` plans, on a GPU or, in a dry run, small ones on the CPU.

The rows come in the order of their importance. The run stops at its limit of seconds, keeps what it measured and lists
what it left out; its JSON is written anew after every row. A contender that does not run is left out with its reason.
An error of ours fails the row, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import posgan_fast

from . import gpu_timing, harness, network_peers, networks_plan, roofline
from .gpu_timing import Clock, Timed
from .network_report import GRAPH, NVLABS, OURS, REFERENCE, GpuRow, gpu_line, plot, slower
from .network_works import Contender, Peers, Work, work
from .networks_plan import Budget, Case
from .traffic_rates import Gpu

ROW_SECONDS = 5.0  # rounds end after that


@dataclass
class Run:
    """The rows of a run so far, and what was cut or failed."""

    args: argparse.Namespace
    clock: Clock
    budget: Budget
    peers: Peers = field(default_factory=Peers)
    notes: list[str] = field(default_factory=list)
    rates: Gpu | None = None
    rows: list[GpuRow] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.say(text)
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Print what was found; numbers of a dry run must not pass for results."""
        print(f"dry run on the CPU, {text}" if self.args.dry_run else text, flush=True)


def main(args: argparse.Namespace, paths: dict[str, Path]) -> int:
    """Measure all that the options ask for; returns 1 if ours failed in a row."""
    clock: Clock = gpu_timing.Host() if args.dry_run else gpu_timing.Cuda()
    run = Run(args, clock, Budget(args.seconds))
    nvlabs, why = network_peers.nvlabs_module(paths.get(NVLABS), clock.device)
    if why:
        run.note(f"{NVLABS} runs on its plain torch path: {why}")
    run.peers = Peers(paths, nvlabs)
    if args.one:
        row = attempt(run, Case(**json.loads(args.one)))
        harness.write_json(args.out / f"{args.name}.json", asdict(row))
        return 0
    _measure_rates(run)
    info = {**harness.provenance(clock.device), "posgan_fast": posgan_fast.__version__}
    content = measure_all(run, networks_plan.planned(args, paths), info)
    for name in run.cut:
        run.say(f"cut, no time was left: {name}")
    for what, case, name in content["slower"]:
        run.say(f"slower than {name}: {what} {case}")
    plot(run.rows, content, args.out / f"{_name(args)}.png")
    return 1 if content["failed"] else 0


def measure_all(run: Run, cases: Sequence[Case], info: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one case after the other while time is left; returns the content of the JSON, written after each."""
    write(run, info)
    broken = False
    for case in cases:
        if broken or not run.budget.allows(case):
            run.cut.append(f"{case.what} {case.name}")
            continue
        row = compiled_row(run, case) if case.what == "compiled" else attempt(run, case)
        run.say(gpu_line(row))
        run.rows.append(row)
        try:
            run.clock.settle()
        except Exception as error:  # no call runs on a GPU after such an error
            broken = True
            row.failed = row.failed or gpu_timing.reason(error)
            run.note(f"the GPU takes no more calls: {gpu_timing.reason(error)}")
        write(run, info)
    return write(run, info)


def attempt(run: Run, case: Case) -> GpuRow:
    """Measure a case, or say why not."""
    row = GpuRow(case.what, case.name, batch=case.batch)
    try:
        made = work(case, run.clock.device, run.peers, run.args.dry_run)
        with gpu_timing.precision(case.precision, benchmark=made.grad), torch.set_grad_enabled(made.grad):
            if case.what == "launches":
                count_launches(row, made, run.clock)
            else:
                left = max(0.0, min(ROW_SECONDS, run.budget.left))
                measure(row, made, run.clock, harness.Effort(run.args.rounds, 2, left, 0.0))
        predict(row, made, run.rates, case.precision)
    except Exception as error:
        refuse(row, OURS, error)
    return row


def measure(row: GpuRow, made: Work, clock: Clock, effort: harness.Effort) -> None:
    """Time the contenders in interleaved rounds, eager calls and replays."""
    base = _base(row, made, clock)
    samplers: dict[str, Any] = {}
    for name, make in made.contenders.items():
        timed = _prepared(row, name, make, clock, base)
        if timed is None:
            continue
        samplers[name] = timed.eager
        if timed.graph is not None:
            samplers[name + GRAPH] = timed.graph
        if timed.refused:
            row.refused[name + GRAPH] = timed.refused
    row.compile_seconds = dict(made.compile_seconds)
    if OURS in samplers:
        summarise(row, harness.interleave(samplers, effort))


def summarise(row: GpuRow, samples: Mapping[str, Sequence[float]]) -> None:
    """Enter medians, quartiles and ratios: a graph over our graph if there is one, an eager call over our eager one."""
    for name, times in samples.items():
        rival = OURS + GRAPH if name.endswith(GRAPH) and OURS + GRAPH in samples else OURS
        row.medians[name] = statistics.median(times)
        row.ratios[name] = statistics.median(t / ours for t, ours in zip(times, samples[rival], strict=True))
        low, _, high = statistics.quantiles(times, n=4)
        row.quartiles[name] = (low, high)


def count_launches(row: GpuRow, made: Work, clock: Clock) -> None:
    """Count the kernels of a call of ours and of NVlabs'."""
    for name in (OURS, NVLABS):
        if name not in made.contenders:
            continue
        try:
            call = made.contenders[name]().call
            call()  # compile, load and choose kernels first
        except Exception as error:
            refuse(row, name, error)
            continue
        try:
            row.launches[name] = clock.launches(call)
        except Exception as error:  # the profiler's
            row.refused[f"launches of {name}"] = gpu_timing.reason(error)


def predict(row: GpuRow, made: Work, rates: Gpu | None, precision: str) -> None:
    """Enter the launches of ours that are counted without a GPU, and our share of the roofline."""
    if made.counted is None or row.failed:
        return
    try:
        traffic = roofline.counted(made.counted)
    except Exception as error:  # the measured times are worth keeping
        row.refused["prediction"] = gpu_timing.reason(error)
        return
    row.counted_launches = traffic.launches
    measured = row.medians.get(OURS + GRAPH, row.medians.get(OURS))
    if rates is not None and measured is not None:
        row.predicted = roofline.seconds(traffic, rates, precision)
        row.roofline = row.predicted / measured


def refuse(row: GpuRow, name: str, error: Exception) -> None:
    """Enter why a contender was not measured; an error of ours fails the row, except where the memory is full."""
    if name == OURS and not gpu_timing.is_out_of_memory(error):
        row.failed = gpu_timing.reason(error)
    else:
        row.refused[name] = gpu_timing.reason(error)


def compiled_row(run: Run, case: Case) -> GpuRow:
    """Measure a compilation in a process of its own, which is stopped at its limit."""
    row = GpuRow(case.what, case.name, batch=case.batch)
    limit = min(networks_plan.LIMITS[case.kind], run.budget.left)
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        command = [sys.executable, "-m", "benchmarks.networks", "--one", json.dumps(asdict(case))]
        command += ["--rounds", str(run.args.rounds), "--out", folder, "--name", "row"]
        command += [part for name, path in run.peers.paths.items() for part in ("--peer", f"{name}={path}")]
        output = _output_within([*command, *["--dry-run"] * run.args.dry_run], limit)
        name = f"{case.peer}, compiled"
        try:
            return GpuRow(**json.loads((Path(folder) / "row.json").read_text()))
        except OSError:
            last = (output or "").strip().rpartition("\n")[2]
            row.refused[name] = f"stopped after {limit:.0f} s" if output is None else f"its process ended: {last[:300]}"
    return row


def write(run: Run, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write what was found so far; returns it."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(run.args).items() if k not in _NO_SETTINGS}
    content = {
        "schema": 2,
        "provenance": dict(info),
        "settings": settings,
        "peers": {name: harness.commit(path) for name, path in run.peers.paths.items()},
        "notes": run.notes,
        "rates": None if run.rates is None else run.rates._asdict(),
        "rows": [asdict(row) for row in run.rows],
        "slower": slower(run.rows),
        "failed": [f"{row.what} {row.case}: {row.failed}" for row in run.rows if row.failed],
        "cut": run.cut,
        "seconds": round(run.budget.spent, 1),
    }
    harness.write_json(run.args.out / f"{_name(run.args)}.json", content)
    return content


_NO_SETTINGS = ("peer", "out", "one", "peak")


def _name(args: argparse.Namespace) -> str:
    return args.name or ("networks-dry-run" if args.dry_run else "networks-cuda")


def _measure_rates(run: Run) -> None:
    side, effort = (64, harness.QUICK) if run.args.dry_run else (roofline.SIDE, harness.FULL)
    try:
        run.rates = roofline.measured_rates(run.clock.device, side, effort)
    except Exception as error:
        run.note(f"no share of the roofline: {gpu_timing.reason(error)}")


def _base(row: GpuRow, made: Work, clock: Clock) -> torch.Tensor | None:
    """Return the result that others are compared with, or None where there is none."""
    if made.base is None:
        return None
    try:
        with gpu_timing.precision("float32"), torch.no_grad():
            return made.base().float()
    except Exception as error:
        row.refused[f"comparison with {REFERENCE}"] = gpu_timing.reason(error)
    clock.settle()
    return None


def _prepared(row: GpuRow, name: str, make: Any, clock: Clock, base: torch.Tensor | None) -> Timed | None:
    """Make a contender ready to be timed and enter its error; None if it does not run."""
    try:
        contender: Contender = make()
        timed = contender.prepare(clock)
        result = contender.call()
        if base is not None and isinstance(result, torch.Tensor) and result[:1].shape == base.shape:
            row.errors[name] = ((result[:1].float() - base).norm() / base.norm()).item()
        return timed
    except Exception as error:
        refuse(row, name, error)
    clock.settle()  # behind the except clause, whose error keeps the memory of the call
    return None


def _output_within(command: list[str], seconds: float) -> str | None:
    """Run a command, and return its output, or None if it was stopped after ``seconds``."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        log.seek(0)
        return log.read().decode(errors="replace")
