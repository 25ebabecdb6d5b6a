"""Triton kernel of epilogue2d: scale, noise, bias, activation, gain and clamp in one pass over memory.

    y[n, c, h, w] = clamp(gain * act(x[n, c, h, w] * scale[n, c] + noise[n or 0, h, w] + b[c]))

With a filter, upfirdn2d writes ``y`` first and this kernel runs over it in place. Sums and taps of those kernels fill
the registers that their rows of the launch table allow; what the epilogue would add to them, spills.

Memory is seen as rows: [N * C, H * W] with a scale and a bias per row and noise along it (NCHW), or for each sample
[H * W, C] with scale and bias along the row and noise per row (channels_last).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import bias_act, upfirdn2d
from .bias_act import activate
from .launch import LARGE, Row, arch_of, cdiv, first_row, vector

NO_NOISE, ONE_NOISE, NOISE_PER_SAMPLE = 0, 1, 2


def epilogue2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    pad0: tuple[int, int],
    flip: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> None:
    """Write the result to ``y``, dense in NCHW or channels_last. Without ``f``, ``x`` is ``y`` or of its strides; with
    it, as :func:`upfirdn2d` takes it. ``scale``, ``noise``, ``b`` are contiguous; ``clamp`` < 0 means none."""
    if y.numel() == 0:
        return
    if f is not None:
        upfirdn2d.upfirdn2d(x, f, y, up, down, pad0, flip, filter_gain)
        x = y
        if scale is noise is b is None and (act, gain) == ("linear", 1) and clamp < 0:
            return
    n, c, h, w = y.shape
    channels_last = not y.is_contiguous()
    samples, rows, cols = (n, h * w, c) if channels_last else (1, n * c, h * w)
    vec = vector(y, cols)
    noises = NO_NOISE if noise is None else ONE_NOISE if noise.shape[0] == 1 else NOISE_PER_SAMPLE
    spec = Spec(act, channels_last, scale is not None, noises, b is not None, clamp >= 0, vec, y.numel() >= LARGE)
    row = select(arch_of(y.device), y.element_size(), cols)
    tiles = cdiv(cols, row.cols), cdiv(rows, row.rows)
    with torch.cuda.device_of(y):
        kernel[(tiles[0] * tiles[1] * samples,)](
            x, scale, noise, b, y, rows, cols // vec, c, *tiles, float(alpha), float(gain), float(clamp),
            **spec.constants(row), **row.options(),
        )  # fmt: skip


TABLE = bias_act.TABLE  # whose traffic it has


class Spec(NamedTuple):
    """What a binary depends on besides the row of the table and the dtypes."""

    act: str
    channels_last: bool
    scale: bool
    noise: int
    bias: bool
    clamp: bool
    vec: int  # divides the length of a row, which is passed divided, so that Triton can prove the alignment
    big: bool  # 64-bit offsets

    def constants(self, row: Row) -> dict[str, Any]:
        """The constexpr arguments of the kernel."""
        return dict(
            ACT=self.act, CHANNELS_LAST=self.channels_last, SCALE=self.scale, NOISE=self.noise, BIAS=self.bias,
            CLAMP=self.clamp, VEC=self.vec, BIG=self.big, ROWS=row.rows, COLS=row.cols,
        )  # fmt: skip


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, cols: int) -> Row:
    """The row of the launch table for a call."""
    return first_row(TABLE, arch, itemsize, cols)


@triton.jit(do_not_specialize=("rows", "cols", "channels", "tiles_x", "tiles_y"))
def kernel(
    x, scale, noise, b, y, rows, cols, channels, tiles_x, tiles_y,
    alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr,
    CLAMP: tl.constexpr, VEC: tl.constexpr, BIG: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    col = (pid % tiles_x).to(index_t) * COLS + tl.arange(0, COLS)[None, :]
    pid = pid // tiles_x
    row = (pid % tiles_y).to(index_t) * ROWS + tl.arange(0, ROWS)[:, None]
    first = (pid // tiles_y).to(index_t) * rows  # row of the sample, in channels_last
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
