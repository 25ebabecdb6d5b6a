"""Tests of the Triton kernel of epilogue2d on the CPU, in Triton's interpreter; started by test_triton.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from posgan_fast.kernels import epilogue2d as epilogue2d_kernel
from test_epilogue2d import RESAMPLINGS, answer, operands
from triton_interpreter import DTYPES, LAYOUTS, _record, assert_close, each_dtype, each_layout, tall_tiles  # noqa: F401

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of infinities


def _rows():
    for i, row in enumerate(epilogue2d_kernel.TABLE):
        for dtype in DTYPES:
            if dtype.itemsize == row.itemsize:
                yield pytest.param(row, dtype, id=f"{i}-{dtype}")


@each_layout
@pytest.mark.parametrize("row,dtype", _rows())
def test_row(row, dtype, layout, monkeypatch):
    """Every row of the launch table is chosen for the lengths it says, and right there, aligned or not."""
    for length in (min(row.limit, 2500), max(2, min(row.limit, 2500) - 1)):
        shape = (2, 3, 1, length) if layout == torch.contiguous_format else (2, length, 3, 2)
        x, call = operands(shape, dtype, layout, {})
        with monkeypatch.context() as patch:
            chosen = _record(epilogue2d_kernel, patch)
            y = PF.epilogue2d(x, **call, act="lrelu", clamp=1.5, backend="triton")
        assert chosen == [row]
        assert_close(y, answer(x, "lrelu", clamp=1.5, **call), "epilogue2d", dtype)


@each_layout
@each_dtype
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_optional_parts(act, dtype, layout):
    for i, parts in enumerate(itertools.product((False, True), (0, 1, 2), (False, True))):
        x, call = operands((2, 5, 3, 4), dtype, layout, {}, *parts, seed=i)
        call |= dict(act=act, gain=-1.5, clamp=(None, 0.75)[i % 2])
        assert_close(PF.epilogue2d(x, **call, backend="triton"), answer(x, **call), "epilogue2d", dtype)


@each_layout
@pytest.mark.parametrize("name", ["blur", "up2", "down2", "uneven"])
def test_behind_a_filter(name, layout):
    for parts in ((True, 2, True), (False, 0, False)):
        x, call = operands((2, 5, 5, 6), torch.float32, layout, RESAMPLINGS[name], *parts)
        act = "swish" if parts[0] else "linear"
        y = PF.epilogue2d(x, **call, act=act, backend="triton")
        assert_close(y, answer(x, act, **call), "epilogue2d", x.dtype)
        assert y.is_contiguous(memory_format=layout)


@each_layout
@pytest.mark.parametrize("noises", [1, 2])
def test_64_bit(noises, layout, monkeypatch):
    monkeypatch.setattr(epilogue2d_kernel, "INT32_LIMIT", 0)
    x, call = operands((2, 3, 7, 5), torch.float32, layout, {}, noises=noises)
    y = PF.epilogue2d(x, **call, act="swish", backend="triton")
    assert_close(y, answer(x, "swish", **call), "epilogue2d", x.dtype)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, 1:, 1:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, :1, :1],
    ],
)
def test_views_and_in_place(view):
    x = view(operands((2, 5, 6, 7), torch.float32, LAYOUTS[0], {})[0])
    _, call = operands(x.shape, x.dtype, LAYOUTS[0], {})
    expected = answer(x, "lrelu", **call)
    assert_close(PF.epilogue2d(x, **call, act="lrelu", backend="triton"), expected, "epilogue2d", x.dtype)
    parts = (call["scale"], call["noise"], call["b"])
    torch.ops.posgan_fast.epilogue2d_(x, *parts, "lrelu", 0.2, 2**0.5, -1.0, "triton")
    assert_close(x, expected, "epilogue2d", x.dtype)


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
def test_derivatives(act):
    x, call = operands((1, 2, 2, 3), torch.float64, LAYOUTS[0], RESAMPLINGS["up2"])
    inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in ("scale", "noise", "b")))]

    def function(x, scale, noise, b):
        return PF.epilogue2d(x, scale=scale, noise=noise, b=b, act=act, clamp=2.0, backend="triton", **call)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
