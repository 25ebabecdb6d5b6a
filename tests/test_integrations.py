"""The hooks: what they recognise, what they put in, and that they leave nothing behind."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import posgan_fast
from posgan_fast import integrations, run
from posgan_fast.integrations import gradfix, plugins, standins
from posgan_fast.integrations.engine import Engine
from posgan_fast.ops.bias_act import ACTIVATIONS

FIXTURES = Path(__file__).parent / "fixtures"
SCRIPTS = FIXTURES / "scripts"
ROOT = Path(posgan_fast.__file__).parents[1]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 2.0, 4.0])) / 28  # of no symmetry


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a fixture folder on the path; afterwards the hooks are gone and so are the modules it brought."""
    before, finders = dict(sys.modules), list(sys.meta_path)
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    load = cpp_extension.load
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda folder: monkeypatch.syspath_prepend(str(FIXTURES / folder))
    while posgan_fast.integrations._ENGINE._depth:
        posgan_fast.unpatch()
    for name, module in list(sys.modules.items()):
        if (
            name not in before
            and isinstance(module, ModuleType)
            and str(vars(module).get("__file__")).startswith(str(FIXTURES))
        ):
            del sys.modules[name]
    sys.modules.pop("torch_conv_gradfix.namespace", None)
    assert sys.meta_path == finders and cpp_extension.load is load


def python(*arguments: object, path: tuple[object, ...] = (), **kwargs: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("POSGAN_FAST_BACKEND", None)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **kwargs)  # type: ignore[call-overload]


def hooked(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "posgan_fast", "run", *arguments, **kwargs)  # type: ignore[arg-type]


def is_ours(function: object) -> bool:
    return hasattr(function, "__wrapped__") and "posgan_fast" in function.__code__.co_filename  # type: ignore[attr-defined]


# What is recognised, and how


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
        ValueError, match=r"families: expected some of \['nvlabs', 'rosinality'\], got \['tensorflow'\]"
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


# What is put in: NVlabs


@pytest.fixture
def nv(package):
    package("nv")
    with posgan_fast.patch():
        yield lambda name: importlib.import_module(f"torch_utils.{name}")


@pytest.mark.parametrize(
    "arguments",
    [
        {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
        {"down": 2, "padding": [1, 2], "flip_filter": True},
        {"up": [2, 3], "down": [3, 1], "padding": (3, 0, -1, 4), "gain": math.sqrt(2)},
        {"padding": 3},
    ],
)
def test_nvlabs_upfirdn2d(nv, arguments):
    module = nv("ops.upfirdn2d")
    x = torch.randn(2, 3, 7, 9)
    ours = module.upfirdn2d(x, TAPS, **arguments)
    assert module.calls == []
    torch.testing.assert_close(ours, module.upfirdn2d(x, TAPS, impl="ref", **arguments))
    assert module.calls == ["ref"]


def test_nvlabs_helpers_follow_and_other_dtypes_stay(nv):
    module = nv("ops.upfirdn2d")
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(module.filter2d(x, TAPS), module.filter2d(x, TAPS, impl="ref"))
    assert module.calls == ["ref"]
    ones = torch.ones(1, 1, 4, 4, dtype=torch.int64)
    assert module.upfirdn2d(ones, torch.ones(2, 2)).unique().item() == 4 and module.calls == ["ref", "cuda"]


def test_nvlabs_upfirdn2d_is_traced_in_plain_torch(nv):
    traced = torch.jit.trace(lambda x: nv("ops.upfirdn2d").upfirdn2d(x, TAPS), torch.randn(1, 1, 8, 8))
    assert "posgan_fast::" not in str(traced.graph)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nvlabs_bias_act(nv, act):
    module = nv("ops.bias_act")
    x, b = torch.randn(2, 5, 4), torch.randn(5)
    for arguments in ({}, {"alpha": 0.1, "gain": math.sqrt(0.5), "clamp": 0.4}, {"clamp": math.inf}):
        ours = module.bias_act(x, b, act=act, **arguments)
        torch.testing.assert_close(ours, module.bias_act(x, b, act=act, impl="ref", **arguments))
    torch.testing.assert_close(module.bias_act(x, dim=7, act=act), module.bias_act(x, dim=7, act=act, impl="ref"))
    assert all(impl == "ref" for _, impl in module.calls)


def test_nvlabs_bias_act_keeps_the_dtype_of_the_plain_path(nv):
    bias_act = nv("ops.bias_act").bias_act
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for x, b in ((torch.randn(3, 4).to(first), torch.randn(4).to(second)) for first in dtypes for second in dtypes):
        ours, plain = bias_act(x, b, act="lrelu"), bias_act(x, b, act="lrelu", impl="ref")
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2)


def test_nvlabs_bias_act_follows_the_table_of_the_module(nv):
    module = nv("ops.bias_act")
    x = torch.randn(3, 4)
    assert torch.equal(module.bias_act(x, act="square"), x * x) and module.calls == [("square", "cuda")]
    module.activation_funcs["relu"].def_gain = 10
    torch.testing.assert_close(module.bias_act(x, act="relu"), 10 * x.relu())
    assert torch.equal(module.bias_act(torch.tensor([[1, 2]]), act="relu"), torch.tensor([[10.0, 20.0]]))


def test_nvlabs_linear_results_may_be_overwritten(nv):
    x, b = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    y = nv("ops.bias_act").bias_act(x, b, gain=2, clamp=0.5)
    y.add_(1).sum().backward()
    assert torch.equal(x.grad, 2.0 * ((x + b).abs() < 0.25)) and b.grad is not None


def test_nvlabs_fma(nv):
    fma = nv("ops.fma").fma
    a, b, c = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 1), (3, 4), (2, 1, 4)))
    torch.testing.assert_close(fma(a, b, c), a * b + c)
    assert gradcheck(fma, (a, b, c)) and gradgradcheck(fma, (a, b, c))


def test_nvlabs_plugins(nv):
    get_plugin, upfirdn2d = nv("custom_ops").get_plugin, nv("ops.upfirdn2d")
    plugin = upfirdn2d.request_plugin()
    x = torch.randn(1, 2, 5, 5)
    ours = plugin.upfirdn2d(x, TAPS, 2, 1, 1, 2, 3, 0, 1, 2, True, 2.0)
    plain = upfirdn2d.upfirdn2d(x, TAPS, [2, 1], [1, 2], [3, 0, 1, 2], True, 2.0, impl="ref")
    torch.testing.assert_close(ours, plain)
    sources = ["filtered_lrelu.cpp", "filtered_lrelu_wr.cu"]
    assert get_plugin("filtered_lrelu_plugin", sources, headers=[]) == "compiled filtered_lrelu_plugin"
    assert get_plugin("bias_act_plugin", ["other.cpp"]) == "compiled bias_act_plugin"
    answers = {entry.name: entry.answered for entry in integrations.report().plugins}
    assert answers == {"upfirdn2d_plugin": True, "filtered_lrelu_plugin": False, "bias_act_plugin": False}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [-1.0, 0.9])
def test_bias_act_plugin(act, clamp):
    """Against autograd through the public op, called as NVlabs' autograd functions call the plugin."""
    plugin = plugins.answer("bias_act_plugin", ["a/bias_act.cpp", "a/bias_act.cu"])
    row, none = ACTIVATIONS[act], torch.empty(0, dtype=torch.float64)
    x, b, dy, h = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3, 5), (3,), (4, 3, 5), (4, 3, 5))
    )
    rest = (1, row.index, row.alpha, row.gain, clamp)
    bound = None if clamp < 0 else clamp
    y = posgan_fast.functional.bias_act(x, b, 1, act, clamp=bound, backend="reference")
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    torch.testing.assert_close(plugin.bias_act(x, b, none, none, none, 0, *rest), y)
    xref, yref = (x, none) if act == "swish" else (x, y) if row.index > 3 else (none, none if act == "linear" else y)
    bias = b if xref is x else none
    first = plugin.bias_act(dy, bias, xref, yref, none, 1, *rest)
    torch.testing.assert_close(first, dy * row.gain if act == "linear" else dx)
    if row.index > 3:
        (second,) = torch.autograd.grad(dx, x, h)
        torch.testing.assert_close(plugin.bias_act(h, bias, xref, yref, dy, 2, *rest), second)
    assert not first.requires_grad


# What is put in: rosinality


@pytest.fixture
def ros(package):
    package("ros")
    with posgan_fast.patch():
        yield importlib.import_module


@pytest.mark.parametrize(
    "arguments",
    [{"up": 2, "pad": (2, 1)}, {"down": 2, "pad": (1, 1)}, {"up": (2, 1), "down": (1, 3), "pad": [3, 0, 1, 2]}, {}],
)
def test_rosinality_upfirdn2d(ros, arguments):
    module = ros("op.upfirdn2d")
    for x in (torch.randn(2, 3, 7, 9), torch.randn(2, 3, 7, 9).to(memory_format=torch.channels_last)):
        ours = module.upfirdn2d(x, TAPS, **arguments)
        assert module.calls == [] and ours.is_contiguous()
        torch.testing.assert_close(ours, module.upfirdn2d.__wrapped__(x, TAPS, **arguments))
        module.calls.clear()


def test_rosinality_upfirdn2d_keeps_the_gradient_of_the_kernel(ros):
    module = ros("op.upfirdn2d")
    kernel = TAPS.clone().requires_grad_()
    module.upfirdn2d(torch.randn(1, 1, 8, 8), kernel).sum().backward()
    assert kernel.grad is not None and module.calls == [(0, 0)]


def test_rosinality_fused_leaky_relu(ros):
    module = ros("op.fused_act")
    for x in (
        torch.randn(2, 3, 4, 5),
        torch.randn(6, 3),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ):
        for bias in (None, torch.randn(3), torch.randn(3, dtype=torch.float64), torch.randn(1)):
            ours = module.fused_leaky_relu(x, bias, 0.5, 1.5)
            plain = module.fused_leaky_relu.__wrapped__(x, bias, 0.5, 1.5)
            torch.testing.assert_close(ours, plain)
            assert ours.stride() == plain.stride()
    layer = module.FusedLeakyReLU(3)
    assert list(layer.state_dict()) == ["bias"] and is_ours(module.fused_leaky_relu)
    torch.testing.assert_close(layer(x), F.leaky_relu(x, 0.2) * 2**0.5)


def test_a_fork_keeps_its_slope_and_its_defaults(ros):
    fused_leaky_relu = ros("nested.op.fused_act").fused_leaky_relu
    x, bias = torch.randn(2, 3), torch.randn(3)
    torch.testing.assert_close(fused_leaky_relu(x, bias, 0.5), F.leaky_relu(x + bias, 0.5) * 3.0)
    with pytest.raises(TypeError, match="bias"):
        fused_leaky_relu(x)


def test_rosinality_plugins(ros, package):
    module = ros("op.upfirdn2d")
    x = torch.randn(4, 6, 5, 1)
    arguments = (2, 1, 1, 2, 3, 0, 1, 2)
    plain = module.upfirdn2d.__wrapped__(x.permute(0, 3, 1, 2), TAPS, (2, 1), (1, 2), (3, 0, 1, 2))
    torch.testing.assert_close(module.upfirdn2d_op.upfirdn2d(x, TAPS, *arguments), plain.permute(0, 2, 3, 1))
    package("pypi")
    like = importlib.import_module("stylegan2_like.op.upfirdn2d")
    torch.testing.assert_close(like.upfirdn2d_op.upfirdn2d(x.permute(0, 3, 1, 2), TAPS, *arguments), plain)
    torch.testing.assert_close(like.upfirdn2d(x, TAPS, pad=(9, 9)), module.upfirdn2d.__wrapped__(x, TAPS, pad=(9, 9)))
    answered = {entry.name for entry in integrations.report().plugins if entry.answered}
    assert answered == {"fused", "upfirdn2d", "upfirdn2d_"}


def test_fused_plugin():
    plugin = plugins.answer("fused", ["fused_bias_act.cpp", "fused_bias_act_kernel.cu"])
    x, bias, none = torch.randn(2, 3, 4), torch.randn(3), torch.empty(0)
    out = plugin.fused_bias_act(x, bias, none, 3, 0, 0.3, 1.5)
    torch.testing.assert_close(out, F.leaky_relu(x + bias[:, None], 0.3) * 1.5)
    g = torch.randn_like(x)
    slope = torch.where(out > 0, 1.5, 0.45)
    torch.testing.assert_close(plugin.fused_bias_act(g, none, out, 3, 1, 0.3, 1.5), g * slope)
    torch.testing.assert_close(plugin.fused_bias_act(g, bias, out, 3, 1, 0.3, 1.5), (g + bias[:, None]) * slope)
    assert not plugin.fused_bias_act(g, bias, out, 3, 2, 0.3, 1.5).any()
    torch.testing.assert_close(plugin.fused_bias_act(x, bias, none, 1, 0, 0.3, 1.5), (x + bias[:, None]) * 1.5)


def test_other_extensions_pass_through(monkeypatch):
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    seen = []
    monkeypatch.setattr(cpp_extension, "load", lambda name, sources, **kwargs: seen.append((name, sources, kwargs)))
    with posgan_fast.patch() as report:
        cpp_extension.load("fused", ["laser.cpp"], verbose=True)
        cpp_extension.load(name="mine", sources="fused_bias_act.cpp")
    assert seen == [("fused", ["laser.cpp"], {"verbose": True}), ("mine", "fused_bias_act.cpp", {})]
    assert {entry.name: entry.answered for entry in report.plugins} == {"fused": False, "mine": False}
    assert "passed on" in str(report)


# conv2d_gradfix and grid_sample_gradfix


def gradfix_modules(package) -> list[tuple[ModuleType, Callable[[], object]]]:
    for folder in ("nv", "ros", "pypi"):
        package(folder)
    nv = importlib.import_module("torch_utils.ops.conv2d_gradfix")
    ros = importlib.import_module("op.conv2d_gradfix")
    pypi = importlib.import_module("torch_conv_gradfix")
    nv.enabled = True
    return [(nv, nv.no_weight_gradients), (ros, ros.no_weight_gradients), (pypi, pypi.no_weight_grad)]


class WeightGradients(TorchDispatchMode):
    """Records, for every convolution backward, whether the weight's gradient was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.computed.append(args[-1][1])
        return func(*args, **(kwargs or {}))


def test_no_weight_gradients_keeps_its_meaning(package):
    with posgan_fast.patch():
        for module, no_weight_gradients in gradfix_modules(package):
            assert is_ours(module.conv2d) and is_ours(module.conv_transpose2d)
            for name in ("conv2d", "conv_transpose2d"):
                x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
                weight = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
                call = getattr(module, name)

                def r1(conv, around, x=x, weight=weight):
                    with around(), WeightGradients() as inner:
                        (g,) = torch.autograd.grad(conv(x, weight, padding=1).square().sum(), x, create_graph=True)
                    return g, torch.autograd.grad(g.square().sum(), (x, weight)), inner.computed

                slope, outer, computed = r1(call, no_weight_gradients)
                plain_slope, plain_outer, _ = r1(getattr(F, name), torch.enable_grad)
                assert computed == [False]
                for ours, plain in zip((slope, *outer), (plain_slope, *plain_outer), strict=True):
                    assert torch.equal(ours, plain)

                with no_weight_gradients():
                    call(x, weight).sum().backward()
                assert weight.grad is None and x.grad is not None
                call(x, weight).sum().backward()
                assert weight.grad is not None
        package_ = sys.modules["torch_utils.ops.conv2d_gradfix"]
        package_.enabled = False
        weight = torch.randn(1, 1, 1, 1, requires_grad=True)
        with package_.no_weight_gradients():
            package_.conv2d(torch.ones(1, 1, 2, 2), weight).sum().backward()
        assert weight.grad is not None  # as in the module: the switch works only where the op is enabled


def test_gradfix_convolutions_have_two_derivatives_in_every_mode(package):
    with posgan_fast.patch():
        for module, _ in gradfix_modules(package):
            x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
            bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
            weight = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
            options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}

            def conv2d(x, w, b, module=module, options=options):
                return module.conv2d(x, w, b, **options)

            def conv_transpose2d(x, w, b, module=module, options=options):
                return module.conv_transpose2d(x, w, b, output_padding=1, **options)

            assert torch.equal(conv2d(x, weight, bias), F.conv2d(x, weight, bias, **options))
            assert gradcheck(conv2d, (x, weight, bias)) and gradgradcheck(conv2d, (x, weight, bias), fast_mode=True)
            transposed = conv_transpose2d(x, weight, bias)
            assert torch.equal(transposed, F.conv_transpose2d(x, weight, bias, output_padding=1, **options))
            assert gradgradcheck(conv_transpose2d, (x, weight, bias), fast_mode=True)


def test_gradfix_argument_order(package):
    """NVlabs and rosinality end with groups, dilation as torch does; torch-conv-gradfix with dilation, groups."""
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 2, 2)
    expected = F.conv_transpose2d(x, weight, groups=4, dilation=3)
    with posgan_fast.patch():
        (nv, _), (ros, _), (pypi, _) = gradfix_modules(package)
        for module, last in ((nv, (4, 3)), (ros, (4, 3)), (pypi, (3, 4))):
            assert torch.equal(module.conv_transpose2d(x, weight, None, 1, 0, 0, *last), expected)


def test_gated_weights_work_under_transforms_and_compilation():
    x, weight = torch.randn(3, 1, 2, 4, 4), torch.randn(2, 2, 3, 3, requires_grad=True)
    conv2d, _ = gradfix.convolutions(lambda: True, lambda: False)
    torch.testing.assert_close(torch.func.vmap(lambda x: conv2d(x, weight))(x), F.conv2d(x[:, 0], weight)[:, None])
    ours, plain = (torch.func.jacrev(lambda w, f=f: f(x[0], w))(weight) for f in (conv2d, F.conv2d))
    torch.testing.assert_close(ours, plain)
    compiled = torch.compile(conv2d, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x[0], weight), F.conv2d(x[0], weight))


def grid_inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    grid = torch.rand(2, 3, 4, 2, dtype=dtype) * 2.6 - 1.3  # beyond the border, off the pixel centres
    return torch.randn(2, 2, 5, 6, dtype=dtype, requires_grad=True), grid.requires_grad_()


def test_grid_sample_is_torchs_where_that_has_a_double_backward(nv, monkeypatch):
    image, grid = grid_inputs()
    grid_sample = nv("ops.grid_sample_gradfix").grid_sample
    assert gradcheck(grid_sample, (image, grid)) and gradgradcheck(grid_sample, (image, grid))
    suffices = gradfix.torch_differentiates_twice("cpu")
    assert ("GridSampler" in type(grid_sample(image, grid).grad_fn).__name__) == suffices

    monkeypatch.setattr(gradfix, "_torch_grid_sample", _Once.apply)
    gradfix.torch_differentiates_twice.cache_clear()
    assert not gradfix.torch_differentiates_twice("cpu")
    gradfix.torch_differentiates_twice.cache_clear()


class _Once(torch.autograd.Function):
    """As on a device where torch has no second derivative."""

    @staticmethod
    def forward(ctx, image, grid):
        ctx.save_for_backward(image, grid)
        return F.grid_sample(image, grid, align_corners=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return torch.ops.aten.grid_sampler_2d_backward(g, *ctx.saved_tensors, 0, 0, False, [True, True])


def test_grid_sample_elsewhere_has_one_too(monkeypatch):
    monkeypatch.setattr(gradfix, "torch_differentiates_twice", lambda device: False)
    image, grid = grid_inputs()
    assert gradcheck(gradfix.grid_sample, (image, grid)) and gradgradcheck(gradfix.grid_sample, (image, grid))
    for wanted in ((image, grid), (image,), (grid,)):
        inputs = [t if any(t is w for w in wanted) else t.detach() for t in (image, grid)]
        out = gradfix.grid_sample(*inputs)
        assert type(out.grad_fn).__name__ == "GridSampleBackward"
        plain = F.grid_sample(*inputs, align_corners=False)
        g = torch.randn_like(out)
        for create_graph in (False, True):
            ours = torch.autograd.grad(out, wanted, g, create_graph=create_graph, retain_graph=True)
            torch.testing.assert_close(ours, torch.autograd.grad(plain, wanted, g, retain_graph=True))


# On a GPU


@pytest.mark.gpu
def test_both_families_on_a_gpu(package, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    package("nv")
    package("ros")
    with posgan_fast.patch():
        upfirdn2d, bias_act = (importlib.import_module(f"torch_utils.ops.{name}") for name in ("upfirdn2d", "bias_act"))
        fused_act, ros_upfirdn2d = (importlib.import_module(f"op.{name}") for name in ("fused_act", "upfirdn2d"))
        sample = importlib.import_module("torch_utils.ops.grid_sample_gradfix").grid_sample
        x, b = torch.randn(2, 3, 8, 8, device="cuda"), torch.randn(3, device="cuda")
        taps = TAPS.cuda()
        pairs = (
            (upfirdn2d.upfirdn2d(x, taps, 2, 1, [2, 1]), upfirdn2d.upfirdn2d(x, taps, 2, 1, [2, 1], impl="ref")),
            (bias_act.bias_act(x, b, act="lrelu"), bias_act.bias_act(x, b, act="lrelu", impl="ref")),
            (ros_upfirdn2d.upfirdn2d(x, taps, pad=(2, 1)), ros_upfirdn2d.upfirdn2d.__wrapped__(x, taps, pad=(2, 1))),
            (fused_act.fused_leaky_relu(x, b, 0.5), F.leaky_relu(x + b[:, None, None], 0.5) * 2**0.5),
            (fused_act.fused_leaky_relu.__wrapped__(x, b, 0.5), fused_act.fused_leaky_relu(x, b, 0.5)),
        )
        for ours, plain in pairs:
            torch.testing.assert_close(ours, plain)
        image, grid = (t.detach().cuda().requires_grad_() for t in grid_inputs())
        assert gradgradcheck(sample, (image, grid), nondet_tol=1e-8)


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
    assert hooked(SCRIPTS / "show.py", "--exit", 7).returncode == 7
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
    assert json.loads(hooked("--backend", "cpu", SCRIPTS / "show.py").stdout)["backend"] == "cpu"


def test_run_reaches_processes_that_the_program_spawns():
    done = hooked(SCRIPTS / "spawn.py", path=(FIXTURES / "ros",), cwd=FIXTURES)
    assert done.returncode == 0 and done.stdout.strip() == "(36.0, 'fused')", done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected SCRIPT.py or -m MODULE"),
        (["--fast", "x.py"], "--fast: no such option"),
        (["--backend"], "--backend: expected a value"),
        (["--backend", "tpu", "x.py"], "--backend: expected one of"),
        (["-m"], "-m: expected a value"),
        (["--quiet=yes", "x.py"], "--quiet: no such option"),
        (["no_such_script.py"], "SCRIPT.py: expected a file to run, got 'no_such_script.py'"),
    ],
)
def test_run_refuses_bad_command_lines(argv, message, capsys):
    assert run.main(argv) == 2
    assert message in capsys.readouterr().err


def test_run_help(capsys):
    assert run.main(["--quiet", "-h"]) == 0
    assert "usage: posgan-fast run" in capsys.readouterr().out


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
