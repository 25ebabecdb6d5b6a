"""The replacements that the hooks put in place of the ops of NVlabs and rosinality."""

from __future__ import annotations

import importlib
import importlib.util
import math

import pytest
import torch
from foreign import TAPS, is_ours
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import posgan_fast
from posgan_fast import integrations
from posgan_fast.integrations import plugins
from posgan_fast.ops.bias_act import ACTIVATIONS

# NVlabs


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


# rosinality


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


# On a GPU


@pytest.mark.gpu
def test_both_families_on_a_gpu(package, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    package("nv")
    package("ros")
    with posgan_fast.patch():
        upfirdn2d, bias_act = (importlib.import_module(f"torch_utils.ops.{name}") for name in ("upfirdn2d", "bias_act"))
        fused_act, ros_upfirdn2d = (importlib.import_module(f"op.{name}") for name in ("fused_act", "upfirdn2d"))
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
