"""The Triton kernel of epilogue2d in Triton's interpreter: its contract and its launch table; see test_triton.py."""

from __future__ import annotations

import pytest
import torch
from contract.common import each_layout
from contract.epilogue2d import Epilogue2dContract, answer, operands
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices, rows_and_dtypes  # noqa: F401
from posgan_fast.kernels import epilogue2d as kernel
from posgan_fast.kernels import upfirdn2d as resampling_kernel

from posgan_fast import functional as PF

pytestmark = numpy_warns


class TestContract(Epilogue2dContract):
    """The contract in the interpreter."""


@each_layout
@pytest.mark.parametrize("row,dtype", rows_and_dtypes(kernel))
def test_row(row, dtype, layout, backend, monkeypatch):  # noqa: F811
    """Every row of the launch table is chosen for the lengths it says, and right there, aligned or not."""
    for length in (min(row.limit, 2500), max(2, min(row.limit, 2500) - 1)):
        shape = (2, 3, 1, length) if layout == torch.contiguous_format else (2, length, 3, 2)
        x, call = operands(shape, dtype, layout, {})
        with monkeypatch.context() as patch:
            chosen = record_choices(kernel, patch)
            y = PF.epilogue2d(x, **call, act="lrelu", clamp=1.5, backend="triton")
        assert chosen == [row]
        backend.assert_close(y, answer(x, "lrelu", clamp=1.5, **call), "epilogue2d", dtype)


@each_layout
@pytest.mark.parametrize("noises", [1, 2])
def test_64_bit(noises, layout, backend, monkeypatch):  # noqa: F811
    force_64_bit_indices(kernel, monkeypatch)
    x, call = operands((2, 3, 7, 5), torch.float32, layout, {}, noises=noises)
    y = PF.epilogue2d(x, **call, act="swish", backend="triton")
    backend.assert_close(y, answer(x, "swish", **call), "epilogue2d", x.dtype)


@pytest.fixture(autouse=True)
def tall_tiles(monkeypatch):
    """Ask for few programs, whose number is the interpreter's time."""
    monkeypatch.setattr(resampling_kernel, "ENOUGH_PROGRAMS", 0)
