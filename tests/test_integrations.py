"""The hooks: what they recognise, and that they leave nothing behind; whole programs under them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from foreign import FIXTURES, SCRIPTS, hooked, is_ours, python

import posgan_fast
from posgan_fast import integrations
from posgan_fast.integrations import standins
from posgan_fast.integrations.engine import Engine

# Recognition


def test_modules_are_patched_as_they_are_imported(package):
    package("nv")
    with posgan_fast.patch() as report:
        assert sys.meta_path[0].__class__.__module__ == "posgan_fast.integrations.engine"
        names = ("upfirdn2d", "bias_act", "conv2d_gradfix", "grid_sample_gradfix", "fma")
        modules = [importlib.import_module(f"torch_utils.ops.{name}") for name in names]
    patched = {f"{entry.module}.{entry.attribute}" for entry in report.patched if entry.family == "nvlabs"}
    assert patched == {
        "torch_utils.custom_ops.get_plugin",
        "torch_utils.ops.upfirdn2d.upfirdn2d",
        "torch_utils.ops.bias_act.bias_act",
        "torch_utils.ops.conv2d_gradfix.conv2d",
        "torch_utils.ops.conv2d_gradfix.conv_transpose2d",
        "torch_utils.ops.grid_sample_gradfix.grid_sample",
        "torch_utils.ops.fma.fma",
    }
    for module in modules:
        assert type(module.__loader__).__module__.startswith("_frozen_importlib")
        assert module.__spec__.loader is module.__loader__
        assert not any(is_ours(value) for value in vars(module).values())


def test_imported_modules_are_patched_in_place_and_restored(package):
    package("nv")
    with posgan_fast.patch():
        import training.networks as networks
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] in ("torch_utils", "training", "torch")]
    before = [(module, dict(vars(module))) for module in modules]
    theirs = networks.upfirdn2d
    assert not is_ours(theirs)
    with posgan_fast.patch():
        assert is_ours(networks.upfirdn2d) and is_ours(networks.bias_act) and not is_ours(networks.filter2d)
        assert networks.upfirdn2d is sys.modules["torch_utils.ops.upfirdn2d"].upfirdn2d
        assert networks.upfirdn2d.__wrapped__ is theirs and networks.upfirdn2d.__module__ == theirs.__module__
    for module, namespace in before:
        now = vars(module)
        assert now.keys() == namespace.keys()
        assert [name for name in now if now[name] is not namespace[name]] == []


def test_names_imported_while_patched_are_given_back(package):
    package("ros")
    with posgan_fast.patch():
        import model
        import op

        assert is_ours(model.upfirdn2d) and is_ours(op.fused_leaky_relu) and is_ours(model.conv2d_gradfix.conv2d)
    for module in (model, op, sys.modules["op.upfirdn2d"], sys.modules["op.fused_act"], model.conv2d_gradfix):
        assert not any(is_ours(value) for value in vars(module).values()), module
    assert model.upfirdn2d is sys.modules["op.upfirdn2d"].upfirdn2d
    assert sys.modules["op.fused_act"].load is sys.modules["torch.utils.cpp_extension"].load


def test_functions_on_a_class(package):
    package("pypi")
    with posgan_fast.patch():
        import torch_conv_gradfix
    holder = sys.modules["torch_conv_gradfix.conv_gradfix"].ConvGradFix
    earlier = dict(vars(holder))
    assert torch_conv_gradfix.conv2d is holder.conv2d and not is_ours(holder.conv2d)
    with posgan_fast.patch():
        assert isinstance(vars(holder)["conv2d"], staticmethod) and is_ours(holder.conv_transpose2d)
        assert torch_conv_gradfix.conv2d is holder.conv2d
    assert all(vars(holder)[name] is value for name, value in earlier.items())


def test_calls_nest(package):
    package("nv")
    report = posgan_fast.patch(["rosinality"])
    module = importlib.import_module("torch_utils.ops.conv2d_gradfix")
    assert not is_ours(module.conv2d)
    assert posgan_fast.patch() is report and integrations.report() is report
    ours = module.conv2d
    assert is_ours(ours) and sum(type(f).__module__.startswith("posgan_fast") for f in sys.meta_path) == 1
    posgan_fast.patch()
    assert module.conv2d is ours
    posgan_fast.unpatch()
    posgan_fast.unpatch()
    assert module.conv2d is ours
    posgan_fast.unpatch()
    assert module.conv2d is ours.__wrapped__
    posgan_fast.unpatch()
    assert len({(p.module, p.attribute) for p in report.patched}) == len(report.patched)


def test_what_others_changed_meanwhile_stays(package):
    package("ros")
    with posgan_fast.patch():
        module = importlib.import_module("op.upfirdn2d")
        module.upfirdn2d = replacement = object()
    assert module.upfirdn2d is replacement


def test_reload(package):
    package("ros")
    with posgan_fast.patch():
        module = importlib.import_module("op.conv2d_gradfix")
        importlib.reload(module)
        assert is_ours(module.conv2d) and type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert not is_ours(module.conv2d) and module.__spec__.loader is module.__loader__


def test_unrelated_modules_are_left_alone_with_a_reason(package):
    package("unrelated")
    names = ("upfirdn2d", "effects.ops.bias_act", "effects.ops.fma")
    with posgan_fast.patch() as report:
        for name in names:
            assert not any(is_ours(value) for value in vars(importlib.import_module(name)).values())
    reasons = dict(report.left_alone)
    assert report.patched == [p for p in report.patched if p.module == "torch.utils.cpp_extension"]
    assert "upfirdn2d(signal, taps) is not nvlabs's (x, f, up," in reasons["upfirdn2d"]
    assert "rosinality's (input, kernel," in reasons["upfirdn2d"]
    assert reasons["effects.ops.fma"] == "no function fma"
    assert "effects.ops.bias_act" in reasons
    assert all(name in str(report) and name in report.paragraph() for name in names)


def test_a_module_that_fails_leaves_nothing(package):
    package("broken")
    with posgan_fast.patch() as report, pytest.raises(RuntimeError, match="half way"):
        importlib.import_module("op.fused_act")
    assert "op.fused_act" not in sys.modules and "op.fused_act" not in str(report)


def test_a_spec_outlives_the_hooks(package):
    package("ros")
    with posgan_fast.patch():
        spec = importlib.util.find_spec("op.conv2d_gradfix")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert spec.loader is module.__loader__ and not is_ours(module.conv2d)


def test_odd_entries_of_sys_modules(package, monkeypatch):
    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ImportError("not now")

    monkeypatch.setitem(sys.modules, "lazy.upfirdn2d", Lazy("lazy.upfirdn2d"))
    monkeypatch.setitem(sys.modules, "blocked.bias_act", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "object.fma", object())  # type: ignore[arg-type]
    with posgan_fast.patch() as report:
        assert dict(report.left_alone)["lazy.upfirdn2d"].startswith("upfirdn2d cannot be inspected: not now")


def test_families_are_checked():
    with pytest.raises(
        ValueError, match=r"families: expected some of \['mmcv', 'nvlabs', 'rosinality'\], got \['tensorflow'\]"
    ):
        posgan_fast.patch(["nvlabs", "tensorflow"])
    with posgan_fast.patch("nvlabs") as report:
        assert report.patched == []


def test_patching_imports_nothing():
    code = """
import sys, posgan_fast
before = set(sys.modules)
assert "torch.utils.cpp_extension" not in before
posgan_fast.patch()
print(sorted(set(sys.modules) - before))
"""
    assert python("-c", code).stdout.strip() == "[]"


def test_stand_ins_answer_only_for_what_is_missing():
    def missing(name: str) -> Callable[[], ModuleType]:
        return lambda: ModuleType(name, "stand-in")

    engine = Engine({}, {name: missing(name) for name in ("gone_for_good", "gone_for_good.util", "json.tool")})
    with engine.patch(()) as report:
        import json.tool as real

        import gone_for_good.util  # type: ignore[import-not-found]

        assert gone_for_good.__doc__ == gone_for_good.util.__doc__ == "stand-in" and real.__doc__ != "stand-in"
    assert report.standins == ["gone_for_good", "gone_for_good.util"]
    assert not any(name.startswith("gone_for_good") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("gone_for_good")


def test_the_stand_ins():
    shim = standins.pkg_resources()
    assert shim.parse_version("1.11.0a") < shim.parse_version("1.11.0") < shim.parse_version("2.13.0+cpu")
    with pytest.raises(ImportError):
        shim.declare_namespace("google")
    strtobool = standins.distutils_util().strtobool
    assert [strtobool(word) for word in ("Yes", "t", "off", "0")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="value: expected a word for true or false, got 'maybe'"):
        strtobool("maybe")
    with posgan_fast.patch():
        from pkg_resources import parse_version

        assert parse_version("2.10") > parse_version("2.9")
    assert ("pkg_resources" in sys.modules) == (importlib.util.find_spec("pkg_resources") is not None)


# posgan-fast run


def test_run_starts_a_script_as_python_does(tmp_path):
    (tmp_path / "link.py").symlink_to(SCRIPTS / "show.py")
    started = json.loads(hooked("--quiet", "link.py", "--quiet", "x y", cwd=tmp_path).stdout)
    direct = json.loads(python("link.py", "--quiet", "x y", cwd=tmp_path).stdout)
    assert started == direct == {**started, "path0": str(SCRIPTS), "argv": ["link.py", "--quiet", "x y"], "main": True}


def test_run_starts_a_module_as_python_does():
    started = json.loads(hooked("-m", "scripts.show", "-m", "3", cwd=FIXTURES).stdout)
    direct = json.loads(python("-m", "scripts.show", "-m", "3", cwd=FIXTURES).stdout)
    assert started == direct == {**started, "path0": str(FIXTURES), "name": "__main__"}


def test_run_passes_on_exit_codes_and_tracebacks():
    ended = hooked(SCRIPTS / "show.py", "--exit", 7)
    assert (ended.returncode, ended.stderr) == (7, "")  # a program that died has the last word
    failed, direct = hooked("--quiet", SCRIPTS / "show.py", "--fail"), python(SCRIPTS / "show.py", "--fail")
    assert failed.returncode == direct.returncode == 1
    assert failed.stderr == direct.stderr and "LookupError: from the program" in failed.stderr


def test_run_reports_at_the_end_unless_told_not_to():
    done = hooked("--backend", "reference", SCRIPTS / "generate.py", path=(FIXTURES / "ros",))
    assert done.returncode == 0 and float(done.stdout) == 49.0, done.stderr
    assert done.stderr.startswith(
        "posgan-fast: patched torch.utils.cpp_extension (load), op.fused_act (fused_leaky_relu)"
    )
    assert "answered the request for plugin fused, upfirdn2d" in done.stderr
    quiet = hooked(
        "--quiet", "--tune-allocator", "--backend=reference", SCRIPTS / "generate.py", path=(FIXTURES / "ros",)
    )
    assert (quiet.returncode, quiet.stderr) == (0, "")
    unpatched = hooked("--backend", "cpu", SCRIPTS / "show.py", "--exit", 0)
    assert json.loads(unpatched.stdout)["backend"] == "cpu"
    assert unpatched.stderr == "posgan-fast: nothing to patch was imported\n"


def test_run_reaches_processes_that_the_program_spawns():
    done = hooked(SCRIPTS / "spawn.py", path=(FIXTURES / "ros",), cwd=FIXTURES)
    assert done.returncode == 0 and done.stdout.strip() == "(36.0, 'fused')", done.stderr


# The real thing


def outcome(done: subprocess.CompletedProcess[str], file: Path) -> dict[str, torch.Tensor]:
    assert done.returncode == 0, done.stderr
    return torch.load(file)


def assert_same(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == plain.keys() and len(ours) > 20
    assert (ours["images"] - plain["images"]).abs().max() <= 1e-4
    for name, expected in plain.items():
        assert (ours[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-8, name


def test_nvlabs_checkout(peers, tmp_path, missing_modules):
    checkout = peers["nvlabs"]
    plain, both = missing_modules
    script = SCRIPTS / "nvlabs_peer.py"
    expected = python(script, tmp_path / "plain.pt", path=(checkout, plain, both))
    done = hooked(script, tmp_path / "ours.pt", path=(checkout, both))
    assert_same(outcome(done, tmp_path / "ours.pt"), outcome(expected, tmp_path / "plain.pt"))
    assert "posgan_fast" in done.stdout and "posgan_fast" not in expected.stdout


def test_rosinality_checkout(peers, tmp_path):
    checkout = peers["rosinality"]
    script = SCRIPTS / "rosinality_peer.py"
    expected = python(script, tmp_path / "plain.pt", "--plain", path=(checkout,))
    done = hooked(script, tmp_path / "ours.pt", path=(checkout,))
    assert_same(outcome(done, tmp_path / "ours.pt"), outcome(expected, tmp_path / "plain.pt"))
    assert "posgan_fast" in done.stdout and "posgan_fast" not in expected.stdout


@pytest.mark.skipif(
    not (importlib.util.find_spec("stylegan2_torch") and importlib.util.find_spec("torch_conv_gradfix")),
    reason="stylegan2-torch is not installed (pip install posgan_fast[demo])",
)
def test_stylegan2_torch(tmp_path):
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    script = SCRIPTS / "stylegan2_torch_peer.py"
    expected = hooked("--backend", "reference", script, tmp_path / "reference.pt", path=path)
    done = hooked(script, tmp_path / "ours.pt", path=path)
    assert_same(outcome(done, tmp_path / "ours.pt"), outcome(expected, tmp_path / "reference.pt"))
