"""The Triton kernel of epilogue2d_backward in Triton's interpreter: its contract and its launch table; see
test_triton.py."""

from __future__ import annotations

import pytest
import torch
from contract.common import INTERPRETER, each_layout
from contract.epilogue2d_backward import BackwardContract, check
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices, rows_and_dtypes  # noqa: F401
from posgan_fast.kernels import epilogue2d_backward as kernel

pytestmark = numpy_warns


class TestContract(BackwardContract):
    """The contract in the interpreter."""


@each_layout
@pytest.mark.parametrize("row,dtype", rows_and_dtypes(kernel))
def test_row(row, dtype, layout, monkeypatch):
    """Every row of the launch table is chosen for the lengths it says, and right there, aligned or not."""
    for length in (min(row.limit, 2500), max(2, min(row.limit, 2500) - 1)):
        shape = (2, 3, 1, length) if layout == torch.contiguous_format else (2, length, 3, 2)
        with monkeypatch.context() as patch:
            chosen = record_choices(kernel, patch)
            check(shape, dtype, layout, "lrelu", INTERPRETER, clamp=1.5)
        assert set(chosen) == {row}


@each_layout
def test_64_bit(layout, monkeypatch):
    force_64_bit_indices(kernel, monkeypatch)
    check((2, 3, 7, 5), torch.float32, layout, "swish", INTERPRETER)


@each_layout
@pytest.mark.parametrize("programs", [1, 7])
def test_strips_of_several_steps(programs, layout, monkeypatch):
    monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", programs)
    check((2, 40, 33, 17), torch.float32, layout, "lrelu", INTERPRETER)
