"""The rules by which ``python -m benchmarks.traffic`` counts traffic, on small calls."""

from __future__ import annotations

import sys
import types
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from benchmarks.traffic_counter import Counter, Kernel, Traffic, record
from benchmarks.traffic_cuda import META, Launcher, autocast, meta_as_cuda
from posgan_fast import backend
from posgan_fast import functional as PF
from posgan_fast.ops.common import op
from posgan_fast.ops.modulated_conv2d import triton


def counted(call) -> Traffic:
    with Counter() as counter:
        call()
    return counter.traffic


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device=META, dtype=dtype)


def bytes_of(found: Traffic) -> tuple[int, int, int]:
    return found.read, found.written, found.launches


def test_an_operator_reads_each_tensor_once_and_writes_its_result():
    a, b = empty(8, 16), empty(8, 16)
    assert bytes_of(counted(lambda: a + b)) == (1024, 512, 1)
    assert bytes_of(counted(lambda: a * a)) == (512, 512, 1)
    assert bytes_of(counted(lambda: a[:4] + a[4:])) == (512, 256, 1)
    assert bytes_of(counted(lambda: a.sum(1))) == (512, 32, 1)
    assert bytes_of(counted(lambda: torch.cat([a, b]))) == (1024, 1024, 1)
    assert bytes_of(counted(lambda: a.half())) == (512, 256, 1)
    assert bytes_of(counted(lambda: a.float())) == (0, 0, 0)
    assert bytes_of(counted(lambda: torch.randn(8, 16, device=META))) == (0, 512, 1)


def test_views_allocations_and_empty_tensors_cost_nothing():
    a = empty(8, 16).requires_grad_()
    views = lambda: (a.view(16, 8), a.t(), a[1:], a.expand(3, 8, 16), a.detach(), a.flatten(), a.unsqueeze(0))  # noqa: E731
    assert bytes_of(counted(views)) == (0, 0, 0)
    fresh = lambda: (torch.empty_like(a), a.new_empty(3), empty(0, 4) + 1, empty(0).clone())  # noqa: E731
    assert bytes_of(counted(fresh)) == (0, 0, 0)


def test_expanded_dimensions_hold_one_element():
    a, b = empty(8, 16), empty(16)
    assert bytes_of(counted(lambda: a + b)) == (512 + 64, 512, 1)
    assert bytes_of(counted(lambda: b.expand(8, 16).contiguous())) == (64, 512, 1)


def test_in_place_reads_where_the_old_values_count():
    a, b = empty(8, 16), empty(8, 16)
    assert bytes_of(counted(lambda: a.add_(b))) == (1024, 512, 1)
    assert bytes_of(counted(lambda: a.copy_(b))) == (512, 512, 1)
    assert bytes_of(counted(a.zero_)) == (0, 512, 1)
    assert bytes_of(counted(lambda: torch.add(a, b, out=a))) == (1024, 512, 1)
    assert bytes_of(counted(lambda: torch.add(b, b, out=a))) == (512, 512, 1)


def test_scalars_of_the_host_cost_nothing():
    a, scalar = empty(8, 16), torch.tensor(2.0)
    assert bytes_of(counted(lambda: a * scalar)) == (512, 512, 1)
    assert bytes_of(counted(lambda: scalar + torch.ones(100))) == (0, 0, 0)


def test_padding_and_gradients_of_slices_are_two_kernels():
    a = empty(8, 16)
    assert bytes_of(counted(lambda: F.pad(a, (1, 1, 0, 0)))) == (512, 8 * 18 * 4 + 512, 2)
    x = empty(8, 16).requires_grad_()
    y = x[2:4]
    assert bytes_of(counted(lambda: torch.autograd.grad(y, x, torch.empty_like(y)))) == (128, 512 + 128, 2)
    image = empty(1, 2, 8, 8).requires_grad_()
    y = F.pad(image, (1, 1, 1, 1), mode="reflect")
    assert bytes_of(counted(lambda: torch.autograd.grad(y, image, torch.empty_like(y)))) == (800, 512 + 800, 2)


@pytest.mark.parametrize("mask", [(True, False, False), (False, True, False), (True, True, True)])
def test_a_convolution_has_a_kernel_for_each_gradient(mask):
    x, w = empty(2, 4, 8, 8), empty(6, 4, 3, 3)
    found = counted(lambda: F.conv2d(x, w, padding=1))
    sizes = (x, w, dy) = [t.numel() * 4 for t in (x, w, empty(2, 6, 8, 8))]
    products = 2 * 2 * 6 * 64 * 4 * 9
    assert bytes_of(found) == (x + w, dy, 1) and found.flops == products
    arguments = [empty(2, 6, 8, 8), empty(2, 4, 8, 8), empty(6, 4, 3, 3), [6], [1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    found = counted(lambda: torch.ops.aten.convolution_backward(*arguments, list(mask)))
    kernels = [("dx", dy + w, x, products), ("dw", dy + x, w, products), ("db", dy, 24, 0)]
    expected = [
        Kernel(f"convolution_backward {name}", *rest, "float32")
        for wanted, (name, *rest) in zip(mask, kernels, strict=True)
        if wanted
    ]
    assert found.kernels == expected and min(sizes) > 0


def test_a_convolution_copies_operands_of_another_memory_format():
    x, w = empty(2, 4, 8, 8).contiguous(memory_format=torch.channels_last), empty(6, 4, 3, 3)
    found = counted(lambda: F.conv2d(x, w))
    assert [kernel.name for kernel in found.kernels] == ["convolution contiguous", "convolution"]
    assert found.kernels[0].moved == 2 * w.numel() * 4
    with Counter():
        assert F.conv2d(x, w).is_contiguous(memory_format=torch.channels_last)
        assert F.conv2d(x.double(), w.double()).is_contiguous()  # cuDNN has no float64 in channels_last


def test_an_op_of_ours_counts_as_its_native_kernels():
    x, b = empty(2, 4, 8, 8), empty(4)
    with meta_as_cuda():
        found = counted(lambda: PF.bias_act(x, b, act="lrelu"))
        strided = counted(lambda: PF.bias_act(x[..., ::2], b, act="lrelu"))
    assert found.kernels == [Kernel("native bias_act", 2048 + 16, 2048, 0, "float32")]
    assert [kernel.name for kernel in strided.kernels] == ["clone", "native bias_act"]


def test_inference_writes_over_the_result_of_the_convolution():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3), empty(2, 4)
    with meta_as_cuda(), torch.no_grad():
        found = counted(lambda: PF.modulated_conv2d(x, w, styles, padding=1, demodulate=False, act="lrelu"))
    names = ["native modulated_factors", "native prologue2d", "convolution", "native epilogue2d"]
    assert [kernel.name for kernel in found.kernels] == names
    assert found.moved == (576 + 32 + 576 + 32) + (2048 + 32 + 2048) + (2048 + 576 + 2048) + (2048 + 2048)


def test_the_choice_of_backend_is_as_before_afterwards():
    x = empty(1, 1, 2, 2)
    with meta_as_cuda():
        assert PF.explain("bias_act", x).backend == "cuda" and backend.cpu_can_run(x) is not None
    assert backend.cuda_can_run(x) is not None and not op.is_watched()


def test_autocast_gives_the_layer_its_dtype():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3), empty(2, 4)
    with meta_as_cuda(), torch.no_grad():
        with autocast(torch.bfloat16):
            assert PF.modulated_conv2d(x, w, styles).dtype == torch.bfloat16
            assert PF.modulated_conv2d(x.double(), w, styles).dtype == torch.float64
        assert PF.modulated_conv2d(x, w, styles).dtype == torch.float32


def test_a_launcher_of_triton_is_one_kernel(monkeypatch):
    def launch(x, weight, y):
        raise AssertionError("ran")

    module = types.ModuleType("launchers")
    module.launch, module.arch_of = launch, lambda device: 0
    monkeypatch.setitem(sys.modules, "launchers", module)
    row = Launcher("launchers", "launch", ("y",), lambda arguments: arguments["y"].numel())
    x, weight, y = empty(2, 4), empty(4), empty(2, 4)
    with mock.patch("benchmarks.traffic_cuda.LAUNCHERS", (row,)), meta_as_cuda():
        found = counted(lambda: module.launch(x, y=y, weight=weight))
    assert found.kernels == [Kernel("triton launch", 48, 32, 8, "float32")]
    assert module.launch is launch
    record("nobody looks on", (x,), (y,))


def test_gradients_of_styles_alone_do_not_convolve_for_the_weight():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3).requires_grad_(), empty(2, 4).requires_grad_()
    with meta_as_cuda():
        with Counter():
            y = PF.modulated_conv2d(x, w, styles, padding=1)
        found = counted(lambda: torch.autograd.grad(y, styles, torch.empty_like(y)))
    names = [kernel.name for kernel in found.kernels]
    assert "convolution_backward dx" in names and "convolution_backward dw" not in names


def test_explain_does_not_name_a_kernel_that_cannot_serve():
    """A map beside factors that keep float16 in range, and more samples than shared memory holds."""
    with meta_as_cuda(), torch.no_grad():
        x = torch.empty(1, 64, 256, 256, dtype=torch.float16, device="meta").contiguous(
            memory_format=torch.channels_last
        )
        weight, styles = torch.empty(64, 64, 3, 3, device="meta"), torch.empty(1, 64, device="meta")
        pad_map = torch.empty(1, 64, 258, 258, device="meta")
        explained = lambda *args, **call: str(PF.explain("modulated_conv2d", *args, **call))  # noqa: E731
        assert "algorithm: one Triton kernel" in explained(x, weight, styles, padding=1)
        assert "algorithm: stages" in explained(x, weight, styles, padding=1, pad_map=pad_map)
        x = torch.empty(10300, 8, 8, 8, dtype=torch.float16, device="meta").contiguous(
            memory_format=torch.channels_last
        )
        weight, styles = torch.empty(3, 8, 1, 1, device="meta"), torch.empty(10300, 8, device="meta")
        assert "algorithm: stages" in explained(x, weight, styles)


@pytest.mark.parametrize(("n", "size"), [(16, 64), (256, 16), (4096, 4)])
def test_the_fused_kernel_moves_no_more_than_stages(n, size):
    """It takes styles apart where a weight for each sample would have more elements than the features."""
    moved = []
    for with_triton in (True, False):
        with meta_as_cuda(), torch.no_grad(), Counter() as counter:
            x = torch.empty(n, 128, size, size, dtype=torch.bfloat16, device="meta")
            weight, styles = torch.empty(128, 128, 3, 3, device="meta"), torch.empty(n, 128, device="meta")
            with mock.patch.object(triton, "serves", triton.serves if with_triton else lambda call: False):
                PF.modulated_conv2d(x.contiguous(memory_format=torch.channels_last), weight, styles, padding=1)
        moved.append(sum(kernel.moved for kernel in counter.traffic.kernels if kernel.name != "convolution contiguous"))
    assert moved[0] < 0.75 * moved[1]


def test_an_affine_product_is_two_kernels_unless_its_bias_is_one_of_cublaslt():
    a, b, bias = empty(4, 8), empty(8, 6), empty(6)
    assert counted(lambda: torch.addmm(bias, a, b)).launches == 1
    assert counted(lambda: torch.addmm(bias, a[:1], b)).launches == 2
    assert bytes_of(counted(lambda: torch.addmm(bias, a, b, beta=0.5))) == (24 + 128 + 192, 96 + 96, 2)


def test_an_epilogue_behind_a_filter_that_is_not_fused_is_two_kernels():
    f = PF.setup_filter([1, 3, 3, 1]).to(META)
    for act, channels, dtype, kernels in (
        ("lrelu", 4, torch.float32, 1), ("swish", 4, torch.float32, 2), ("lrelu", 3, torch.float32, 2),
        ("lrelu", 4, torch.float64, 2),
    ):  # fmt: skip
        x = empty(1, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        with meta_as_cuda(), torch.no_grad():
            found = counted(lambda x=x, act=act: PF.epilogue2d(x, f, padding=[2, 1, 2, 1], act=act))
        assert sum(kernel.name.startswith("native") for kernel in found.kernels) == kernels


@pytest.mark.parametrize(
    "taps, factors, kernels",
    [(4, dict(up=2), 1), (4, dict(down=2), 1), (4, dict(up=4), 2), (4, dict(up=2, down=2), 2), (4, dict(up=[2, 1]), 2),
     (3, {}, 2), (6, dict(up=2), 2)],
)  # fmt: skip
def test_only_the_resamplings_of_stylegan2_are_fused(taps, factors, kernels):
    """Filters of 4 x 4 taps that keep, double or halve both sides, as in csrc/upfirdn2d.cuh."""
    f = PF.setup_filter([1] * taps, separable=False).to(META)
    with meta_as_cuda(), torch.no_grad():
        found = counted(lambda: PF.epilogue2d(empty(1, 3, 8, 8), f, padding=[3, 3, 3, 3], act="lrelu", **factors))
    assert sum(kernel.name.startswith("native") for kernel in found.kernels) == kernels
