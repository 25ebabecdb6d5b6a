"""The benchmarks report what they measured, as they measured it: harness, report, peers and networks."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import types
import warnings

import cases
import pytest
import torch
from torch.utils import cpp_extension

from benchmarks import __main__ as command
from benchmarks import (
    convolutions,
    exercise,
    exported,
    harness,
    inversion,
    networks,
    options,
    peers,
    registry,
    report,
)
from posgan_fast import functional as PF

OURS = "posgan_fast cpu"


@pytest.fixture(autouse=True)
def forget_loaded_peers():
    """Remove peers from sys.modules, where the hooks that other files test would find them."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_peer_"):
            del sys.modules[name]


@pytest.mark.parametrize("op", cases.CASES)
def test_cases_know_their_output(op):
    for case in (*cases.CASES[op], *cases.SMALL[op]):
        if op == "upfirdn2d":
            x, f = torch.empty(case.shape, device="meta"), torch.empty((len(case.taps),) * 2, device="meta")
            y = torch.ops.posgan_fast.upfirdn2d(x, f, *list(case.arguments.values()), "reference")
            assert tuple(y.shape) == case.out_shape
    for resolution in (8, 64, 1024):
        found = [c for c in cases.CASES[op] if c.resolution == resolution]
        assert len(found) == (4 if op == "upfirdn2d" else 2)
    names = [c.name for c in (*cases.CASES[op], *cases.SMALL[op])]
    assert len(set(names)) == len(names)


def test_a_quick_run_prints_the_table_and_writes_its_files(tmp_path, capsys):
    argv = ["--quick", "--device", "cpu", "--case", "G skip up2 16", "toRGB 16", "--dtype", "float32", "bfloat16"]
    assert command.main([*argv, "--layout", "nchw", "channels_last", "--out", str(tmp_path), "--name", "run"]) == 0
    printed = capsys.readouterr().out
    for heading in ("upfirdn2d, float32, nchw", "bias_act, bfloat16, channels_last", "Geometric means", "is slower"):
        assert heading in printed
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["schema"] == 1
    assert {"date", "commit", "dirty", "torch", "cpu", "threads", "allocator", "build"} <= set(content["provenance"])
    assert content["cut"] == content["disagreements"] == []
    assert content["bandwidth"].keys() == {"copy", "clone"}
    assert len(content["rows"]) == 8
    for row in content["rows"]:
        assert {row["ours"], "reference", "copy", "clone"} <= set(row["timings"])
        assert all(t["low"] <= t["median"] <= t["high"] and t["rounds"] >= 3 for t in row["timings"].values())
        assert row["errors"]["reference"] == 0
    for s in content["summary"]:
        assert s["cases"] == 1 and set(s["faster_than"]) == {"reference"}
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_budget_cuts_and_says_so(tmp_path, capsys):
    argv = ["--quick", "--device", "cpu", "--case", "16", "--budget", "1e-9", "--out", str(tmp_path), "--name", "run"]
    assert command.main(argv) == 0
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["rows"] == [] and len(content["cut"]) == 6
    assert "Cut, no time left: 6 cases" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed_and_fails_the_run(tmp_path, capsys, monkeypatch):
    right = PF.bias_act

    def wrong(*args, backend, **kwargs):
        return right(*args, backend=backend, **kwargs) + (backend != "reference")

    monkeypatch.setattr(PF, "bias_act", wrong)
    argv = ["--quick", "--device", "cpu", "--op", "bias_act", "--case", "toRGB 16"]
    assert command.main([*argv, "--out", str(tmp_path), "--name", "run"]) == 1
    assert f"DISAGREES: {OURS} on bias_act toRGB 16" in capsys.readouterr().out
    assert json.loads((tmp_path / "run.json").read_text())["rows"][0]["timings"] == {}


def test_slower_cases_are_listed():
    rows = [
        _row("fast", 64, {"reference": (4.0, 3.9, 4.1), "nvlabs": (2.0, 1.9, 2.1)}),
        _row("close", 256, {"reference": (0.95, 0.8, 1.2)}),
        _row("slow", 256, {"reference": (2, 1.9, 2.1), "nvlabs": (0.5, 0.4, 0.6), "posgan_fast triton": (0.8,) * 3}),
    ]
    found = report.slower(rows)
    assert [(s.case, s.against, s.certain) for s in found] == [
        ("slow", "nvlabs", True), ("slow", "posgan_fast triton", True), ("close", "reference", False),
    ]  # fmt: skip
    assert found[0].ratio == pytest.approx(0.5)
    text = report.text(rows)
    assert "slow, float32, nchw: 2.00x the time of nvlabs\n" in text
    assert "close, float32, nchw: 1.05x the time of reference (within the spread of the samples)" in text
    assert report.text(rows[:1]).endswith("Cases where ours is slower\n  none")


def test_geometric_means_per_model():
    rows = [
        _row("a", 64, {"reference": (2.0, 2.0, 2.0)}),
        _row("b", 256, {"reference": (8.0, 8.0, 8.0), "nvlabs": (3.0, 3.0, 3.0)}),
        _row("c", 1024, {"reference": (4.0, 4.0, 4.0)}),
        _row("extra", 0, {"reference": (1.0, 1.0, 1.0)}),
    ]
    by_model = {s.model: s for s in report.summarise(rows)}
    assert set(by_model) == {"StyleGAN2-256", "StyleGAN2-1024", "all"}
    assert by_model["StyleGAN2-256"].faster_than == pytest.approx({"reference": 4.0, "nvlabs": 3.0})
    assert by_model["StyleGAN2-256"].counted == {"reference": 2, "nvlabs": 1}
    assert by_model["StyleGAN2-1024"].faster_than["reference"] == pytest.approx(4.0)
    assert by_model["all"].faster_than["reference"] == pytest.approx(64 ** (1 / 4))
    assert by_model["all"].of_copy == pytest.approx(0.5)


def test_rounds_are_interleaved_and_bounded():
    order = []
    samplers = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    harness.interleave(samplers, harness.Effort(rounds=4, least=1, seconds=60, sample=0))
    assert "".join(order) == "abcbcacababc"
    samples = harness.interleave(samplers, harness.Effort(rounds=1000, least=2, seconds=0, sample=0))
    assert {len(s) for s in samples.values()} == {2}


def test_a_contender_that_cannot_run_is_refused_with_its_reason():
    def broken(x):
        raise RuntimeError("no such kernel\nerror: too old")

    row = harness.Measurement("op", "case", (8,), 0, "float32", "nchw", 64, "ours", False)
    harness.measure(row, {"ours": torch.clone, "broken": broken}, torch.zeros(8), harness.QUICK)
    assert row.refused == {"broken": "RuntimeError: error: too old"}
    assert set(row.timings) == {"ours", "copy", "clone"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        harness.measure(row, {"ours": broken}, torch.zeros(8), harness.QUICK)


def test_allocator_settings_are_processes_of_their_own(monkeypatch):
    assert harness.allocator({}) == "as started"
    assert harness.allocator({"PATH": "", **harness.TUNED}) == "tuned"
    assert harness.allocator({"MALLOC_ARENA_MAX": "1"}) == "other"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert harness.allocator(harness.environment_for("as started")) == "as started"
    assert harness.allocator(harness.environment_for("tuned")) == "tuned"
    runs = []

    def run(command, env):
        runs.append((command, harness.allocator(env)))
        return subprocess.CompletedProcess(command, 4)

    monkeypatch.setattr(options.subprocess, "run", run)
    assert command.main(["--quick", "--both", "--op", "bias_act"]) == 4
    assert [setting for _, setting in runs] == ["tuned", "as started"]
    assert all(c[1:] == ["-m", "benchmarks", "--quick", "--op", "bias_act"] for c, _ in runs)


@pytest.mark.parametrize("name", peers.NAMES)
def test_peers_compute_the_same(name, request):
    path = request.getfixturevalue("peers")[name]
    (peer,) = peers.load({name: path}, torch.device("cpu"))
    compared = 0
    for op, small in cases.SMALL.items():
        for case in small:
            x, extra = case.tensors(torch.float32, torch.contiguous_format)
            if (call := peer.call(case, extra, x.dtype)) is not None:
                expected = getattr(PF, op)(x, extra, **case.arguments, backend="reference")
                torch.testing.assert_close(call(x), expected, rtol=1e-5, atol=1e-5)
                compared += 1
    assert compared >= 8


def test_a_peer_is_loaded_without_its_dependencies(tmp_path):
    """Stubs replace dnnlib and pkg_resources, and no module stays under the peer's names."""
    files = {
        "torch_utils/__init__.py": "",
        "torch_utils/custom_ops.py": "verbosity = 'brief'",
        "torch_utils/ops/__init__.py": "",
        "torch_utils/ops/upfirdn2d.py": (
            "from pkg_resources import parse_version\nfrom .. import custom_ops\n"
            "assert parse_version('2.0') < parse_version('10')\n"
            "def upfirdn2d(x, f, up, down, padding, flip_filter, gain, impl):\n    return impl, up, padding, gain\n"
        ),
        "torch_utils/ops/bias_act.py": (
            "import dnnlib\ntable = dnnlib.EasyDict(slope=3)\n"
            "def bias_act(x, b, act, alpha, gain, clamp, impl):\n    return x * table.slope\n"
        ),
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = {m: sys.modules.get(m) for m in ("dnnlib", "pkg_resources", "torch_utils")}
    (peer,) = peers.load(peers.parse([f"nvlabs={tmp_path}"]), torch.device("cpu"))
    assert {m: sys.modules.get(m) for m in before} == before
    case = cases.UPFIRDN2D_SMALL[0]
    assert peer.call(case, None, torch.float32)(torch.zeros(1)) == ("ref", [2, 2], [2, 1, 2, 1], 4)
    assert peer.call(cases.BIAS_ACT_SMALL[0], None, torch.float32)(torch.ones(1)).item() == 3


@pytest.mark.parametrize("entry", ["nvlabs=", "nvlabs=/nonexistent", "other=.", "nvlabs"])
def test_a_wrong_peer_is_told(entry, capsys):
    with pytest.raises(ValueError, match=f"--peer: expected .*, got '{entry}'"):
        peers.parse([entry])
    with pytest.raises(SystemExit) as stopped:
        command.main(["--quick", "--peer", entry])
    assert stopped.value.code == 2 and "--peer: expected" in capsys.readouterr().err


def test_a_checkout_is_complete_and_comes_once(tmp_path):
    (tmp_path / "torch_utils/ops").mkdir(parents=True)
    (tmp_path / "torch_utils/ops/upfirdn2d.py").touch()
    entry = f"nvlabs={tmp_path}"
    assert peers.parse([entry]) == peers.parse([str(tmp_path)], alone="nvlabs") == {"nvlabs": tmp_path}
    with pytest.raises(ValueError, match="expected a checkout with training/networks_stylegan2.py or .*, got 'nvlabs="):
        peers.parse([entry], networks=True)
    with pytest.raises(ValueError, match="expected nvlabs once, got"):
        peers.parse([entry, entry])
    with pytest.raises(ValueError, match="expected nvlabs=PATH, got 'rosinality=.'"):
        peers.parse(["rosinality=."], names=["nvlabs"])
    for load in (peers.nvlabs_networks, lambda path, device: peers.load({"nvlabs": path}, device)):
        with pytest.raises(SystemExit, match=f"--peer: expected a checkout that can be imported, got {tmp_path}: "):
            load(tmp_path, torch.device("cpu"))


def test_the_plugins_of_a_peers_networks_are_built_once_and_found(tmp_path, monkeypatch):
    """The checkout imports a plugin by name after torch built it; torch no longer makes it importable."""
    ops = (
        "import importlib, torch.utils.cpp_extension\n"
        "def _init():\n"
        "    torch.utils.cpp_extension.load(name=NAME, sources=[])\n"
        "    return importlib.import_module(NAME) is not None\n"
    )
    for name in ("training/__init__", "torch_utils/__init__", "torch_utils/ops/__init__", "dnnlib/__init__"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "training/networks_stylegan2.py").write_text("from torch_utils.ops import bias_act, upfirdn2d\n")
    for op in ("upfirdn2d", "bias_act"):
        (tmp_path / f"torch_utils/ops/{op}.py").write_text(f"NAME = 'plugin_of_{op}'\n{ops}")
    before = set(sys.modules)
    try:
        monkeypatch.setattr(cpp_extension, "load", lambda name, **options: types.ModuleType(name))
        found, note = peers.nvlabs_networks(tmp_path, torch.device("cuda"))
        assert note == "" and found.upfirdn2d._init() and found.bias_act._init()
        for name in set(sys.modules) - before:
            del sys.modules[name]

        def broken(name, **options):
            raise RuntimeError("error: no ninja")

        monkeypatch.setattr(cpp_extension, "load", broken)
        found, note = peers.nvlabs_networks(tmp_path, torch.device("cuda"))
        assert note == "RuntimeError: error: no ninja"
        assert found.upfirdn2d._init() is found.bias_act._init() is False
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_a_case_that_there_is_not_fails_and_names_those_there_are(tmp_path, capsys):
    for argv in (["--case", "nosuchcase"], ["--quick", "--op", "bias_act", "--case", "toRGB 16", "lrelu 1024"]):
        with pytest.raises(SystemExit) as failed:
            command.main([*argv, "--out", str(tmp_path)])
        assert failed.value.code == 2
        said = capsys.readouterr().err
        assert f"--case: no case of {'bias_act' if '--op' in argv else 'upfirdn2d, bias_act'} contains" in said
        assert repr(argv[-1]) in said and "toRGB 16" in said
    assert not list(tmp_path.iterdir())


def test_tf32_is_off_where_results_are_compared(monkeypatch):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert before == (False, False)  # in all tests
    for allowed in (True, False):
        with harness.tf32(allowed), warnings.catch_warnings(action="error"):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    seen = []
    monkeypatch.setattr(command, "_row", lambda *args: seen.append(torch.backends.cudnn.allow_tf32) or 1 / 0)
    with harness.tf32(True), pytest.raises(ZeroDivisionError):
        command.main(["--quick", "--device", "cpu", "--case", "toRGB 16"])
    assert seen == [False]


def test_contenders_of_a_case():
    case = cases.BIAS_ACT_SMALL[0]
    x, b = case.tensors(torch.float32, torch.contiguous_format)
    found = registry.contenders(case, x, b, [], compiled=True)
    assert [(c.name, c.kind) for c in found] == [
        (OURS, "ours"), (f"{OURS}, in place", "in place"), ("reference", "other"), ("reference, compiled", "other"),
    ]  # fmt: skip
    quick = registry.selected(cases.CASES, quick=True)
    assert {c.resolution for c in quick} == {16, 64}


def test_the_compiled_contender_is_the_definition(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for case in (*cases.UPFIRDN2D_SMALL[-3:], *cases.BIAS_ACT_SMALL[-3:]):
        x, extra = case.tensors(torch.float32, torch.contiguous_format)
        found = {c.name: c.make() for c in registry.contenders(case, x, extra, [], compiled=True)}
        torch.testing.assert_close(found[registry.COMPILED](x), found[registry.REFERENCE](x), rtol=0, atol=0)


def test_the_sanitized_program_covers_every_op(monkeypatch, capsys):
    monkeypatch.setattr(cases, "SMALL", {op: small[:2] for op, small in cases.SMALL.items()})
    assert exercise.main("cpu") == 0
    assert capsys.readouterr().out == "exercised 256 calls on cpu\n"


def _row(name, resolution, others):
    row = harness.Measurement("op", name, (1,), resolution, "float32", "nchw", 1000, OURS, False)
    everyone = {OURS: (1.0, 0.9, 1.1), "copy": (0.5,) * 3, "clone": (0.7,) * 3, **others}
    row.timings = {n: harness.Timing(*t, rounds=9, calls=1, clock="host") for n, t in everyone.items()}
    return row


def test_networks_are_compared_round_by_round(monkeypatch):
    times = {"ours": [1.0, 10.0, 3.0], "nvlabs": [2.0, 30.0, 3.0]}  # the speed of the machine changes
    calls = {name: functools.partial(torch.ones, 1) for name in times}
    names = {id(call): name for name, call in calls.items()}
    monkeypatch.setattr(networks, "_seconds", lambda call: times[names[id(call)]].pop(0))
    row = networks._measured("generator", "any", calls, 3)
    assert row.medians == {"ours": 3, "nvlabs": 3} and row.ratios == {"ours": 1, "nvlabs": 2}


def test_networks_run_and_write_what_they_measured(tmp_path):
    what = ["generator", "padding", "discriminator"]
    arguments = ["--what", *what, "--size", "16", "--rounds", "3", "--out", str(tmp_path), "--name", "small"]
    assert networks.main(arguments) == 0
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["generator"] * 2 + ["padding"] * 2 + ["discriminator"]
    assert set(rows[0]["medians"]) == set(rows[0]["ratios"]) == {"ours", "prepacked", "reference", "floor"}
    assert rows[0]["errors"]["ours"] < 1e-5 and rows[0]["errors"]["prepacked"] < 1e-5


def test_openvino_that_is_not_installed_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SystemExit, match="^--openvino: .*; it needs openvino, onnx and onnxscript$"):
        exported.openvino(torch.nn.Identity(), torch.zeros(1, 6, 512))
    with pytest.raises(SystemExit):
        networks.main(["--openvino"])
    assert "--openvino: expected --peer" in capsys.readouterr().err


def test_convolutions_run_and_write_what_they_measured(tmp_path):
    assert convolutions.main(["--quick", "--rounds", "2", "--out", str(tmp_path), "--name", "small"]) == 0
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["plain", "up", "down"]
    assert all(set(row["ratios"]) == {"unprepared", "torch"} and row["medians"]["sgemm"] > 0 for row in rows)


def test_inversion_is_measured_small(tmp_path, capsys):
    arguments = [
        "--quick",
        "--rounds",
        "2",
        "--size",
        "16",
        "--what",
        "encoder",
        "inversion",
        "optimisation",
        "training",
    ]
    assert inversion.main([*arguments, "--out", str(tmp_path), "--name", "small"]) == 0
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["encoder", "inversion", "optimisation", "training"]
    assert all(set(row["ratios"]) <= {inversion.MAPS} and row["medians"][inversion.OURS] > 0 for row in rows)
    assert "inversion, generator 16, N=1: ours " in capsys.readouterr().out
