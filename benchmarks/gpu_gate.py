"""python -m benchmarks.gpu_gate: everything that needs a GPU, in one command, within nine minutes, without network.

Builds the native libraries into ``build/gate`` (nothing is installed, nothing outside ``build/`` and ``--out``
changes), then, from there, runs the tests marked gpu, compute-sanitizer over the CUDA kernels, and the benchmarks of
layers, generators and ops. Each step writes one JSON file; ``summary.json`` has the verdict and the environment. Every
step runs even if one before it failed, unless the build did. Exit code 0: all passed; 1: something failed; 3: nothing
failed, but time ran out.

``--dry-run`` does the same on the CPU, in two minutes: the tests are collected, the sanitizer is skipped, the
benchmarks are the quick ones. A checkout without its git history can tell its commit by POSGAN_FAST_COMMIT.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import ROOT, harness, peers

SCHEMA = 1
TOTAL = 520.0  # seconds, a margin under nine minutes
STAGE = ROOT / "build" / "gate"
PASSED, FAILED, SKIPPED, CUT = "passed", "failed", "skipped", "cut"
EXIT = {PASSED: 0, FAILED: 1, CUT: 3}


@dataclass
class Step:
    """One part of the gate.

    ``command`` gets the seconds it may take; without one the step is skipped, for the reason ``skip``. ``judge`` turns
    exit code and output into a status and what is worth keeping."""

    name: str
    limit: float
    command: Callable[[float], list[str]] | None
    judge: Callable[[int, str], tuple[str, dict[str, Any]]]
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path = STAGE
    skip: str = ""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.exercise:
        return exercise(args.exercise)
    if not args.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; --dry-run executes the same steps on the CPU", file=sys.stderr)
        return 2
    peers.parse(args.peer)  # a wrong path is told before the build
    args.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="gate-"))
    try:
        return run(plan(args.dry_run, args.peer, args.tune, work), args.out.resolve(), args.dry_run, work)
    finally:
        shutil.rmtree(work)


def plan(dry_run: bool, peer: list[str], tune: bool, work: Path) -> list[Step]:
    """The steps, the build first. ``work`` is a folder for what passes between a step's command and its judge."""
    python = sys.executable
    asked = [part for entry in peer for part in ("--peer", _absolute(entry))]
    build = Step(
        "build", 100,
        lambda seconds: [python, "setup.py", "-q", "build_py", "--build-lib", str(STAGE)],
        _judge_build, _build_environment(dry_run), ROOT,
    )  # fmt: skip
    junit = work / "junit.xml"
    pytest = [python, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if not dry_run and importlib.util.find_spec("xdist"):
        pytest += ["-n", "8"]  # most of the time is Triton compiling
    if dry_run:
        tests = Step("tests", 60, lambda seconds: [*pytest, "--collect-only"], _judge_collection)
    else:
        tests = Step(
            "tests", 130, lambda seconds: [*pytest, f"--junitxml={junit}", *asked], lambda c, o: _judge_junit(c, junit)
        )  # fmt: skip
    size = ["--device", "cpu", "--quick"] if dry_run else ["--device", "cuda", "--batch", "8"]
    if not dry_run:
        size += ["--dtype", "float16", "float32", "--layout", "nchw", "channels_last"]
    what = ["--what", "layer", "--rounds", "2"] if dry_run else ["--what", "layer", "generator", "--size", "256"]
    nvlabs = [part for entry in asked if entry.startswith("nvlabs=") for part in ("--peer", entry.partition("=")[2])]
    networks = Step(
        "networks", 60,
        lambda seconds: [
            python, "-m", "benchmarks.networks", *what, *nvlabs, "--out", str(work), "--name", "networks",
        ],
        lambda code, output: _judge_file(code, work / "networks.json"),
    )  # fmt: skip
    benchmarks = Step(
        "benchmarks", 40 if dry_run else 150 if tune else TOTAL,
        lambda seconds: [
            python, "-m", "benchmarks", "--as-started", *size, *asked,
            "--budget", str(max(10, int(seconds) - 30)), "--out", str(work), "--name", "benchmarks",
        ],
        lambda code, output: _judge_benchmarks(code, work / "benchmarks.json"),
    )  # fmt: skip
    steps = [build, tests, *(_sanitizer(tool, dry_run) for tool in ("memcheck", "racecheck")), networks, benchmarks]
    if tune:
        found = work / "tune.json"
        skip = "no CUDA device" if dry_run else ""
        tuning = [python, "-m", "benchmarks.tune", str(found)]
        command = None if dry_run else lambda seconds: [*tuning, str(int(0.9 * seconds))]
        steps.append(Step("tune", 120, command, lambda code, output: _judge_file(code, found), skip=skip))
    return steps


def run(steps: list[Step], out: Path, dry_run: bool, work: Path, total: float = TOTAL) -> int:
    """Run the steps within ``total`` seconds, write their records and the summary, and return the exit code."""
    begin = time.perf_counter()
    common = {"schema": SCHEMA, "dry_run": dry_run}
    environment = harness.provenance(torch.device("cpu" if dry_run else "cuda"))
    shutil.rmtree(STAGE, ignore_errors=True)
    records: list[dict[str, Any]] = []
    broken = False
    for step in steps:
        seconds = min(step.limit, total - (time.perf_counter() - begin))
        if broken:
            record = _record(step, CUT, reason="the build failed")
        elif step.command is None:
            record = _record(step, SKIPPED, reason=step.skip)
        elif seconds < 5:
            record = _record(step, CUT, reason="no time was left")
        else:
            record = _execute(step, seconds)
        if step.name == "build":
            broken = record["status"] != PASSED
            if not broken:
                _stage()
        records.append(record)
        harness.write_json(out / f"{step.name}.json", {**common, **record})
        print(f"gpu-gate: {step.name}: {record['status']} {record['reason']} ({record['seconds']:.0f} s)", flush=True)
    if (work / "benchmarks.png").exists():
        shutil.copyfile(work / "benchmarks.png", out / "benchmarks.png")
    verdict = verdict_of([r["status"] for r in records])
    summary = {
        **common,
        "verdict": verdict,
        "environment": environment,
        "seconds": round(time.perf_counter() - begin, 1),
        "steps": {r["name"]: {k: r[k] for k in ("status", "reason", "seconds")} for r in records},
    }
    harness.write_json(out / "summary.json", summary)
    print(f"gpu-gate: {'dry run ' if dry_run else ''}{verdict} in {summary['seconds']} s, {out}")
    return EXIT[verdict]


def verdict_of(statuses: list[str]) -> str:
    return FAILED if FAILED in statuses else CUT if CUT in statuses else PASSED


def exercise(backend: str) -> int:
    """Every kernel on small cases, forward and two derivatives, few launches each: what the sanitizer watches."""
    import cases

    from posgan_fast import functional as PF

    device = "cuda" if backend in ("cuda", "triton") else "cpu"
    count = 0
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            for op, small in cases.SMALL.items():
                for case in small:
                    x, extra = (None if t is None else t.to(device) for t in case.tensors(dtype, layout))
                    assert x is not None
                    x.requires_grad_()
                    y = getattr(PF, op)(x, extra, **case.arguments, backend=backend)
                    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
                    if dx.requires_grad:
                        torch.autograd.grad(dx, x, torch.ones_like(dx), allow_unused=True)
                    count += 1
            count += _exercise_layers(dtype, layout, device, backend)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"exercised {count} calls on {backend}")
    return 0


def _exercise_layers(dtype: torch.dtype, layout: torch.memory_format, device: str, backend: str) -> int:
    """Style layers with everything that their prologue and epilogue can do; returns how many."""
    from posgan_fast import functional as PF

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    for up, side in ((1, 9), (2, 18)):
        x = randn(2, 20, 9, 9).contiguous(memory_format=layout).requires_grad_()
        given: dict[str, Any] = dict(
            up=up, padding=1, pad_map=randn(2, 20 if up == 1 else 12, 23, 24), noise=randn(2, 1, side, side),
            resample_filter=PF.setup_filter([1, 3, 3, 1], device=device), bias=randn(12), act="lrelu", clamp=1.0,
            backend=backend,
        )  # fmt: skip
        weight, styles = randn(12, 20, 3, 3), randn(2, 20)
        with torch.no_grad():
            PF.modulated_conv2d(x, weight, styles, **given)
        y = PF.modulated_conv2d(x, weight, styles, **given)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        torch.autograd.grad(dx, x, torch.ones_like(dx), allow_unused=True)
        z = PF.prologue2d(x, padding=2, mode="reflect", encode="spe", join="concat", channels=8, backend=backend)
        torch.autograd.grad(z.sum(), x)
    return 6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_gate", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="the same steps on the CPU")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="checkout to run beside ours")
    parser.add_argument("--tune", action="store_true", help="also measure every row of the Triton launch tables")
    parser.add_argument("--out", type=Path, default=Path("out/gpu-gate"), metavar="DIR")
    parser.add_argument("--exercise", metavar="BACKEND", help=argparse.SUPPRESS)
    return parser


def _execute(step: Step, seconds: float) -> dict[str, Any]:
    """Run a step's command, in a process group of its own so that nothing outlives its limit."""
    assert step.command is not None
    command = step.command(seconds)
    print(f"gpu-gate: {step.name}, at most {seconds:.0f} s", flush=True)
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=step.directory, env={**os.environ, **step.environment}, start_new_session=True,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code, late = process.wait(timeout=seconds), False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, late = process.wait(), True
        log.seek(0)
        output = log.read().decode(errors="replace")
    status, result = step.judge(code, output)
    reason = result.pop("reason", "")
    if late:
        status, reason = (FAILED if status == FAILED and result.get("failed") else CUT), "its time was up"
    elif status == FAILED:
        print(output[-3000:], flush=True)
    return _record(
        step, status, reason=reason, seconds=round(time.perf_counter() - begin, 1), exit_code=code,
        command=[_shown(part) for part in command], output_tail=_shown(output[-4000:]), result=result,
    )  # fmt: skip


def _record(step: Step, status: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"seconds": 0.0, "exit_code": None, "command": [], "output_tail": "", "result": {}}
    return {"name": step.name, "status": status, **empty, **more}


def _stage() -> None:
    """Tests and benchmarks beside the package just built, so that they import it and not the sources."""
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, STAGE / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copyfile(ROOT / "pyproject.toml", STAGE / "pyproject.toml")


def _build_environment(dry_run: bool) -> dict[str, str]:
    environment = {"POSGAN_FAST_NATIVE": "1", "POSGAN_FAST_CUDA": "0" if dry_run else "1"}
    if not dry_run and torch.cuda.is_available():
        environment["POSGAN_FAST_CUDA_ARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    return environment


def _sanitizer(tool: str, dry_run: bool) -> Step:
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/local/cuda/bin"
    found = shutil.which("compute-sanitizer", path=path)
    skip = "no CUDA device" if dry_run else "" if found else "compute-sanitizer is not installed"
    command = [str(found), "--tool", tool, "--error-exitcode", "9", sys.executable]
    command += ["-m", "benchmarks.gpu_gate", "--exercise", "cuda"]
    # every tensor an allocation of its own, so that a step outside one is seen
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, 65, None if skip else lambda seconds: command, _judge_sanitizer, environment, skip=skip)


def _judge_build(code: int, output: str) -> tuple[str, dict[str, Any]]:
    try:
        record = json.loads((STAGE / "posgan_fast" / "lib" / "build.json").read_text())
    except (OSError, json.JSONDecodeError):
        record = {}
    kept = {library: {k: v for k, v in entry.items() if k != "remedy"} for library, entry in record.items()}
    return (PASSED if code == 0 and record else FAILED), kept


def _judge_collection(code: int, output: str) -> tuple[str, dict[str, Any]]:
    collected = sum("::" in line for line in output.splitlines())
    return (PASSED if code == 0 and collected else FAILED), {"collected": collected, "reason": f"{collected} collected"}


def _judge_junit(code: int, junit: Path) -> tuple[str, dict[str, Any]]:
    """Counts, and the name and first line of whatever did not pass."""
    try:
        cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return FAILED, {"reason": f"no test report, exit code {code}"}
    result: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for case in cases:
        bad = [child for child in case if child.tag in ("failure", "error")]
        gone = [child for child in case if child.tag == "skipped"]
        name = f"{case.get('classname')}::{case.get('name')}"
        if bad or gone:
            text = (bad or gone)[0].get("message") or ""
            result["failed" if bad else "skipped"].append({"test": name, "message": _shown(text.strip()[:300])})
        else:
            result["passed"] += 1
    good = code == 0 and result["passed"] > 0
    counts = f"{result['passed']} passed, {len(result['failed'])} failed, {len(result['skipped'])} skipped"
    return (PASSED if good else FAILED), {**result, "reason": counts}


def _judge_sanitizer(code: int, output: str) -> tuple[str, dict[str, Any]]:
    lines = [line.strip("= \n") for line in output.splitlines() if line.startswith("=========")]
    verdict = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    if "Device not supported" in output:
        return SKIPPED, {"reason": "compute-sanitizer does not support this device here", "findings": lines[:20]}
    clean = code == 0 and "exercised" in output and any(f" 0 {what}" in verdict for what in ("errors", "hazards"))
    return (PASSED if clean else FAILED), {"reason": verdict, "findings": [] if clean else lines[:60]}


def _judge_benchmarks(code: int, path: Path) -> tuple[str, dict[str, Any]]:
    status, result = _judge_file(code, path)
    beaten, cut = len(result.get("slower", [])), len(result.get("cut", []))
    if status == PASSED:
        result["reason"] = f"{len(result['rows'])} cases, {beaten} comparisons lost, {cut} cut"
    return status, result


def _judge_file(code: int, path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return (PASSED if code == 0 else FAILED), json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return FAILED, {"reason": f"no result, exit code {code}"}


def _absolute(entry: str) -> str:
    """NAME=PATH for a process with another working directory."""
    name, _, path = entry.partition("=")
    return f"{name}={Path(path).expanduser().resolve()}"


def _shown(text: str) -> str:
    """Without this machine's paths."""
    for path, short in ((sys.executable, "python"), (STAGE, "."), (ROOT, "."), (tempfile.gettempdir(), "$TMP")):
        text = text.replace(str(path), short)
    return text


if __name__ == "__main__":
    sys.exit(main())
