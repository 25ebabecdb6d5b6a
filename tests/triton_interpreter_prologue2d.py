"""Tests of prologue2d's Triton kernel on the CPU, in Triton's interpreter; test_triton.py starts them in their own
process."""

from __future__ import annotations

import os

import pytest
import test_prologue2d as definition
import tolerances
import torch
from posgan_fast.kernels import prologue2d as kernel

from posgan_fast import functional as PF

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of infinities


def _rows():
    for i, row in enumerate(kernel.TABLE):
        for dtype in definition.DTYPES:
            if dtype.itemsize == row.itemsize:
                yield pytest.param(row, dtype, id=f"{i}-{dtype}")


@pytest.mark.parametrize("layout", definition.LAYOUTS, ids=str)
@pytest.mark.parametrize("row,dtype", _rows())
def test_row(row, dtype, layout, monkeypatch):
    """Every row of the launch table is chosen for the lengths it says, and right there, in whole vectors or not."""
    chosen, select = [], kernel.select
    monkeypatch.setattr(kernel, "select", lambda *args: chosen.append(select(*args)) or chosen[-1])
    limit = min(row.limit, 1100)
    for length in (limit, limit - 1):
        if layout == torch.channels_last:
            x, arguments = definition.make((2, length, 2, 3), "zeros", None, "add", True, True, dtype)
        else:
            x, arguments = definition.make((2, 3, 4, length - 4), "zeros", None, "add", True, True, dtype)
        check(x.contiguous(memory_format=layout), arguments)
    assert chosen == [row, row]


@pytest.mark.parametrize("layout", definition.LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", definition.DTYPES, ids=str)
@pytest.mark.parametrize("encode,join", definition.ENCODINGS)
@pytest.mark.parametrize("form", definition.FORMS)
def test_prologue2d(form, encode, join, dtype, layout):
    shape = (2, 2 if encode == "csg" and join == "add" else 8, 3, 16)  # of whole vectors where nothing is beside
    for given in (0, 3) if dtype == torch.float32 else (1 + (layout == torch.channels_last),):
        x, arguments = definition.make(shape, form, encode, join, bool(given & 1), bool(given & 2), dtype)
        check(x.contiguous(memory_format=layout), arguments | dict(layout="paper" if given else "mmgen"))


@pytest.mark.parametrize("large", [False, True], ids=["32-bit", "64-bit"])
@pytest.mark.parametrize("form", definition.FORMS)
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (3, 4, 2, 9), (2, 0, 3, 2), (0, 4, 3, 3), (1, 1, 6, 2)])
def test_ragged_sizes(shape, form, large, monkeypatch):
    if large:
        monkeypatch.setattr(kernel, "INT32_LIMIT", 0)
    for layout in definition.LAYOUTS:
        x, arguments = definition.make(shape, form, "spe", "concat", True, True, torch.float32)
        check(x.contiguous(memory_format=layout), arguments)


@pytest.mark.parametrize("view", range(len(definition.VIEWS)))
def test_views(view):
    for form in ("map", "ring"):
        x, arguments = definition.make((2, 4, 3, 5), form, "csg", "concat", True, True, torch.float32)
        for name in ("residual", "pad_map"):
            arguments[name] = definition.VIEWS[view](arguments[name])
        check(definition.VIEWS[view](x), arguments)


def test_one_pixel():
    for form in ("none", "zeros", "map", "ring"):
        x, arguments = definition.make((2, 4, 1, 1), form, "spe", "concat", True, False, torch.float32)
        check(x, arguments)


def test_derivatives():
    x, arguments = definition.make((1, 8, 2, 3), "map", "spe", "add", True, True, torch.float64)
    inputs = [x.requires_grad_(), arguments["styles"].requires_grad_(), arguments["pad_map"].requires_grad_()]

    def function(x, styles, pad_map):
        return PF.prologue2d(x, **arguments | dict(styles=styles, pad_map=pad_map), backend="triton")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_what_is_not_finite_stays_inside():
    x = torch.full((1, 2, 3, 3), float("inf"))
    y = PF.prologue2d(x, torch.full((1, 2), float("inf")), padding=1, backend="triton")
    assert y[:, :, 0].count_nonzero() == y[:, :, :, 0].count_nonzero() == 0
    assert torch.equal(y[:, :, 1:-1, 1:-1], x)


def check(x, arguments):
    y = PF.prologue2d(x, **arguments, backend="triton")
    expected = definition.define(x, **arguments)
    if x.dtype == torch.bfloat16:  # the interpreter cuts float32 to bfloat16 where a GPU rounds
        expected = (expected.float().view(torch.int32) & -(2**16)).view(torch.float32).double()
    tolerances.assert_close(y, expected, "prologue2d", x.dtype)
