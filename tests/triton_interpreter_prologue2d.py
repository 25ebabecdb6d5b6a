"""The Triton kernel of prologue2d in Triton's interpreter: its contract and its launch table; see test_triton.py."""

from __future__ import annotations

import pytest
import torch
from contract.common import LAYOUTS, each_layout
from contract.prologue2d import Prologue2dContract, each_form, make
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices, rows_and_dtypes  # noqa: F401
from posgan_fast.kernels import prologue2d as kernel

pytestmark = numpy_warns


class TestContract(Prologue2dContract):
    """The contract in the interpreter, and what only its kernel has."""

    @each_layout
    @pytest.mark.parametrize("row,dtype", rows_and_dtypes(kernel))
    def test_row(self, row, dtype, layout, backend, monkeypatch):  # noqa: F811
        """Every row of the launch table is chosen for the lengths it says, and right there, in whole vectors or not."""
        chosen = record_choices(kernel, monkeypatch)
        limit = min(row.limit, 1100)
        for length in (limit, limit - 1):
            shape = (2, length, 2, 3) if layout == torch.channels_last else (2, 3, 4, length - 4)
            x, arguments = make(shape, "zeros", None, "add", True, True, dtype)
            self.check(x.contiguous(memory_format=layout), arguments, backend)
        assert chosen == [row, row]

    @each_form
    def test_64_bit(self, form, backend, monkeypatch):  # noqa: F811
        force_64_bit_indices(kernel, monkeypatch)
        for shape, layout in (((1, 3, 5, 7), LAYOUTS[0]), ((3, 4, 2, 9), LAYOUTS[1])):
            x, arguments = make(shape, form, "spe", "concat", True, True, torch.float32)
            self.check(x.contiguous(memory_format=layout), arguments, backend)
