"""Fresh memory holds NaN in every test: an element that a kernel leaves unwritten shows in the result."""

from __future__ import annotations

import pytest
import torch
from native_ops import spoil

from posgan_fast import functional as PF

X = torch.ones(2, 4, 6, 6)
CALLS = {
    "upfirdn2d": lambda: PF.upfirdn2d(X, torch.ones(4), padding=2, backend="cpu"),
    "bias_act": lambda: PF.bias_act(X, act="relu", backend="cpu"),
    "prologue2d": lambda: PF.prologue2d(X, padding=1, backend="cpu"),
    "epilogue2d": lambda: PF.epilogue2d(X, noise=torch.ones(1, 1, 6, 6), backend="cpu"),
    "modulated_weight": lambda: PF.modulated_conv2d(
        X, torch.ones(3, 4, 3, 3), torch.ones(2, 4), padding=1, backend="cpu"
    ),
}


@pytest.mark.parametrize("make", [torch.empty, torch.ones(()).new_empty], ids=["empty", "new_empty"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_fresh_memory_is_nan(make, dtype):
    y = make(3, 5, dtype=dtype)
    strided = torch.empty_strided((2, 3), (1, 2), dtype=dtype)
    assert all(t.isnan().all() for t in (y, torch.empty_like(y), y.new_empty_strided((5,), (1,)), strided))
    assert torch.zeros(2, dtype=dtype).resize_(9)[2:].isnan().all()


@pytest.mark.parametrize("name", CALLS)
def test_an_element_that_a_kernel_leaves_unwritten_is_seen(name, monkeypatch):
    def forgetful(run, y):
        last = y.select(0, -1).select(0, -1)
        before = last.clone()
        run()
        last.copy_(before)

    whole = CALLS[name]()
    spoil(monkeypatch, name, forgetful)
    assert whole.isfinite().all() and CALLS[name]().isnan().any()
