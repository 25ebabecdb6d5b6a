"""The cuda and triton backends on a device: the contracts, and what only devices have.

Nothing here imports what a bare GPU machine lacks: hypothesis, scipy, numpy or packaging.
"""

from __future__ import annotations

import itertools

import cases
import pytest
import torch
from contract.bias_act import BiasActContract
from contract.common import DEVICE as BACKENDS
from contract.common import LAYOUTS, each_dtype, each_layout, each_of
from contract.epilogue2d import Epilogue2dContract
from contract.epilogue2d_backward import BackwardContract
from contract.modulated_conv2d import ModulatedConv2dContract
from contract.modulated_conv2d_pair import ModulatedConv2dPairContract
from contract.prologue2d import Prologue2dContract
from contract.upfirdn2d import Upfirdn2dContract
from tolerances import assert_close

from posgan_fast import functional as PF

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
backend = each_of(BACKENDS)


class TestBiasAct(BiasActContract):
    """The contract of bias_act on a device."""


class TestUpfirdn2d(Upfirdn2dContract):
    """The contract of upfirdn2d on a device."""


class TestEpilogue2d(Epilogue2dContract):
    """The contract of epilogue2d on a device."""


class TestEpilogue2dBackward(BackwardContract):
    """The contract of epilogue2d's gradients on a device."""


class TestModulatedConv2d(ModulatedConv2dContract):
    """The contract of modulated_conv2d on a device."""


class TestModulatedConv2dPair(ModulatedConv2dPairContract):
    """The contract of two style layers in succession on a device."""

    DEVICE = DEVICE


class TestPrologue2d(Prologue2dContract):
    """The contract of prologue2d on a device."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "resolution,side,border",
    [*itertools.product((256, 512, 1024), (3,), ("", "map", "ring")), (8, 1, ""), (64, 1, ""), (1024, 1, "")],
)
def test_fused_modulated_conv2d(resolution, side, border, dtype, monkeypatch):
    """The layers of StyleGAN2 that the launch table lists, in float64 on the same device; RGB where only that is."""
    kernel = pytest.importorskip("posgan_fast.kernels.modulated_conv2d")
    calls, launch = [], kernel.modulated_conv2d
    monkeypatch.setattr(kernel, "modulated_conv2d", lambda *args: calls.append(args) or launch(*args))
    # In float32 of fewer products: a sum of 576 rounds by as much as the table allows.
    most = cases.channels(resolution) if side == 1 else 32 if dtype == torch.float32 else 64
    i = min(cases.channels(resolution), most)
    o = i if side == 3 and dtype != torch.float32 else 3
    h, w = resolution - 3, resolution  # rows of tiles that end early
    ring = {"": None, "map": (2, i, h + 2, w + 2), "ring": (2, i, 2 * (h + w) + 4)}[border]
    x = _like((2, i, h, w), dtype, torch.channels_last, 0)
    weight = _like((o, i, side, side), torch.float32, torch.contiguous_format, 3)
    styles = _like((2, i), torch.float32, torch.contiguous_format, 4)
    arguments = dict(
        padding=side // 2,
        pad_map=None if ring is None else _like(ring, dtype, torch.contiguous_format, 2),
        demodulate=side == 3,
        noise=_like((1, 1, h, w), torch.float32, torch.contiguous_format, 1),
        bias=_like((o,), dtype, torch.contiguous_format, 5),
        act="lrelu",
        clamp=8.0,
    )
    given = [x, weight / (i * side**2) ** 0.5, styles]  # toRGB has no demodulation to keep it off the clamp
    given, arguments = [_there(t) for t in given], {k: _there(v) for k, v in arguments.items()}
    y = PF.modulated_conv2d(*given, **arguments, backend="triton")
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    expected = PF.modulated_conv2d(*(t.double() for t in given), **wide, backend="reference")
    assert len(calls) == 1 and y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, expected, "modulated_conv2d", dtype)


@each_layout
@each_dtype
@pytest.mark.parametrize(
    "resampling", [{}, dict(up=2, padding=[2, 1, 2, 1], filter_gain=4.0), dict(padding=1)], ids=str
)
def test_epilogue2d_within_the_table(resampling, dtype, layout, backend):
    """Hold value and gradients to the table where nothing cancels what is rounded in between."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    resampling = resampling | dict(f=torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8) if resampling else {}
    for channels, act in ((5, "lrelu"), (16, "lrelu"), (16, "swish")):
        x, scale = _like((2, channels, 9, 8), dtype, layout, 0), _like((2, channels), acc, layout, 1)
        noise = _like((2, 1, *PF.epilogue2d(x, **resampling).shape[2:]), acc, torch.contiguous_format, 2)
        parts = (x, scale, noise, _like((channels,), dtype, layout, 3))
        results = []
        for place, name in ((lambda t: t.double(), "reference"), (lambda t: t.to(DEVICE), backend.name)):
            x, scale, noise, b = (place(t).detach().requires_grad_() for t in parts)
            call = {key: t.to(x.device) if key == "f" else t for key, t in resampling.items()}
            y = PF.epilogue2d(x, **call, scale=scale, noise=noise, b=b, act=act, clamp=8.0, backend=name)
            g = place(_like(y.shape, dtype, layout, 4))
            results.append((y, *torch.autograd.grad(y, (x, scale, noise, b), g)))
        (expected, *wide), (actual, *gradients) = results
        assert_close(actual, expected, "epilogue2d", dtype)
        assert actual.is_contiguous(memory_format=layout)
        for a, e in zip(gradients, wide, strict=True):  # of rounded gradients, in sums
            bound = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
            assert (a.double().cpu() - e).norm() <= bound * e.norm()
        if not resampling:
            x = parts[0].to(DEVICE)
            beside = [t.to(DEVICE) for t in parts[1:]]
            torch.ops.posgan_fast.epilogue2d_(x, *beside, act, 0.2, 2**0.5, 8.0, backend.name)
            assert torch.equal(x, actual)


@each_layout
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "resampling",
    [dict(up=2, padding=[2, 1, 2, 1], filter_gain=4.0), dict(down=2, padding=1), dict(padding=[2, 1, 1, 2])],
    ids=str,
)
def test_epilogue2d_behind_a_filter_rounds_once_on_cuda(resampling, dtype, layout):
    """Resampling and epilogue are one kernel, whose values stay in float32 until they are stored."""
    x, f = _like((2, 20, 37, 34), dtype, layout, 0).to(DEVICE), torch.tensor([1.0, 3.0, 3.0, 1.0], device=DEVICE) / 8
    size = PF.upfirdn2d(x, f, **{k: v for k, v in resampling.items() if k != "filter_gain"}).shape[2:]
    scale, b = _like((2, 20), torch.float32, layout, 1), _like((20,), dtype, layout, 2)
    for shared, *given in itertools.product((False, True), repeat=4):
        noise = _like((1 if shared else 2, 1, *size), torch.float32, torch.contiguous_format, 3)
        parts = {"scale": scale, "noise": noise, "b": b}
        parts = {k: t.to(DEVICE) for (k, t), wanted in zip(parts.items(), given, strict=True) if wanted}
        for act in ("linear", "relu", "lrelu"):
            call = dict(**resampling, **parts, act=act, clamp=2.0)
            y = PF.epilogue2d(x, f, **call, backend="cuda").double()
            expected = PF.epilogue2d(x.double(), f, **call, backend="reference")
            bound = (torch.finfo(dtype).eps / 2 + 1e-6) * expected.abs() + 1e-5
            assert ((y - expected).abs() <= bound).all(), (act, given)


@each_dtype
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_misaligned_views(offset, dtype, backend):
    """Neither the first element nor the rows of x lie on a vector's boundary."""
    storage = _like((2, 8, 17, 22), dtype, torch.contiguous_format, 3)
    case = cases.Upfirdn2dCase("", storage.shape, (2, 2), (1, 1), (2, 1, 2, 1), 4)
    _, f = case.tensors(dtype, torch.contiguous_format)
    for layout in LAYOUTS:
        for cut in (lambda t: t[:, :, :, offset:], lambda t: t[:, offset:], lambda t: t[:, :, offset:, : 22 - offset]):
            x = cut(storage.contiguous(memory_format=layout))
            x_there = cut(storage.to(DEVICE).contiguous(memory_format=layout))
            y = PF.upfirdn2d(x_there, f.to(DEVICE), **case.arguments, backend=backend.name)
            assert_close(y, PF.upfirdn2d(x.double(), f, **case.arguments, backend="reference"), "upfirdn2d", dtype)
    flat = storage.flatten()[offset : offset + 3 * 7 * 11].view(3, 7, 11)
    flat_there = storage.to(DEVICE).flatten()[offset : offset + 3 * 7 * 11].view(3, 7, 11)
    b = _like((7 + offset,), dtype, torch.contiguous_format, 4)
    y = PF.bias_act(flat_there, b.to(DEVICE)[offset:], act="lrelu", clamp=1, backend=backend.name)
    expected = PF.bias_act(flat.double(), b.double()[offset:], act="lrelu", clamp=1, backend="reference")
    assert_close(y, expected, "bias_act", dtype)


@pytest.mark.large
@each_layout
def test_more_elements_than_32_bits_index(layout, backend):
    """The corners of tensors beyond 2^31 elements equal the same pixels computed alone."""
    shape = (1, 1, 2**16 + 3, 2**15 + 1) if layout == torch.contiguous_format else (1, 4, 2**15 + 3, 2**14 + 1)
    numel = shape[1] * shape[2] * shape[3]
    free = torch.cuda.mem_get_info()[0]
    if free < 5 * numel * 2:
        pytest.skip(f"needs {5 * numel * 2 / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} are free")
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=layout).normal_()
    assert x.numel() > 2**31
    f = torch.tensor([1.0, 3.0, 3.0, 1.0], device=DEVICE) / 8
    b = torch.arange(1.0, 1 + shape[1], device=DEVICE).bfloat16()
    y = PF.upfirdn2d(x, f, padding=[2, 1, 2, 1], backend=backend.name)  # y[o] is made of x[o - 2] to x[o + 1]
    z = PF.bias_act(x, b, act="lrelu", clamp=1.5, backend=backend.name)
    # of six samples at an edge, and the padding there, the outputs they determine
    ends = ((slice(0, 6), [2, 0], slice(0, 5)), (slice(-6, None), [0, 1], slice(-4, None)))
    for rows, pad_y, out_rows in ends:
        for columns, pad_x, out_columns in ends:
            part = x[:, :, rows, columns].cpu().double()
            expected = PF.upfirdn2d(part, f.cpu(), padding=pad_x + pad_y, backend="reference")
            assert_close(y[:, :, out_rows, out_columns], expected, "upfirdn2d", x.dtype)
            expected = PF.bias_act(part, b.cpu().double(), act="lrelu", clamp=1.5, backend="reference")
            assert_close(z[:, :, rows, columns], expected, "bias_act", x.dtype)


def test_compiles_without_a_graph_break(backend):
    x, f, b = _layer(torch.float32)
    x.requires_grad_()
    results = []
    for layer in (_run_layer, torch.compile(_run_layer, fullgraph=True)):
        y = layer(x, f, b, backend.name)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_autocast(backend):
    """The ops run in the dtype of x; the float32 bias follows it."""
    x, f, b = _layer(torch.float16)
    with torch.autocast(DEVICE, torch.float16):
        y = _run_layer(x, f, b.float(), backend.name)
    assert y.dtype == torch.float16
    assert torch.equal(y, _run_layer(x, f, b, backend.name))


def test_cuda_graph(backend):
    """A captured layer follows its input's memory."""
    x, f, b = _layer(torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _run_layer(x, f, b, backend.name)  # compiles and loads
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = _run_layer(x, f, b, backend.name)
    for seed in (5, 6):
        x.copy_(_like(x.shape, x.dtype, torch.contiguous_format, seed))
        graph.replay()
        assert torch.equal(y, _run_layer(x, f, b, backend.name))


def test_runs_on_the_current_stream(backend):
    """On a second stream the ops wait for what that stream still has to write."""
    x, f, b = _layer(torch.float32)
    expected = _run_layer(x, f, b, backend.name)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        actual = _run_layer(late, f, b, backend.name)
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_the_cuda_kernels_come_first():
    x, f, _ = _layer(torch.float32)
    assert PF.explain("upfirdn2d", x, f).backend == PF.explain("bias_act", x).backend == "cuda"


def _like(shape, dtype, layout, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values.contiguous(memory_format=layout) if values.ndim == 4 else values


def _there(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def _layer(dtype):
    x = _like((2, 16, 20, 24), dtype, torch.contiguous_format, 0).to(DEVICE)
    b = _like((16,), dtype, torch.contiguous_format, 1).to(DEVICE)
    return x, torch.tensor([1.0, 3.0, 3.0, 1.0], device=DEVICE) / 8, b


def _run_layer(x, f, b, backend):
    y = PF.upfirdn2d(x, f, 2, 1, [2, 1, 2, 1], gain=4, backend=backend)
    return PF.bias_act(y, b, act="lrelu", clamp=2, backend=backend)
