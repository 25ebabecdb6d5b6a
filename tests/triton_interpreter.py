"""Tests of the Triton kernels on the CPU, in Triton's interpreter; test_triton.py starts them in their own process."""

from __future__ import annotations

import dataclasses
import os

import cases
import oracle
import pytest
import tolerances
import torch
from posgan_fast.kernels import bias_act as bias_act_kernel
from posgan_fast.kernels import upfirdn2d as upfirdn2d_kernel

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of infinities

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def _upfirdn2d_rows():
    for i, row in enumerate(upfirdn2d_kernel.TABLE):
        for dtype in DTYPES:
            if dtype.itemsize in row.itemsizes:
                yield pytest.param(row, dtype, id=f"{i}-{row.kernel}-{row.layout}-{dtype}")


@pytest.mark.parametrize("row,dtype", _upfirdn2d_rows())
def test_upfirdn2d_row(row, dtype, monkeypatch):
    """Every row of the launch table is chosen for the sizes it says, and right there."""
    size = row.limit if row.limit < upfirdn2d_kernel.ANY else 131 if row.layout == "nchw" else 72
    if row.layout == "nchw":
        x = _random((1, 2, 2, size), dtype)
    else:
        c = size - (row.layout == "nhwc1")  # no whole number of vectors
        x = _random((1, c, 2, 4), dtype).contiguous(memory_format=torch.channels_last)
    taps, up_y, down_y = {"full": ((4, 4), 1, 2), "separable": ((5,), 2, 1), "looped": ((3, 3), 5, 1)}[row.kernel]
    f = _random(taps, torch.float32, 1)
    chosen = _record(upfirdn2d_kernel, monkeypatch)
    padding = [taps[-1] // 2, (taps[-1] - 1) // 2, 4, 5]  # keeps the width
    y = PF.upfirdn2d(x, f, (1, up_y), (1, down_y), padding, gain=1.5, backend="triton")
    assert chosen == [row]
    assert_close(y, oracle.upfirdn2d(x, f, (1, up_y), (1, down_y), padding, False, 1.5), "upfirdn2d", dtype)


@pytest.mark.parametrize("case", cases.UPFIRDN2D_SMALL, ids=lambda c: c.name)
def test_upfirdn2d(case):
    """Value, gradient, and gradient of the gradient."""
    dtype, layout = torch.float64, LAYOUTS[case.shape[1] > 4]
    case = dataclasses.replace(case, shape=(1, case.shape[1], *(min(size, 20) for size in case.shape[2:])))
    x, f = case.tensors(dtype, layout)
    g, h = (_random(shape, dtype, 1).contiguous(memory_format=layout) for shape in (case.out_shape, case.shape))
    expected = _upfirdn2d_orders(case, x, f, g, h, "reference")
    for actual, e in zip(_upfirdn2d_orders(case, x, f, g, h, "triton"), expected, strict=True):
        assert_close(actual, e, "upfirdn2d", dtype)
        assert actual.is_contiguous(memory_format=layout)


# x, taps (one: separable), up, down, padding
ODD = [
    ((2, 1, 3, 2), (1, 1), (3, 3), (1, 1), (0, 2, 0, 2)),  # most outputs have no tap
    ((1, 2, 1, 1), (4, 4), (1, 1), (1, 1), (3, 3, 3, 3)),
    ((1, 2, 4, 3), (2, 5), (4, 2), (3, 4), (-2, 3, 7, -1)),
    ((1, 1, 7, 9), (3, 1), (1, 1), (4, 3), (-1, -2, 0, -3)),
    ((1, 2, 3, 2), (3,), (1, 4), (4, 1), (9, -4, 5, 1)),
    ((1, 2, 2, 3), (12,), (2, 1), (1, 2), (6, 5, 7, 8)),
    ((1, 2, 3, 2), (26,), (1, 1), (1, 1), (13, 14, 12, 13)),
    ((1, 2, 2, 3), (9, 2), (1, 7), (6, 5), (4, 4, -3, 8)),
    ((0, 3, 4, 4), (4, 4), (2, 2), (1, 1), (2, 1, 2, 1)),
]


@each_layout
@pytest.mark.parametrize("flip,large", [(False, False), (True, True)], ids=["32-bit", "64-bit"])
@pytest.mark.parametrize("shape,taps,up,down,padding", ODD)
def test_upfirdn2d_odd_sizes(shape, taps, up, down, padding, flip, large, layout, monkeypatch):
    if large:
        monkeypatch.setattr(upfirdn2d_kernel, "INT32_LIMIT", 0)
    x = _random(shape, torch.float32).contiguous(memory_format=layout)
    f = _random(taps, torch.float32, 1)
    y = PF.upfirdn2d(x, f, up, down, padding, flip, backend="triton")
    assert_close(y, oracle.upfirdn2d(x, f, up, down, padding, flip), "upfirdn2d", x.dtype)


def test_upfirdn2d_low_tiles(monkeypatch):
    """Few programs: the tiles get lower than the table's, here the lowest."""
    x, f = _random((1, 1, 13, 5), torch.float32), _random((3, 4), torch.float32, 1)
    tall = PF.upfirdn2d(x, f, 1, 1, 2, backend="triton")
    monkeypatch.setattr(upfirdn2d_kernel, "ENOUGH_PROGRAMS", 2**31)
    assert torch.equal(PF.upfirdn2d(x, f, 1, 1, 2, backend="triton"), tall)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 1:, 1:],
        lambda x: x[:, 1:3],
        lambda x: x[:, :, ::2, ::2],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 2:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
        lambda x: x[:, :, :, :1],
        lambda x: x[:, :, :1],
    ],
)
def test_upfirdn2d_views(view):
    x = view(_random((2, 8, 5, 6), torch.float32))
    f = _random((3, 4), torch.float32, 1)
    y = PF.upfirdn2d(x, f, 1, 1, [2, 2], backend="triton")
    assert_close(y, oracle.upfirdn2d(x, f, padding=(2, 2, 2, 2)), "upfirdn2d", x.dtype)


def _bias_act_rows():
    for i, row in enumerate(bias_act_kernel.TABLE):
        for dtype in DTYPES:
            if dtype.itemsize == row.itemsize:
                yield pytest.param(row, dtype, id=f"{i}-{dtype}")


@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("row,dtype", _bias_act_rows())
def test_bias_act_row(row, dtype, innermost, monkeypatch):
    """Every row of the launch table is chosen for the lengths it says, and right there, aligned or not."""
    for length in (min(row.limit, 2500), max(2, min(row.limit, 2500) - 1)):
        shape = (3, 2, length) if innermost else (2, 3, length)
        dim = 2 if innermost else 1
        x, b = _random(shape, dtype), _random(shape[dim : dim + 1], dtype, 1)
        with monkeypatch.context() as patch:
            chosen = _record(bias_act_kernel, patch)
            y = PF.bias_act(x, b, dim, "lrelu", clamp=1.5, backend="triton")
        assert chosen == [row]
        assert_close(y, oracle.bias_act(x, b, dim, "lrelu", 0.2, 2**0.5, 1.5)[0], "bias_act", dtype)


@each_dtype
@pytest.mark.parametrize("clamp", [None, 0.75])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act, clamp, dtype):
    """Value, first and second derivatives against closed forms."""
    row = ACTIVATIONS[act]
    for alpha, dim, biased in ((row.alpha, 1, True), (-0.3, -1, True), (0.4, 1, False)):
        x, g, h = (_random((2, 5, 4, 5), dtype, seed) * 2 for seed in range(3))
        x = x.contiguous(memory_format=LAYOUTS[clamp is not None])
        b = _random((5,), dtype, 3) if biased else None
        expected = oracle.bias_act(x, b, dim, act, alpha, -1.5, clamp, g, h)
        x.requires_grad_()
        g.requires_grad_()
        y = PF.bias_act(x, b, dim, act, alpha, -1.5, clamp, backend="triton")
        (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
        d_g, d_x = torch.autograd.grad(dx, (g, x), h, allow_unused=True)
        for actual, e in zip((y, dx, d_g, torch.zeros_like(x) if d_x is None else d_x), expected, strict=True):
            assert_close(actual, e, "bias_act", dtype)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_derivatives(act):
    x = _random((2, 3, 4), torch.float64)
    x = torch.where(x.abs() < 0.05, 0.1, x).requires_grad_()  # finite differences must not straddle a kink
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    function = lambda x, b: PF.bias_act(x, b, act=act, clamp=0.6, backend="triton")  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, b), fast_mode=True)


def test_upfirdn2d_derivatives():
    x = _random((1, 2, 4, 5), torch.float64).requires_grad_()
    f = _random((3, 4), torch.float64, 1)
    function = lambda x: PF.upfirdn2d(x, f, (2, 1), (1, 2), (3, 1, -1, 4), gain=1.3, backend="triton")  # noqa: E731
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@each_dtype
def test_bias_act_extremes(dtype):
    """Saturation, cancellation and not-a-number."""
    info = torch.finfo(dtype)
    edge = [-float("inf"), info.min, -100, -info.eps, -info.tiny, 0, info.tiny, info.eps, 100, info.max, float("inf")]
    x = torch.tensor([*edge, float("nan")], dtype=dtype)
    for act in ACTIVATIONS:
        expected = PF.bias_act(x.double(), None, 0, act, gain=1.0, backend="reference").to(dtype)
        actual = PF.bias_act(x, None, 0, act, gain=1.0, backend="triton")
        torch.testing.assert_close(actual, expected, rtol=4 * info.eps, atol=1e-35, equal_nan=True)
    clamped = PF.bias_act(x, None, 0, "linear", clamp=3.0, backend="triton")
    torch.testing.assert_close(clamped, x.clamp(-3, 3), equal_nan=True)


def test_bias_act_64_bit(monkeypatch):
    monkeypatch.setattr(bias_act_kernel, "INT32_LIMIT", 0)
    x, b = _random((2, 3, 7, 5), torch.float32), _random((3,), torch.float32, 1)
    for layout in LAYOUTS:
        y = PF.bias_act(x.contiguous(memory_format=layout), b, act="swish", backend="triton")
        assert_close(y, oracle.bias_act(x, b, 1, "swish", 0, 2**0.5, None)[0], "bias_act", x.dtype)


def test_bias_act_in_place():
    x, b = _random((2, 3, 7, 5), torch.float32), _random((3,), torch.float32, 1)
    expected = PF.bias_act(x, b, act="lrelu", clamp=1.0, backend="triton")
    assert PF.bias_act_(x, b, act="lrelu", clamp=1.0, backend="triton") is x
    assert torch.equal(x, expected)


def test_nothing_to_compute():
    x = torch.empty(0, 3, 4, 4)
    assert PF.bias_act(x, torch.ones(3), act="lrelu", backend="triton").shape == x.shape


def test_compiles_without_a_graph_break():
    f, b = PF.setup_filter([1, 3, 3, 1]), _random((3,), torch.float32, 1)

    def layer(x):
        y = PF.upsample2d(x, f, backend="triton")
        return PF.bias_act(y, b, act="lrelu", clamp=1.0, backend="triton")

    x = _random((1, 3, 4, 4), torch.float32).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x), expected)


@pytest.fixture(autouse=True)
def tall_tiles(monkeypatch):
    """The interpreter's time is the number of programs."""
    monkeypatch.setattr(upfirdn2d_kernel, "ENOUGH_PROGRAMS", 0)


def assert_close(actual, expected, op, dtype):
    """As everywhere, but the interpreter cuts float32 to bfloat16 where a GPU rounds."""
    if dtype == torch.bfloat16:
        expected = (expected.detach().float().contiguous().view(torch.int32) & -(2**16)).view(torch.float32).double()
    tolerances.assert_close(actual, expected, op, dtype)


def _random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _record(kernel, monkeypatch):
    """The rows of the launch table that ``kernel`` chooses from here on."""
    chosen, select = [], kernel.select
    monkeypatch.setattr(kernel, "select", lambda *args: chosen.append(select(*args)) or chosen[-1])
    return chosen


def _upfirdn2d_orders(case, x, f, g, h, backend):
    x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
    y = PF.upfirdn2d(x, f, **case.arguments, backend=backend)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
    (dg,) = torch.autograd.grad(dx, g, h)
    return y, dx, dg
