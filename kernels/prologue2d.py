"""Triton kernel of prologue2d: encode, scale, add and pad in one pass over memory.

    z = (x + e) * styles + residual;  y = z, bordered by zeros, by z reflected or by the border of a map

The kernel reads the encoding e from two tables: ``columns[k, j]`` in one half of its channels, ``rows[k, i]`` in the
other. A concatenated encoding follows the channels of x.

The kernel sees the memory of y as lines: [N * C * H, W] (NCHW) or [N * H * W, C] (channels_last). A program works on a
tile of lines and computes a line's coordinates, such as its sample and its row, once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import (
    ANY,
    INT32_LIMIT,
    Encoding,
    KernelConfig,
    arch_of,
    cdiv,
    config_for_length,
    constants,
    extent,
    has_channels_last_strides,
    vector_size,
)

NO_ENCODING, ADDED, CONCATENATED = 0, 1, 2


def prologue2d(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    styles: torch.Tensor | None,
    border: torch.Tensor | None,
    y: torch.Tensor,
    left: int,
    top: int,
    mode: str,
    encoding: Encoding | None,
) -> None:
    """Write the result to ``y``, which is dense in NCHW or channels_last. ``x`` [N, C, H, W] and ``residual`` have unit
    stride along the innermost dimension of ``y``; ``styles`` [N, C'] is contiguous; ``border`` [N, C', h, w] or
    [N, C', ring] and the tables of ``encoding`` have any strides."""
    if y.numel() == 0:
        return
    _, c, h, w = x.shape
    out_c, out_h, out_w = y.shape[1:]
    channels_last = has_channels_last_strides(y)
    read = [t for t in (x, residual) if t is not None and t.numel()]
    outer = (0, 2, 3) if channels_last else (0, 1, 2)  # n, h, w or n, c, h
    lengths = (c, out_c) if channels_last else (w,)
    strides = (t.stride(d) for t in read for d in outer)
    vec = vector_size(y, *lengths, *strides) if channels_last or out_w == w else 1
    use_int32_index = max(map(extent, (y, *read, *(t for t in (border,) if t is not None)))) < INT32_LIMIT
    columns, rows, concat, height_first = encoding or (None, None, False, False)
    join = NO_ENCODING if encoding is None else CONCATENATED if concat else ADDED
    key = KernelKey(
        mode, channels_last, c > 0, join, height_first, styles is not None, residual is not None, vec, use_int32_index
    )
    length = out_c if channels_last else out_w
    lines = y.numel() // length
    config = select(arch_of(y.device), y.element_size(), length)
    tiles = cdiv(length, config.block_cols)
    half, tables = 0, [0, 0, 0, 0]
    if columns is not None and rows is not None:
        half, tables = columns.shape[0], [*columns.stride(), *rows.stride()]
    with torch.cuda.device_of(y):
        kernel[(tiles * cdiv(lines, config.block_rows),)](
            x, residual, styles, border, columns, rows, y,
            lines, length // vec, tiles, c // vec if channels_last else c, h, w, out_c, out_h, out_w, left, top, half,
            *_strides(x, outer, vec), *_strides(residual, outer, vec), *tables, *border_geometry(border, h, w),
            **constants(key, config), **config.options(),
        )  # fmt: skip


TABLE = (  # 16 bytes of each tensor per thread: with more, registers would limit occupancy
    KernelConfig(None, 2, 8, 128, 8, 4, 1),
    KernelConfig(None, 2, 32, 32, 32, 4, 1),
    KernelConfig(None, 2, 128, 8, 128, 4, 1),
    KernelConfig(None, 2, 512, 2, 512, 4, 1),
    KernelConfig(None, 2, ANY, 1, 1024, 4, 1),
    KernelConfig(None, 4, 8, 64, 8, 4, 1),
    KernelConfig(None, 4, 32, 16, 32, 4, 1),
    KernelConfig(None, 4, 128, 4, 128, 4, 1),
    KernelConfig(None, 4, ANY, 1, 512, 4, 1),
    KernelConfig(None, 8, 8, 32, 8, 4, 1),
    KernelConfig(None, 8, 32, 8, 32, 4, 1),
    KernelConfig(None, 8, ANY, 2, 128, 4, 1),
)


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    mode: str
    channels_last: bool
    has_x: bool
    encoding: int  # NO_ENCODING, ADDED or CONCATENATED
    height_first: bool
    styles: bool
    residual: bool
    vec: int  # divides the innermost lengths and the outer strides; the launcher passes the quotients
    use_int32_index: bool


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, length: int) -> KernelConfig:
    """Return the config of the launch table for rows of memory of this length."""
    return config_for_length(TABLE, arch, itemsize, length)


def _strides(t: torch.Tensor | None, dims: tuple[int, ...], vec: int) -> list[int]:
    return [0 if t is None else t.stride(d) // vec for d in dims]


def border_geometry(border: torch.Tensor | None, h: int, w: int) -> tuple[int, ...]:
    """Return the strides of n and c, then the first pixel's offset and the step of top, bottom, left and right."""
    if border is None:
        return (0,) * 10
    if border.ndim == 3:
        sn, sc, s = border.stride()
        offsets, steps = (0, (w + 2) * s, 2 * (w + 2) * s, (2 * (w + 2) + h) * s), (s,) * 4
    else:
        sn, sc, sh, sw = border.stride()
        first = (border.shape[2] - h - 2) // 2 * sh + (border.shape[3] - w - 2) // 2 * sw
        offsets, steps = (first, first + (h + 1) * sh, first + sh, first + sh + (w + 1) * sw), (sw, sw, sh, sh)
    return sn, sc, *(value for side in zip(offsets, steps, strict=True) for value in side)


_RUNTIME = (
    *("lines", "length", "tiles", "c", "h", "w", "out_c", "out_h", "out_w", "left", "top", "half"),
    *("x0", "x1", "x2", "r0", "r1", "r2", "column_c", "column_w", "row_c", "row_h", "border_n", "border_c"),
    *("top_at", "top_step", "bottom_at", "bottom_step", "left_at", "left_step", "right_at", "right_step"),
)


@triton.jit(do_not_specialize=_RUNTIME)
def kernel(
    x, residual, styles, border, columns, rows, y,
    lines, length, tiles, c, h, w, out_c, out_h, out_w, left, top, half,
    x0, x1, x2, r0, r1, r2, column_c, column_w, row_c, row_h,
    border_n, border_c, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step,
    MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_X: tl.constexpr, ENCODING: tl.constexpr,
    HEIGHT_FIRST: tl.constexpr, STYLES: tl.constexpr, RESIDUAL: tl.constexpr, VEC: tl.constexpr,
    USE_INT32_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    pid = tl.program_id(0)
    line = (pid // tiles).to(index_t) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    place = (pid % tiles).to(index_t) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    width = length.to(index_t) * VEC
    line_ok, place_ok = line < lines, place < width
    # Values that depend on the line alone have the shape [BLOCK_ROWS, 1], on the place alone [1, BLOCK_COLS].
    if CHANNELS_LAST:
        rest, ox, channel = line // out_w, line % out_w, place
        n, oy = rest // out_h, rest % out_h
        in_x = c.to(index_t) * VEC
    else:
        rest, oy, ox = line // out_h, line % out_h, place
        n, channel = rest // out_c, rest % out_c
        in_x = c.to(index_t)
    i = _source(oy - top, h, MODE)
    if CHANNELS_LAST or VEC == 1:
        j = _source(ox - left, w, MODE)
        column_ok = (j >= 0) & (j < w)
    else:  # whole rows, without a border beside them
        j = ox
        column_ok = place_ok
    row_ok = (i >= 0) & (i < h)
    inside = row_ok & column_ok & line_ok & place_ok
    if CHANNELS_LAST:
        x_at = (n * x0 + i * x1 + j * x2) * VEC + channel
        r_at = (n * r0 + i * r1 + j * r2) * VEC + channel
    else:
        x_at = (n * x0 + channel * x1 + i * x2) * VEC + j
        r_at = (n * r0 + channel * r1 + i * r2) * VEC + j

    z = tl.zeros([BLOCK_ROWS, BLOCK_COLS], math_t)
    if HAS_X:
        z += tl.load(x + x_at, mask=inside & (channel < in_x), other=0.0).to(math_t)
    if ENCODING > 0:
        k = channel - in_x if ENCODING == 2 else channel
        second = k >= half
        by_row = (k >= 0) & (second != HEIGHT_FIRST) & row_ok
        by_column = (k >= 0) & (second == HEIGHT_FIRST) & column_ok
        k = tl.where(second, k - half, k)
        if CHANNELS_LAST:
            by_row = by_row & place_ok
        by_column = by_column & place_ok
        z += tl.load(rows + k * row_c + i * row_h, mask=by_row & line_ok, other=0.0)
        z += tl.load(columns + k * column_c + j * column_w, mask=by_column & line_ok, other=0.0)
    if STYLES:
        style_ok = line_ok & place_ok if CHANNELS_LAST else line_ok
        z *= tl.load(styles + n * out_c + channel, mask=style_ok, other=0.0)
    if RESIDUAL:
        z += tl.load(residual + r_at, mask=inside, other=0.0).to(math_t)
    if MODE == "instance":
        at = border_offset(
            oy, ox, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step
        )
        outside = ((row_ok & column_ok) == 0) & line_ok & place_ok
        outer = tl.load(border + n * border_n + channel * border_c + at, mask=outside, other=0.0).to(math_t)
        z = tl.where(inside, z, outer)
    else:
        z = tl.where(inside, z, 0.0)
    tl.store(y + line * width + place, z.to(y.dtype.element_ty), mask=line_ok & place_ok)


@triton.jit
def _source(i, size, MODE: tl.constexpr):
    """Return the row or column of z that row or column i of y shows; it is outside of [0, size) in the border."""
    if MODE == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= size, 2 * (size - 1) - i, i)
    return i


@triton.jit
def border_offset(oy, ox, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step):
    """Return where a map or ring holds the border's pixel in row oy and column ox of the padded image."""
    beside = tl.where(ox == 0, left_at + (oy - 1) * left_step, right_at + (oy - 1) * right_step)
    beyond = tl.where(oy == 0, top_at + ox * top_step, bottom_at + ox * bottom_step)
    return tl.where((oy == 0) | (oy == h + 1), beyond, beside)
