"""The GPU gate plans its steps, stops those whose needs failed, judges the results, and runs on a bare machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT, gate_judges, gpu_gate

STEPS = [
    ["build-cpu", "build-cuda"], ["tests"],
    ["memcheck-cuda", "memcheck-triton", "racecheck-cuda", "racecheck-triton"], ["networks"], ["benchmarks"], ["tune"],
]  # fmt: skip


@pytest.fixture
def plans(tmp_path, monkeypatch):
    """The steps on a GPU and of a dry run, by name."""
    monkeypatch.setattr(gpu_gate.shutil, "which", lambda *args, **kwargs: "/nowhere/compute-sanitizer")
    monkeypatch.setattr(gpu_gate, "STAGE", tmp_path / "stage")
    plans = [gpu_gate.plan(dry, ["nvlabs=some/where"], True, tmp_path) for dry in (False, True)]
    assert [[[step.name for step in stage] for stage in plan] for plan in plans] == [STEPS] * 2
    return [{step.name: step for stage in plan for step in stage} for plan in plans]


def test_the_gate_has_the_same_steps_dry_and_wet(plans):
    wet, dry = plans
    on_gpu = {"build-cuda", *STEPS[2]}
    assert {name for name, step in dry.items() if step.skip == "no CUDA device"} == on_gpu
    assert not any(step.skip for step in wet.values())
    commands = {name: step.commands(100.0) for name, step in wet.items()}
    assert all("--peer" in run and run[run.index("--peer") + 1].startswith("nvlabs=/") for run in commands["tests"])
    for name in ("benchmarks", "networks"):
        assert commands[name][0][commands[name][0].index("--peer") + 1].startswith("nvlabs=/")
    assert "--quick" not in commands["benchmarks"][0] and "--quick" in dry["benchmarks"].commands(100.0)[0]
    assert "--collect-only" in dry["tests"].commands(100.0)[0]
    assert "--dry-run" not in commands["tune"][0] and "--dry-run" in dry["tune"].commands(100.0)[0]
    assert commands["tune"][0][-1] == "90"
    for step in (wet["networks"], dry["networks"]):
        (command,) = step.commands(100.0)
        assert command[-2:] == ["--seconds", "80"] and ("--dry-run" in command) == (step is dry["networks"])


def test_each_library_is_built_by_itself_and_with_time(plans):
    wet, dry = plans
    assert (wet["build-cpu"].limit, dry["build-cpu"].limit) == (240, 900)  # a machine without a GPU may be busy
    assert dry["build-cpu"].limit < gpu_gate.DRY_TOTAL
    for library, other in (("cpu", "CUDA"), ("cuda", "NATIVE")):
        step = wet[f"build-{library}"]
        own = {"CUDA": "NATIVE", "NATIVE": "CUDA"}[other]
        assert (step.environment[f"POSGAN_FAST_{own}"], step.environment[f"POSGAN_FAST_{other}"]) == ("1", "0")
        (command,) = step.commands(100.0)
        assert command[-1].endswith(f"built/{library}") and command[command.index("--egg-base") + 1] == command[-1]
    assert wet["build-cuda"].limit == 240


def test_what_depends_on_what(plans):
    wet, dry = plans
    assert {name: step.needs for name, step in wet.items() if step.needs} == {
        "memcheck-cuda": ("build-cuda",), "racecheck-cuda": ("build-cuda",), "networks": ("build-cuda",),
    }  # fmt: skip
    assert {name: step.needs for name, step in dry.items() if step.needs and not step.skip} == {
        "networks": ("build-cpu",), "benchmarks": ("build-cpu",), "tune": ("build-cpu",),
    }  # fmt: skip
    must = ("build-cuda", "tests", "memcheck-cuda")  # one after another; their neighbours run beside them
    assert sum(wet[name].limit for name in must) <= gpu_gate.TOTAL


def test_the_tests_are_files_that_a_bare_gpu_machine_can_collect(tmp_path):
    """Every file with a test marked gpu is among them, and none imports a package that such a machine may lack."""
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()}
    assert marked - {Path(__file__).name} == set(gpu_gate.TESTS)
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('hypothesis', 'scipy', 'packaging'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import pytest\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    files = [str(ROOT / "tests" / name) for name in gpu_gate.TESTS]
    options = ["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    command = [sys.executable, "-c", blocker, *files, *options, "-p", "no:cov"]
    whole = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-3000:]
    names = [line for line in whole.stdout.splitlines() if "::" in line]
    assert len(names) > 500 and len({name.partition("::")[0] for name in names}) == len(gpu_gate.TESTS)


def test_parts_share_the_tests_and_the_first_has_all_large_ones(pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))

    def item(name):
        marks = {"large"} if name.startswith("large") else set()
        return types.SimpleNamespace(name=name, get_closest_marker=marks.__contains__, add_marker=marks.add)

    names = [*(f"small {i}" for i in range(7)), *(f"large {i}" for i in range(3))]
    parts = []
    for part in ("1/3", "2/3", "3/3"):
        items = [item(name) for name in names]
        config = types.SimpleNamespace(getoption={"--part": part}.get)
        conftest.pytest_collection_modifyitems(config, items)
        parts.append([i.name for i in items])
    assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(names)
    assert set(names[7:]) < set(parts[0]) and all(parts)
    for wrong in ("0/3", "4/3", "1", "a/b"):
        config = types.SimpleNamespace(getoption={"--part": wrong}.get)
        with pytest.raises(pytest.UsageError, match="--part: expected I/N"):
            conftest.part_of(config)


def test_the_sanitizer_judges_our_kernels_alone(plans, monkeypatch):
    wet, _ = plans
    for tool in ("memcheck", "racecheck"):
        for backend in ("cuda", "triton"):
            (command,) = wet[f"{tool}-{backend}"].commands(100.0)
            assert command[1:3] == ["--tool", tool] and command[-2:] == ["benchmarks.exercise", backend]
            assert command[command.index("--report-api-errors") + 1] == "no"
            filters = [command[i + 1] for i, part in enumerate(command) if part == "--kernel-name"]
            assert filters == list(gpu_gate.KERNELS[backend])
    for text, option in (("--kernel-regex arg", "--kernel-regex"), ("--kernel-name arg", "--kernel-name")):
        done = subprocess.CompletedProcess([], 0, text)
        with monkeypatch.context() as patch:
            patch.setattr(gpu_gate.subprocess, "run", lambda *args, done=done, **kwargs: done)
            assert gpu_gate._filter_option("compute-sanitizer") == option


def test_the_names_of_the_kernels_are_those_in_the_sources():
    triton = set()
    for path in (ROOT / "kernels").glob("*.py"):
        text = path.read_text()
        launched = set(re.findall(r"(\w+)(?:\[\w+(?:\.\w+)*\])?\[\(.*\)?\]\($", text, re.MULTILINE))
        for name in launched:
            table = re.search(rf"^{name} = {{(.*)}}$", text, re.MULTILINE)
            triton |= set(re.findall(r": (\w+)", table[1])) if table else {name}
    assert triton == {kernel.removeprefix("kne=") for kernel in gpu_gate.KERNELS["triton"]}
    for path in (ROOT / "csrc").glob("*.cuh"):
        text = path.read_text()
        for kernel in re.finditer("__global__", text):
            before = text[: kernel.start()]
            opened = [m.start() for m in re.finditer("namespace posgan_fast", before)]
            assert opened, f"{path.name}: a kernel outside the namespace"


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Runs steps of Python code, (name, code[, limit[, needs]]), and returns exit code, verdict and statuses."""
    monkeypatch.setattr(gpu_gate, "_stage", lambda built: None)
    monkeypatch.setattr(gpu_gate, "STAGE", tmp_path / "stage")

    def judge(code, output):
        return (gpu_gate.PASSED if code == 0 else gpu_gate.FAILED), {"said": output.strip()}

    def step(name, code, limit=30.0, needs=()):
        commands = None if code is None else lambda seconds: [[sys.executable, "-c", code]]
        return gpu_gate.Step(name, limit, commands, judge, needs, {}, tmp_path, "no CUDA device")

    def run(*stages, total=100.0):
        made = [[step(*given) for given in stage] for stage in stages]
        code = gpu_gate.run(made, tmp_path, True, tmp_path, total)
        summary = json.loads((tmp_path / "summary.json").read_text())
        return code, summary["verdict"], {name: s["status"] for name, s in summary["steps"].items()}

    return run


SLEEP = "import time; time.sleep(60)"


def test_the_gate_runs_every_step_and_sums_up(gate, tmp_path):
    assert gate([("build", "print('hello')")], [("memcheck", None)]) == (
        0, "passed", {"build": "passed", "memcheck": "skipped"},
    )  # fmt: skip
    record = json.loads((tmp_path / "build.json").read_text())
    assert record["dry_run"] and record["result"] == {"said": "hello"} and record["command"][0] == "python"
    assert json.loads((tmp_path / "memcheck.json").read_text())["reason"] == "no CUDA device"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"commit", "date", "torch"} <= set(summary["environment"]) and isinstance(summary["missing"], list)


def test_what_fails_or_overruns_stops_only_what_needs_it(gate, tmp_path, monkeypatch):
    bad = "raise SystemExit(1)"
    assert gate([("build", "")], [("tests", bad)], [("benchmarks", "")]) == (
        1, "failed", {"build": "passed", "tests": "failed", "benchmarks": "passed"},
    )  # fmt: skip
    assert gate([("build", "")], [("tests", "")], total=1.0)[:2] == (3, "cut")
    monkeypatch.setattr(gpu_gate, "LEAST", 0.0)
    builds = [("build-cpu", ""), ("build-cuda", SLEEP, 0.5)]
    later = [[("tests", "")], [("networks", "", 30.0, ("build-cuda",))], [("ops", "", 30.0, ("build-cpu",))]]
    assert gate(builds, *later) == (
        3, "cut",
        {"build-cpu": "passed", "build-cuda": "cut", "tests": "passed", "networks": "cut", "ops": "passed"},
    )  # fmt: skip
    assert json.loads((tmp_path / "networks.json").read_text())["reason"] == "build-cuda did not pass"


def test_a_step_takes_its_share_of_the_time_that_is_left():
    asked = []

    def commands(seconds):
        asked.append(seconds)
        return [[sys.executable, "-c", ""]]

    step = gpu_gate.Step("networks", 60, commands, gate_judges.collection, directory=ROOT, share=0.5)
    for left in (100.0, 200.0):
        gpu_gate._attempt(step, {}, left)
    assert asked == [50.0, 60.0]
    assert gpu_gate._attempt(step, {}, 9.0)["reason"] == "no time was left"


def test_the_rows_of_networks_count_when_their_run_was_stopped(tmp_path):
    path = tmp_path / "networks.json"
    path.write_text(json.dumps({"rows": [{}, {}], "failed": [], "slower": [["layer", "a", "nvlabs"]], "cut": ["b"]}))
    for code, status in ((0, "passed"), (-9, "failed")):
        found, result = gate_judges.networks(code, path)
        assert (found, result["reason"]) == (status, "2 rows, 0 failed, 1 comparisons lost, 1 cut")
    assert gate_judges.networks(1, tmp_path / "none.json") == ("failed", {"reason": "no result, exit code 1"})


def test_steps_of_a_stage_run_side_by_side(gate, tmp_path):
    wait = (
        "import pathlib, sys, time\n"
        "mine, other = (pathlib.Path({folder!r}) / name for name in {names})\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)\n"
    )
    codes = [wait.format(folder=str(tmp_path), names=names) for names in (("a", "b"), ("b", "a"))]
    assert gate([("first", codes[0]), ("second", codes[1])])[1] == "passed"


def test_the_libraries_that_were_built_are_staged(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_gate, "STAGE", tmp_path)
    made = tmp_path / "built" / "cpu" / "posgan_fast" / "lib"
    made.mkdir(parents=True)
    (made / "libposgan_fast_cpu.so").touch()
    (made / "build.json").write_text('{"cpu": {"built": true}, "cuda": {"built": false}}')
    gpu_gate._stage(["cpu"])
    lib = tmp_path / "posgan_fast" / "lib"
    assert json.loads((lib / "build.json").read_text()) == {"cpu": {"built": True}}
    assert {path.name for path in lib.iterdir()} == {"build.json", "libposgan_fast_cpu.so"}
    for name in ("posgan_fast/backend.py", "posgan_fast/kernels/upfirdn2d.py", "tests/cases.py", "benchmarks/tune.py"):
        assert (tmp_path / name).is_file()
    assert gate_judges.build(0, tmp_path / "built" / "cpu", "cpu") == ("passed", {"built": True})
    assert gate_judges.build(0, tmp_path / "built" / "cpu", "cuda")[0] == "failed"
    assert gate_judges.build(1, tmp_path / "built" / "cpu", "cpu")[0] == "failed"
    assert gate_judges.build(-9, tmp_path / "nowhere", "cpu") == ("failed", {"reason": "no result, exit code -9"})


@pytest.mark.parametrize("tune", [False, True])
def test_a_run_with_tuning_writes_one_archive(tune, tmp_path, monkeypatch):
    def run(stages, out, dry_run, work, total):
        assert total == gpu_gate.DRY_TOTAL
        for name in ("summary", "tests", "tune"):
            gpu_gate.harness.write_json(out / f"{name}.json", {})
        return 3

    monkeypatch.setattr(gpu_gate, "run", run)
    assert gpu_gate.main(["--dry-run", "--out", str(tmp_path / "out"), *["--tune"] * tune]) == 3
    written = {path.name for path in (tmp_path / "out").iterdir()}
    if tune:
        assert written == {"gpu-gate.tar.gz"}
        with tarfile.open(tmp_path / "out" / "gpu-gate.tar.gz") as archive:
            written = {Path(member.name).name for member in archive if member.isfile()}
    assert written == {"summary.json", "tests.json", "tune.json"}


def test_the_gate_judges_reports(tmp_path):
    junit = tmp_path / "junit.xml"
    junit.write_text(
        "<testsuites><testsuite><testcase classname='t' name='a'/><testcase classname='t' name='b'>"
        "<failure message='off by one'/></testcase><testcase classname='t' name='c'><skipped message='no memory'/>"
        "</testcase></testsuite></testsuites>"
    )
    status, result = gate_judges.junit(1, [junit])
    assert (status, result["passed"], result["reason"]) == ("failed", 1, "1 passed, 1 failed, 1 skipped")
    assert result["failed"] == [{"test": "t::b", "message": "off by one"}]
    other = tmp_path / "other.xml"
    other.write_text("<testsuites><testcase classname='t' name='d'/></testsuites>")
    assert gate_judges.junit(0, [other])[0] == "passed"
    status, result = gate_judges.junit(0, [other, tmp_path / "none.xml"])
    assert (status, result["passed"]) == ("failed", 1)
    assert result["reason"].endswith("1 of 2 test runs without a report, exit code 0")
    junit.write_text("<testsuites><testcase classname='t' name='c'><skipped/></testcase></testsuites>")
    assert gate_judges.junit(0, [junit])[0] == "failed"  # nothing ran

    assert gate_judges.collection(0, "tests/test_gpu.py::test_a\ntests/test_gpu.py::test_b\n")[1]["collected"] == 2
    assert gate_judges.collection(5, "no tests collected")[0] == "failed"

    ran = "exercised 9 calls on cuda\n"
    assert gate_judges.sanitizer(0, ran + "========= ERROR SUMMARY: 0 errors\n")[0] == "passed"
    hazards = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"
    assert gate_judges.sanitizer(0, ran + hazards.format(0, 0))[0] == "passed"
    assert gate_judges.sanitizer(9, ran + hazards.format(10, 10))[0] == "failed"
    assert gate_judges.sanitizer(9, "========= Invalid write\n========= ERROR SUMMARY: 1 error\n")[0] == "failed"
    assert gate_judges.sanitizer(0, "========= ERROR SUMMARY: 0 errors\n")[0] == "failed"  # nothing ran
    assert gate_judges.sanitizer(1, "========= Error: Device not supported\n")[0] == "skipped"


def test_the_gate_needs_a_device_or_a_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_gate.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["foo=/x", "nvlabs=/x", "nvlabs"])
def test_a_wrong_peer_is_told_before_the_build(entry, capsys, monkeypatch):
    monkeypatch.setattr(gpu_gate, "run", lambda *args: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        gpu_gate.main(["--dry-run", "--peer", entry])
    assert stopped.value.code == 2 and "error: --peer: expected " in capsys.readouterr().err


@pytest.mark.parametrize(("wish", "dry"), [("1", True), ("0", False), ("", False)])
def test_make_takes_zero_for_no(wish, dry):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    command = ["make", "--dry-run", "gpu-gate", f"DRY_RUN={wish}", "PYTHON=python"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert ("benchmarks.gpu_gate --dry-run" in shown) == dry and "-m benchmarks.gpu_gate" in shown
