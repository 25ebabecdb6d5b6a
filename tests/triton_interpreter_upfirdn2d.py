"""The Triton kernels of upfirdn2d in Triton's interpreter: their contract and launch table; see test_triton.py."""

from __future__ import annotations

import pytest
import torch
from contract.common import DTYPES, each_layout, random
from contract.upfirdn2d import ODD, Upfirdn2dContract, answer
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices  # noqa: F401
from posgan_fast.kernels import upfirdn2d as kernel

from posgan_fast import functional as PF

pytestmark = numpy_warns


class TestContract(Upfirdn2dContract):
    """The contract in the interpreter."""

    test_the_largest_factor_runs_forward_and_backward = None  # its kernel visits 2^24 rows, quickly on a device


def _rows():
    for i, row in enumerate(kernel.TABLE):
        for dtype in DTYPES:
            if dtype.itemsize in row.itemsizes:
                yield pytest.param(row, dtype, id=f"{i}-{row.kernel}-{row.layout}-{dtype}")


@pytest.mark.parametrize("row,dtype", _rows())
def test_row(row, dtype, backend, monkeypatch):  # noqa: F811
    """Every row of the launch table is chosen for the sizes it says, and right there."""
    size = row.limit if row.limit < kernel.ANY else 131 if row.layout == "nchw" else 72
    if row.layout == "nchw":
        x = random((1, 2, 2, size), dtype)
    else:
        c = size - (row.layout == "nhwc1")  # no whole number of vectors
        x = random((1, c, 2, 4), dtype).contiguous(memory_format=torch.channels_last)
    taps, up_y, down_y = {"full": ((4, 4), 1, 2), "separable": ((5,), 2, 1), "looped": ((3, 3), 5, 1)}[row.kernel]
    f = random(taps, seed=1)
    chosen = record_choices(kernel, monkeypatch)
    padding = [taps[-1] // 2, (taps[-1] - 1) // 2, 4, 5]  # keeps the width
    y = PF.upfirdn2d(x, f, (1, up_y), (1, down_y), padding, gain=1.5, backend="triton")
    assert chosen == [row]
    backend.assert_close(y, answer(x, f, (1, up_y), (1, down_y), padding, False, 1.5), "upfirdn2d", dtype)


@each_layout
@pytest.mark.parametrize("shape,taps,up,down,padding", ODD, ids=str)
def test_64_bit(shape, taps, up, down, padding, layout, backend, monkeypatch):  # noqa: F811
    force_64_bit_indices(kernel, monkeypatch)
    x, f = random(shape).contiguous(memory_format=layout), random(taps, seed=1)
    y = PF.upfirdn2d(x, f, up, down, padding, True, backend="triton")
    backend.assert_close(y, answer(x, f, up, down, padding, True), "upfirdn2d", x.dtype)


def test_low_tiles(monkeypatch):
    """Few programs: the tiles get lower than the table's, here the lowest."""
    x, f = random((1, 1, 13, 5)), random((3, 4), seed=1)
    tall = PF.upfirdn2d(x, f, 1, 1, 2, backend="triton")
    monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", 2**31)
    assert torch.equal(PF.upfirdn2d(x, f, 1, 1, 2, backend="triton"), tall)


def test_compiles_without_a_graph_break():
    f, b = PF.setup_filter([1, 3, 3, 1]), random((3,), seed=1)

    def layer(x):
        y = PF.upsample2d(x, f, backend="triton")
        return PF.bias_act(y, b, act="lrelu", clamp=1.0, backend="triton")

    x = random((1, 3, 4, 4)).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x), expected)


@pytest.fixture(autouse=True)
def tall_tiles(monkeypatch):
    """Ask for few programs, whose number is the interpreter's time."""
    monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", 0)
