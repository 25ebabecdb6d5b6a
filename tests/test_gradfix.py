"""conv2d_gradfix and grid_sample_gradfix of foreign code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from foreign import is_ours
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import posgan_fast
from posgan_fast.integrations import gradfix


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
    suffices = gradfix.torch_differentiates_twice("cpu", 2)
    assert ("GridSampler" in type(grid_sample(image, grid).grad_fn).__name__) == suffices

    monkeypatch.setattr(gradfix, "_torch_grid_sample", _Once.apply)
    gradfix.torch_differentiates_twice.cache_clear()
    assert not gradfix.torch_differentiates_twice("cpu", 2)
    gradfix.torch_differentiates_twice.cache_clear()


class _Once(torch.autograd.Function):
    """Stands for a device on which torch has no second derivative."""

    @staticmethod
    def forward(ctx, image, grid):
        ctx.save_for_backward(image, grid)
        return F.grid_sample(image, grid, align_corners=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return torch.ops.aten.grid_sampler_2d_backward(g, *ctx.saved_tensors, 0, 0, False, [True, True])


def test_grid_sample_elsewhere_has_one_too(monkeypatch):
    monkeypatch.setattr(gradfix, "torch_differentiates_twice", lambda device, axes: False)
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


@pytest.mark.gpu
def test_grid_sample_on_a_gpu(nv):
    image, grid = (t.detach().cuda().requires_grad_() for t in grid_inputs())
    assert gradgradcheck(nv("ops.grid_sample_gradfix").grid_sample, (image, grid), nondet_tol=1e-8)
