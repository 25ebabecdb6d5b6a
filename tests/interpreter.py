"""Helpers of triton_interpreter_*.py, the tests that run in Triton's interpreter, and all that they know of kernels."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
from contract.common import DTYPES, INTERPRETER, each_of

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py"

backend = each_of([INTERPRETER])
numpy_warns = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # of infinities


def rows_and_dtypes(kernel: ModuleType) -> list[Any]:
    """Every row of a launch table by length, with each dtype of its size."""
    return [
        pytest.param(row, dtype, id=f"{i}-{dtype}")
        for i, row in enumerate(kernel.TABLE)
        for dtype in DTYPES
        if dtype.itemsize == row.itemsize
    ]


def record_choices(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets each row of the launch table that ``kernel`` chooses from here on."""
    chosen: list[Any] = []
    select = kernel.select
    monkeypatch.setattr(kernel, "select", lambda *args: chosen.append(select(*args)) or chosen[-1])
    return chosen


def force_64_bit_indices(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "INT32_LIMIT", 0)
