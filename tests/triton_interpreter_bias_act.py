"""The Triton kernel of bias_act in Triton's interpreter: its contract and its launch table; see test_triton.py."""

from __future__ import annotations

import pytest
import torch
from contract.bias_act import BiasActContract, answer
from contract.common import LAYOUTS, random
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices, rows_and_dtypes  # noqa: F401
from posgan_fast.kernels import bias_act as kernel

from posgan_fast import functional as PF

pytestmark = numpy_warns


class TestContract(BiasActContract):
    """The contract in the interpreter."""


@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("row,dtype", rows_and_dtypes(kernel))
def test_row(row, dtype, innermost, backend, monkeypatch):  # noqa: F811
    """Every row of the launch table is chosen for the lengths it says, and right there, aligned or not."""
    for length in (min(row.limit, 2500), max(2, min(row.limit, 2500) - 1)):
        shape = (3, 2, length) if innermost else (2, 3, length)
        dim = 2 if innermost else 1
        x, b = random(shape, dtype), random(shape[dim : dim + 1], dtype, 1)
        with monkeypatch.context() as patch:
            chosen = record_choices(kernel, patch)
            y = PF.bias_act(x, b, dim, "lrelu", clamp=1.5, backend="triton")
        assert chosen == [row]
        backend.assert_close(y, answer(x, b, dim, "lrelu", clamp=1.5)[0], "bias_act", dtype)


def test_64_bit(backend, monkeypatch):  # noqa: F811
    force_64_bit_indices(kernel, monkeypatch)
    x, b = random((2, 3, 7, 5)), random((3,), seed=1)
    for layout in LAYOUTS:
        y = PF.bias_act(x.contiguous(memory_format=layout), b, act="swish", backend="triton")
        backend.assert_close(y, answer(x, b, 1, "swish")[0], "bias_act", torch.float32)
