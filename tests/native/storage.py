"""Images in the memory of a kernel: storage types, layouts, offsets and gaps; and their comparison with float64."""

from __future__ import annotations

import numpy as np

STORAGE = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}
# Relative L2 against float64. In half precision, the rounding of the output dominates.
TOLERANCE = {"float16": 4e-4, "bfloat16": 3e-3, "float32": 4e-7, "float64": 1e-14}


def store(values, dtype):
    """Float64 -> storage."""
    if dtype != "bfloat16":
        return values.astype(STORAGE[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def load(values, dtype):
    """Storage -> float64."""
    if dtype != "bfloat16":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def place(values, layout, offset=0, slack=0):
    """Copy a [N, C, H, W] array into memory of a layout, with elements before its start and between its rows."""
    n, c, h, w = values.shape
    order = (0, 1, 2, 3) if layout == "nchw" else (0, 2, 3, 1)
    shape = [values.shape[d] for d in order]
    row = shape[3] * (1 if layout == "nchw" else shape[2]) + slack
    size = n * row * h * (c if layout == "nchw" else 1)
    memory = np.empty(offset + size, values.dtype)  # ends with the array, so that the sanitizer sees accesses past it
    item = values.itemsize
    strides = (c * h * row, h * row, row, 1) if layout == "nchw" else (h * row, 1, row, c)
    view = np.lib.stride_tricks.as_strided(memory[offset:], (n, c, h, w), [s * item for s in strides])
    view[...] = values
    return view


def compare(got, want, dtype, what):
    got = load(got, dtype)
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), f"{what}: other infinities or NaN"
    got, want = got[finite], want[finite]
    error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    assert error <= TOLERANCE[dtype], f"{what}: relative L2 {error:.2e}"
