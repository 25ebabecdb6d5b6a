"""Triton kernel of epilogue2d: scale, noise, bias, activation, gain and clamp in one pass over memory.

    y[n, c, h, w] = clamp(gain * act(x[n, c, h, w] * scale[n, c] + noise[n or 0, h, w] + b[c]))

With a filter, upfirdn2d writes ``y`` first and this kernel then updates it in place. Fusing both would spill registers:
sums and taps fill those that the launch table of upfirdn2d allows.

The kernel sees memory as rows: [N * C, H * W] with a scale and a bias per row and noise along it (NCHW), or for each
sample [H * W, C] with scale and bias along the row and noise per row (channels_last).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import bias_act, upfirdn2d
from .bias_act import activate
from .launch import (
    INT32_LIMIT,
    Activation,
    KernelConfig,
    Resample,
    arch_of,
    cdiv,
    config_for_length,
    constants,
    vector_size,
)

NO_NOISE, ONE_NOISE, NOISE_PER_SAMPLE = 0, 1, 2


def epilogue2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor,
    resample: Resample,
    activation: Activation,
) -> None:
    """Write the result to ``y``, dense in NCHW or channels_last. Without ``f``, ``x`` is ``y`` or has its strides; with
    ``f``, ``x`` meets the rules of :func:`upfirdn2d`. ``scale``, ``noise`` and ``b`` are contiguous."""
    if y.numel() == 0:
        return
    act, alpha, gain, clamp = activation
    if f is not None:
        upfirdn2d.upfirdn2d(x, f, y, resample)
        x = y
        if scale is noise is b is None and (act, gain) == ("linear", 1) and clamp < 0:
            return
    n, c, h, w = y.shape
    channels_last = not y.is_contiguous()
    samples, rows, cols = (n, h * w, c) if channels_last else (1, n * c, h * w)
    vec = vector_size(y, cols)
    key = KernelKey(
        act,
        channels_last,
        scale is not None,
        noise_mode(noise),
        b is not None,
        clamp >= 0,
        vec,
        y.numel() < INT32_LIMIT,
    )
    config = select(arch_of(y.device), y.element_size(), cols)
    tiles = cdiv(cols, config.block_cols), cdiv(rows, config.block_rows)
    with torch.cuda.device_of(y):
        kernel[(tiles[0] * tiles[1] * samples,)](
            x, scale, noise, b, y, rows, cols // vec, c, *tiles, float(alpha), float(gain), float(clamp),
            **constants(key, config), **config.options(),
        )  # fmt: skip


def noise_mode(noise: torch.Tensor | None) -> int:
    """Tell which noise a call has: none, one map for the batch, or one per sample."""
    return NO_NOISE if noise is None else ONE_NOISE if noise.shape[0] == 1 else NOISE_PER_SAMPLE


TABLE = bias_act.TABLE  # both kernels move the same bytes per element


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    act: str
    channels_last: bool
    scale: bool
    noise: int
    bias: bool
    clamp: bool
    vec: int  # divides the length of a row; the launcher passes the quotient, so that Triton can prove the alignment
    use_int32_index: bool


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, cols: int) -> KernelConfig:
    """Return the config of the launch table for rows of memory of this length."""
    return config_for_length(TABLE, arch, itemsize, cols)


@triton.jit(do_not_specialize=("rows", "cols", "channels", "tiles_x", "tiles_y"))
def kernel(
    x, scale, noise, b, y, rows, cols, channels, tiles_x, tiles_y,
    alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr,
    CLAMP: tl.constexpr, VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    pid = tl.program_id(0)
    col = (pid % tiles_x).to(index_t) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    pid = pid // tiles_x
    row = (pid % tiles_y).to(index_t) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    first = (pid // tiles_y).to(index_t) * rows  # the sample's first row, in channels_last
    width = cols.to(index_t) * VEC
    in_row, in_col = row < rows, col < width
    mask = in_row & in_col
    offset = (first + row) * width + col
    v = tl.load(x + offset, mask=mask).to(math_t)
    if SCALE:
        if CHANNELS_LAST:
            v *= tl.load(scale + (pid // tiles_y).to(index_t) * width + col, mask=in_col)
        else:
            v *= tl.load(scale + row, mask=in_row)
    if NOISE:
        if CHANNELS_LAST:
            v += tl.load(noise + (first + row if NOISE == 2 else row), mask=in_row)
        elif NOISE == 2:
            v += tl.load(noise + (row // channels * width + col), mask=mask)
        else:
            v += tl.load(noise + col, mask=in_col)
    if BIAS:
        if CHANNELS_LAST:
            v += tl.load(b + col, mask=in_col).to(math_t)
        else:
            v += tl.load(b + row % channels, mask=in_row).to(math_t)
    v = activate(v, alpha, gain, clamp, ACT, CLAMP)
    tl.store(y + offset, v.to(y.dtype.element_ty), mask=mask)
