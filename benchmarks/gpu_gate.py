"""python -m benchmarks.gpu_gate: run everything that needs a GPU, in one command, in nine minutes, without network.

The gate builds the native libraries into ``build/gate``; it installs nothing and writes only to ``build/`` and
``--out``. From there it runs the tests marked gpu, compute-sanitizer over the kernels of both GPU backends, and the
benchmarks of layers, networks, training and ops: correctness first, the least informative benchmarks last. A step that
fails or exceeds its time limit stops only the steps that need its results. Each step writes one JSON file;
``summary.json`` has the verdict and the environment; ``--tune`` packs all of them into one archive. Exit code 0: all
passed; 1: something failed; 3: nothing failed, but time ran out.

``--dry-run`` executes the same steps on the CPU, in five minutes (on a busy machine in up to 25): it collects the
tests, skips the sanitizer, measures small networks and runs the quick benchmarks. Set POSGAN_FAST_COMMIT in a checkout
without git history, so that the records name its commit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import ROOT, builds, gate_judges, harness, options
from .gate_judges import CUT, FAILED, PASSED, SKIPPED, shown

SCHEMA = 2
TOTAL = 520.0  # seconds, a margin under nine minutes
DRY_TOTAL = 1500.0  # seconds; a dry run holds no GPU, and the cores of its machine may be busy
BUILD, DRY_BUILD = 240, 900  # seconds
LEAST = 5.0  # seconds; no step begins with less
MARGIN = 20  # seconds between the last row of networks and the end of its step
STAGE = ROOT / "build" / "gate"
EXIT = {PASSED: 0, FAILED: 1, CUT: 3}
# The files with tests marked gpu; they import only packages that a bare GPU machine has.
TESTS = ("test_gpu.py", "test_gpu_networks.py", "test_gradfix.py", "test_integrations_families.py")
PARTS = 8  # test runs side by side; they spend most of their time compiling Triton kernels
# Packages that may be missing, and what they are needed for.
PACKAGES = {
    "pytest": "the tests",
    "triton": "the Triton backend",
    "matplotlib": "plots",
    **dict.fromkeys(("hypothesis", "scipy", "packaging"), "tests that need no GPU"),
}
# Names of our kernels as compute-sanitizer matches them: part of a mangled C++ name, or a whole name in Triton.
KERNELS = {"cuda": ("kns=posgan_fast",), "triton": ("kne=kernel", "kne=_streamed", "kne=_looped")}


@dataclass
class Step:
    """One part of the gate.

    ``commands`` takes a time limit in seconds and returns commands to run side by side; None skips the step, for the
    reason ``skip``. ``judge`` turns their exit code and output into a status and a record. ``needs`` names the steps
    that must have passed. ``share`` is the part of the time left that the step may take, as far as ``limit`` allows."""

    name: str
    limit: float
    commands: Callable[[float], list[list[str]]] | None
    judge: Callable[[int, str], gate_judges.Judgement]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path = STAGE
    skip: str = ""
    share: float = 1.0


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    options.peer_paths(parser, args.peer, networks=True)  # report a wrong path before the build
    if options.lacks_gpu(args.dry_run):
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        work = Path(name)
        out = work / "records" if args.tune else args.out.resolve()
        out.mkdir(exist_ok=True)
        try:
            total = DRY_TOTAL if args.dry_run else TOTAL
            return run(plan(args.dry_run, args.peer, args.tune, work), out, args.dry_run, work, total)
        finally:
            if args.tune:
                print(f"gpu-gate: wrote {shutil.make_archive(str(args.out / 'gpu-gate'), 'gztar', out)}")


def plan(dry_run: bool, peer: list[str], tune: bool, work: Path) -> list[list[Step]]:
    """The steps in order; the steps of an inner list run side by side.

    Args:
        dry_run: plan for the CPU.
        peer: NAME=PATH entries of checkouts to run beside ours.
        tune: also measure rows for the launch tables of both GPU backends.
        work: a folder where commands leave files for their judge.
    """
    asked = [part for entry in peer for part in ("--peer", _absolute(entry))]
    sanitizers = [_sanitizer(tool, backend, dry_run) for tool in ("memcheck", "racecheck") for backend in KERNELS]
    stages = [
        [_build("cpu", dry_run), _build("cuda", dry_run)], [_tests(dry_run, asked, work)], sanitizers,
        [_networks(dry_run, asked, tune, work)], [_benchmarks(dry_run, asked, tune, work)],
    ]  # fmt: skip
    return [*stages, [_tuning(dry_run, work)]] if tune else stages


def run(stages: Sequence[Sequence[Step]], out: Path, dry_run: bool, work: Path, total: float) -> int:
    """Run the steps within ``total`` seconds, write their records and the summary, and return the exit code."""
    begin = time.perf_counter()
    common = {"schema": SCHEMA, "dry_run": dry_run}
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    for name in missing:
        print(f"gpu-gate: {name} is not installed; needed for {PACKAGES[name]}", flush=True)
    environment = harness.provenance(torch.device("cpu" if dry_run else "cuda"))
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir(parents=True)
    records: dict[str, dict[str, Any]] = {}

    def finish(step: Step) -> dict[str, Any]:
        record = _attempt(step, records, total - (time.perf_counter() - begin))
        harness.write_json(out / f"{step.name}.json", {**common, **record})
        print(f"gpu-gate: {step.name}: {record['status']} {record['reason']} ({record['seconds']:.0f} s)", flush=True)
        return record

    for i, stage in enumerate(stages):
        with ThreadPoolExecutor() as pool:
            records |= {record["name"]: record for record in pool.map(finish, stage)}
        if i == 0:
            _stage([name.partition("-")[2] for name, record in records.items() if record["status"] == PASSED])
    if (work / "benchmarks.png").exists():
        shutil.copyfile(work / "benchmarks.png", out / "benchmarks.png")
    verdict = verdict_of([record["status"] for record in records.values()])
    seconds = round(time.perf_counter() - begin, 1)
    steps = {name: {k: r[k] for k in ("status", "reason", "seconds")} for name, r in records.items()}
    summary = {"verdict": verdict, "environment": environment, "missing": missing, "seconds": seconds, "steps": steps}
    harness.write_json(out / "summary.json", {**common, **summary})
    print(f"gpu-gate: {'dry run ' if dry_run else ''}{verdict} in {seconds} s, {out}")
    return EXIT[verdict]


def verdict_of(statuses: list[str]) -> str:
    return FAILED if FAILED in statuses else CUT if CUT in statuses else PASSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.gpu_gate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="the same steps on the CPU")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH",
        help="nvlabs=CHECKOUT or rosinality=CHECKOUT, to run beside ours",
    )  # fmt: skip
    parser.add_argument(
        "--tune", action="store_true",
        help="also measure rows for the launch tables, and write gpu-gate.tar.gz; the nine minutes stay, since the"
        " benchmarks get less of them",
    )  # fmt: skip
    parser.add_argument("--out", type=options.output_folder, default="out/gpu-gate", metavar="DIR")
    return parser


def _attempt(step: Step, records: dict[str, dict[str, Any]], left: float) -> dict[str, Any]:
    """The record of a step, which runs if it can, the steps that it needs passed, and ``left`` seconds suffice."""
    seconds = min(step.limit, step.share * left)
    lacking = [name for name in step.needs if records[name]["status"] != PASSED]
    if step.commands is None:
        return _record(step, SKIPPED, reason=step.skip)
    if lacking:
        return _record(step, CUT, reason=f"{lacking[0]} did not pass")
    if seconds < LEAST:
        return _record(step, CUT, reason="no time was left")
    return _execute(step, step.commands(seconds), seconds)


def _execute(step: Step, commands: list[list[str]], seconds: float) -> dict[str, Any]:
    """Run the commands of a step side by side, judge them and return the record."""
    print(f"gpu-gate: {step.name}, at most {seconds:.0f} s", flush=True)
    begin = time.perf_counter()
    code, outputs, late = _outputs(commands, step, seconds)
    status, result = step.judge(code, "".join(outputs))
    reason = result.pop("reason", "")
    tail = "\n".join(output[-4000 // len(outputs) :] for output in outputs)
    if late:
        status, reason = (FAILED if result.get("failed") else CUT), f"its time was up; {reason}"
    elif status == FAILED:
        print(tail[-3000:], flush=True)
    return _record(
        step, status, reason=reason, seconds=round(time.perf_counter() - begin, 1), exit_code=code,
        command=[shown(part) for part in commands[0]], output_tail=shown(tail), result=result,
    )  # fmt: skip


def _outputs(commands: list[list[str]], step: Step, seconds: float) -> tuple[int, list[str], bool]:
    """The first exit code other than 0, the output of each command, and whether one exceeded the limit.

    Each command is the leader of a process group, which is killed as a whole at the limit."""
    begin = time.perf_counter()
    late = False
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        environment = {**os.environ, **step.environment}
        processes = [
            subprocess.Popen(
                command, cwd=step.directory, env=environment, start_new_session=True, stdout=log,
                stderr=subprocess.STDOUT,
            )
            for command, log in zip(commands, logs, strict=True)
        ]  # fmt: skip
        for process in processes:
            try:
                process.wait(timeout=max(0.0, seconds - (time.perf_counter() - begin)))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                late = True
        for log in logs:
            log.seek(0)
        outputs = [log.read().decode(errors="replace") for log in logs]
    return next((process.returncode for process in processes if process.returncode), 0), outputs, late


def _record(step: Step, status: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"seconds": 0.0, "exit_code": None, "command": [], "output_tail": "", "result": {}}
    return {"name": step.name, "status": status, **empty, **more}


def _build(library: str, dry_run: bool) -> Step:
    folder = STAGE / "built" / library
    if dry_run and library == "cuda":
        return Step("build-cuda", 0, None, lambda code, output: (FAILED, {}), skip="no CUDA device")

    def commands(seconds: float) -> list[list[str]]:
        folder.mkdir(parents=True)
        return [builds.command(folder)]

    return Step(
        f"build-{library}", DRY_BUILD if dry_run else BUILD, commands,
        lambda code, output: gate_judges.build(code, folder, library), (),
        builds.environment(library), ROOT,
    )  # fmt: skip


def _tests(dry_run: bool, asked: list[str], work: Path) -> Step:
    """The tests marked gpu; a dry run only collects them."""
    files = [f"tests/{name}" for name in TESTS]
    pytest = [sys.executable, "-m", "pytest", *files, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if dry_run:
        return Step("tests", 120, lambda seconds: [[*pytest, "--collect-only"]], gate_judges.collection)
    reports = [work / f"junit-{part}.xml" for part in range(1, PARTS + 1)]
    runs = [[*pytest, *asked, f"--part={i}/{PARTS}", f"--junitxml={r}"] for i, r in enumerate(reports, 1)]
    return Step("tests", 150, lambda seconds: runs, lambda code, output: gate_judges.junit(code, reports))


def _networks(dry_run: bool, asked: list[str], tune: bool, work: Path) -> Step:
    """Layers, networks and training, most important rows first; the ops have the rest of the time."""
    written = ["--rounds", "2", "--dry-run"] if dry_run else []
    written += ["--out", str(work), "--name", "networks"]
    command = [sys.executable, "-m", "benchmarks.networks", *asked, *written]
    return Step(
        "networks", 180 if dry_run else TOTAL,
        lambda seconds: [[*command, "--seconds", str(max(5, int(seconds) - MARGIN))]],
        lambda code, output: gate_judges.networks(code, work / "networks.json"),
        ("build-cpu",) if dry_run else ("build-cuda",), share=1.0 if dry_run else 0.4 if tune else 0.6,
    )  # fmt: skip


def _benchmarks(dry_run: bool, asked: list[str], tune: bool, work: Path) -> Step:
    """The ops; on a GPU they need no build, since the Triton backend is measured in any case."""
    size = ["--device", "cpu", "--quick"] if dry_run else ["--device", "cuda", "--batch", "8"]
    if not dry_run:
        size += ["--dtype", "float16", "float32", "--layout", "nchw", "channels_last"]
    written = ["--out", str(work), "--name", "benchmarks"]
    command = [sys.executable, "-m", "benchmarks", "--as-started", *size, *asked, *written]
    return Step(
        "benchmarks", 90 if dry_run else 150 if tune else TOTAL,
        lambda seconds: [[*command, "--budget", str(max(10, int(seconds) - 30))]],
        lambda code, output: gate_judges.benchmarks(code, work / "benchmarks.json"),
        ("build-cpu",) if dry_run else (),
    )  # fmt: skip


def _tuning(dry_run: bool, work: Path) -> Step:
    """The launch tables, in all the time that is left; Triton's need no build."""
    found = work / "tune.json"
    command = [sys.executable, "-m", "benchmarks.tune", *["--dry-run"] * dry_run, str(found)]
    return Step(
        "tune", 90 if dry_run else TOTAL, lambda seconds: [[*command, str(int(0.9 * seconds))]],
        lambda code, output: gate_judges.file(code, found), ("build-cpu",) if dry_run else (),
    )  # fmt: skip


def _stage(built: Sequence[str]) -> None:
    """Lay out the package with the libraries just built, and tests and benchmarks beside it: they import this package,
    not the one in the sources."""
    ignore = shutil.ignore_patterns("__pycache__", "results", "lib")
    for name, target in (("posgan_fast", ""), ("kernels", "posgan_fast"), ("tests", ""), ("benchmarks", "")):
        shutil.copytree(ROOT / name, STAGE / target / name, ignore=ignore)
    shutil.copyfile(ROOT / "pyproject.toml", STAGE / "pyproject.toml")
    lib = STAGE / "posgan_fast" / "lib"
    lib.mkdir()
    record = {}
    for library in built:
        made = STAGE / "built" / library / "posgan_fast" / "lib"
        record[library] = json.loads((made / "build.json").read_text())[library]
        shutil.copy(made / f"libposgan_fast_{library}.so", lib)
    (lib / "build.json").write_text(json.dumps(record))


def _sanitizer(tool: str, backend: str, dry_run: bool) -> Step:
    """Run the kernels of a backend under a tool, which ignores the kernels of torch and of its libraries."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/local/cuda/bin"
    found = shutil.which("compute-sanitizer", path=path)
    skip = "no CUDA device" if dry_run else "" if found else "compute-sanitizer is not installed"
    if not skip and backend == "triton" and importlib.util.find_spec("triton") is None:
        skip = "triton is not installed"
    commands = None
    if not skip:
        command = [str(found), "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        option = _filter_option(str(found))
        command += [part for kernel in KERNELS[backend] for part in (option, kernel)]
        command += [sys.executable, "-m", "benchmarks.exercise", backend]
        commands = lambda seconds: [command]  # noqa: E731
    # Give every tensor an allocation of its own, so that the tool notices an access outside one.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    needs = ("build-cuda",) if backend == "cuda" else ()
    return Step(f"{tool}-{backend}", 100, commands, gate_judges.sanitizer, needs, environment, skip=skip)


def _filter_option(sanitizer: str) -> str:
    """The option that selects kernels by name; its own name depends on the release."""
    try:
        text = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    return next(
        (option for option in ("--kernel-name", "--kernel-regex", "--filter") if option in text), "--kernel-name"
    )


def _absolute(entry: str) -> str:
    """A NAME=PATH entry for a process with another working directory."""
    name, _, path = entry.partition("=")
    return f"{name}={Path(path).expanduser().resolve()}"


if __name__ == "__main__":
    sys.exit(main())
