"""Forks and relatives of the families: other signatures, other module names, code of an older torch."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from foreign import SCRIPTS, TAPS, hooked, is_ours
from torch.autograd import gradcheck
from torch.nn import functional as F

import posgan_fast
from posgan_fast import integrations
from posgan_fast.integrations import plugins


@pytest.fixture
def module(package):
    """Imports a module of some fixture folder under the hooks."""
    for folder in ("nv", "ros", "mmcv", "pad", "forks"):
        package(folder)
    with posgan_fast.patch():
        yield importlib.import_module


def plain_leaky_relu(x, b, slope=0.2, scale=2**0.5):
    return F.leaky_relu(x + b.view(1, -1, *[1] * (x.ndim - 2)), slope) * scale


# PadInv: an ``impl`` at the end of every signature


def test_padinv_is_recognised_whole(module):
    names = ("fma", "conv2d_gradfix", "grid_sample_gradfix")
    fma, conv2d_gradfix, grid_sample_gradfix = (module(f"third_party.stylegan2_official_ops.{name}") for name in names)
    a, b, c = torch.randn(2, 1), torch.randn(2, 3), torch.randn(3)
    grid, image = torch.rand(1, 2, 2, 2, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    for impl in ("cuda", "ref"):
        torch.testing.assert_close(fma.fma(a, b, c, impl=impl), a * b + c)
        sampled = grid_sample_gradfix.grid_sample(image, grid, impl)
        torch.testing.assert_close(sampled, F.grid_sample(image, grid, align_corners=False))
    assert is_ours(fma.fma) and is_ours(grid_sample_gradfix.grid_sample) and is_ours(conv2d_gradfix.conv_transpose2d)
    assert fma.fma.__defaults__ == ("cuda",)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_padinv_gates_its_weight_unless_asked_for_plain_torch(module, name):
    gradfix = module("third_party.stylegan2_official_ops.conv2d_gradfix")
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3, requires_grad=True)
    for impl, gated in (("cuda", True), ("ref", False)):
        weight.grad = None
        out = getattr(gradfix, name)(x, weight, stride=2, padding=1, impl=impl)
        assert torch.equal(out, getattr(F, name)(x, weight, stride=2, padding=1))
        with gradfix.no_weight_gradients():
            out.sum().requires_grad_().backward()
        assert (weight.grad is None) == gated


# mmcv, both generations


def test_mmcv_fused_bias_leakyrelu(module):
    ops = module("mm.ops1")
    for x in (torch.randn(2, 3, 4, 5), torch.randn(6, 3)):
        for b in (torch.randn(3), torch.randn(3, dtype=torch.float64), torch.randn(1)):
            ours = ops.fused_bias_leakyrelu(x, b, 0.3, 1.5)
            own = ops.fused_bias_leakyrelu.__wrapped__(x, b, 0.3, 1.5)
            torch.testing.assert_close(ours, own)
            assert ours.dtype == own.dtype
    calls = sys.modules["mm.ops1.fused_bias_leakyrelu"].calls
    calls.clear()
    layer = ops.FusedBiasLeakyReLU(3, negative_slope=0.1)
    torch.testing.assert_close(layer(x), F.leaky_relu(x, 0.1) * 2**0.5)
    torch.testing.assert_close(ops.fused_bias_leakyrelu(x, None), F.leaky_relu(x, 0.2) * 2**0.5)
    assert calls == [] and list(layer.state_dict()) == ["bias"]


@pytest.mark.parametrize("arguments", [{"up": 2, "pad": (2, 1)}, {"down": 2, "pad": (1, 0, 2, 3)}])
def test_mmcv1_upfirdn2d(module, arguments):
    ops, x = module("mm.ops1"), torch.randn(2, 3, 6, 8)
    ours = ops.upfirdn2d(x, TAPS, **arguments)
    assert sys.modules["mm.ops1.upfirdn2d"].calls == []
    torch.testing.assert_close(ours, ops.upfirdn2d.__wrapped__(x, TAPS, **arguments))


@pytest.mark.parametrize(
    "arguments", [{"up": 2, "padding": [2, 1, 2, 1], "gain": 4}, {"down": 2, "padding": [1, 2], "flip_filter": True}]
)
def test_mmcv2_upfirdn2d(module, arguments):
    ops, x = module("mm.ops2"), torch.randn(2, 3, 6, 8)
    ours, helper = ops.upfirdn2d(x, TAPS, **arguments), ops.upsample2d(x, TAPS)
    calls = sys.modules["mm.ops2.upfirdn2d"].calls
    assert calls == []
    torch.testing.assert_close(ours, ops.upfirdn2d(x, TAPS, use_custom_op=False, **arguments))
    torch.testing.assert_close(helper, ops.upsample2d(x, TAPS, use_custom_op=False))
    assert calls == [False, False]


@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_mmcv2_bias_act(module, act):
    ops, x, b = module("mm.ops2"), torch.randn(2, 4, 3), torch.randn(4)
    for arguments in ({}, {"gain": 0.5, "clamp": 0.4}):
        ours = ops.bias_act(x, b, act=act, **arguments)
        torch.testing.assert_close(ours, ops.bias_act(x, b, act=act, use_custom_op=False, **arguments))
    assert sys.modules["mm.ops2.bias_act"].calls == [False, False]


def test_mmcv_is_a_family_of_its_own(package):
    package("mmcv")
    with posgan_fast.patch("mmcv") as report:
        importlib.import_module("mm.ops1")
        importlib.import_module("mm.ops2")
    assert {entry.attribute for entry in report.patched} == {"fused_bias_leakyrelu", "upfirdn2d", "bias_act"}
    assert {entry.family for entry in report.patched} == {"mmcv"}


# Forks of rosinality


def test_upfirdn2d_of_forks(module):
    x = torch.randn(1, 2, 5, 6)
    own = module("aliasfree.upfirdn2d").upfirdn2d.__wrapped__
    inputs, device = module("inputs.upfirdn2d").upfirdn2d, module("device.upfirdn2d").upfirdn2d
    ours = module("aliasfree.upfirdn2d").upfirdn2d
    assert is_ours(inputs) and is_ours(device) and is_ours(ours)
    torch.testing.assert_close(inputs(inputs=x, kernel=TAPS, up=2, pad=(2, 1)), own(x, TAPS, 2, 1, (2, 1)))
    torch.testing.assert_close(inputs(x, TAPS, pad=(2, 1, 0, 3)), own(x, TAPS, pad=(2, 1, 0, 3)))
    torch.testing.assert_close(device(x, TAPS, 1, 2, (2, 1), device="cuda"), own(x, TAPS, 1, 2, (2, 1)))
    torch.testing.assert_close(device(x, TAPS, pad=(2, 1, 0, 3)), own(x, TAPS, pad=(2, 1)))  # as the fork's own
    for kernel in (TAPS, TAPS[:, 0].contiguous()):
        arguments = {"up": 2, "pad": (2, 1), "flip_filter": True, "gain": 4}
        expected = own(x, kernel, 2, 1, (2, 1), True, 4)
        torch.testing.assert_close(ours(x, kernel, **arguments), expected)


def test_fused_leaky_relu_of_forks(module):
    x, b = torch.randn(2, 3, 4, 4), torch.randn(3)
    for name in ("inputs", "device", "trace", "three"):
        function = module(f"{name}.fused_act").fused_leaky_relu
        assert is_ours(function)
        torch.testing.assert_close(function(x, b, 0.1, 1.5), plain_leaky_relu(x, b, 0.1, 1.5))
    traceable = module("trace.fused_act")
    assert traceable.calls == []
    traceable.fused_leaky_relu(x, b, trace_model=True)
    assert traceable.calls == [True]
    styles, b = torch.randn(2, 4, 4), torch.randn(4)  # as many layers as channels: only the fork knows which is which
    expected = F.leaky_relu(styles + b, 0.2) * 2**0.5
    torch.testing.assert_close(module("three.fused_act").fused_leaky_relu(styles, b), expected)


def test_plugin_with_a_flag_and_a_gain():
    plugin = plugins.answer("upfirdn2d", ["upfirdn2d.cpp", "upfirdn2d_kernel.cu"])
    x = torch.randn(2, 3, 6, 6)
    ours = plugin.upfirdn2d(x, TAPS, 2, 2, 1, 1, 2, 1, 2, 1, True, 4)
    torch.testing.assert_close(ours, posgan_fast.functional.upfirdn2d(x, TAPS, 2, 1, (2, 1, 2, 1), True, 4.0))


# Gradfix code of torch 1.10


@pytest.mark.parametrize("name", ["non_leaking", "warping"])
def test_augmentations_are_differentiated(module, name):
    """One is in the table; the other has a name that is not, and what it asks torch for is answered."""
    augment = module(name).augment
    image = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    grid = torch.rand(1, 3, 4, 2, dtype=torch.float64) * 2.4 - 1.2
    torch.testing.assert_close(augment(image, grid), F.grid_sample(image, grid, align_corners=False))
    assert gradcheck(lambda image: augment(image, grid), image)
    assert torch.autograd.gradgradcheck(lambda image: augment(image, grid).square(), image)
    assert is_ours(sys.modules[name].grid_sample) == (name == "non_leaking")
    assert ("torch._C" in str(integrations.report())) == (name == "warping")


def test_operations_of_an_older_torch_can_be_called():
    get = torch._C._jit_get_operation
    name = "aten::grid_sampler_2d_backward"
    with posgan_fast.patch():
        op, overloads = torch._C._jit_get_operation(name)
        assert callable(op) and overloads == get(name)[1]
        assert type(torch._C._jit_get_operation("aten::relu")) is type(get("aten::relu")) is tuple
        x = torch.randn(2, 4, 7, 6)
        for transposed, suffix in ((False, ""), (True, "_transpose")):
            weight = torch.randn(4, 2, 3, 3, requires_grad=True)
            convolve = F.conv_transpose2d if transposed else F.conv2d
            options = {"padding": (1, 0), "stride": (2, 1), "dilation": (1, 1), "groups": 2}
            y = convolve(x, weight, **options)
            g = torch.randn_like(y)
            op = torch._C._jit_get_operation(f"aten::cudnn_convolution{suffix}_backward_weight")
            ours = op(tuple(weight.shape), g, x, *options.values(), False, False, True)
            torch.testing.assert_close(ours, torch.autograd.grad(y, weight, g)[0])
        volume = torch.randn(1, 1, 2, 3, 2, requires_grad=True)
        grid = torch.rand(1, 1, 2, 2, 3)
        y = F.grid_sample(volume, grid, align_corners=False)
        op = torch._C._jit_get_operation("aten::grid_sampler_3d_backward")
        ours, _ = op(torch.ones_like(y), volume, grid, 0, 0, False)
        torch.testing.assert_close(ours, torch.autograd.grad(y.sum(), volume)[0])
    assert torch._C._jit_get_operation is get


def test_augmentations_of_a_checkout(peers):
    done = hooked("--quiet", SCRIPTS / "augment_peer.py", path=(peers["rosinality"],))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_padinv_checkout(peers, tmp_path):
    (tmp_path / "easydict.py").write_text("class EasyDict(dict):\n    __getattr__ = dict.__getitem__\n")
    done = hooked("--quiet", SCRIPTS / "padinv_ops.py", path=(peers["padinv"], tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "14 patched, 0 left alone"
