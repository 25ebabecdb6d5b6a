"""Triton kernel of prologue2d: encode, scale, add and pad in one pass over memory.

    z = (x + e) * styles + residual;  y = z, surrounded by zeros, by z reflected or by the ring of a map

The encoding e is read from two tables: ``columns[k, j]`` in one half of its channels, ``rows[k, i]`` in the other. A
concatenated one stands behind the channels of x.

Memory of y is seen as lines: [N * C * H, W] (NCHW), [N * H * W, C] (channels_last). A program works on a tile of
lines; what a line has in common, such as its sample and its row, is found once for it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .launch import ANY, LARGE, Row, arch_of, cdiv, extent, first_row, is_channels_last, vector


def prologue2d(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    styles: torch.Tensor | None,
    border: torch.Tensor | None,
    columns: torch.Tensor | None,
    rows: torch.Tensor | None,
    y: torch.Tensor,
    left: int,
    top: int,
    mode: str,
    concat: bool,
    height_first: bool,
) -> None:
    """Write the result to ``y``, which is dense in NCHW or channels_last. ``x`` [N, C, H, W] and ``residual`` have unit
    stride along the innermost dimension of ``y``; ``styles`` [N, C'] is contiguous; ``border`` [N, C', h, w] or
    [N, C', ring] and the tables [d, W] and [d, H] have any strides."""
    if y.numel() == 0:
        return
    _, c, h, w = x.shape
    out_c, out_h, out_w = y.shape[1:]
    channels_last = is_channels_last(y)
    read = [t for t in (x, residual) if t is not None and t.numel()]
    outer = (0, 2, 3) if channels_last else (0, 1, 2)  # n, h, w or n, c, h
    lengths = (c, out_c) if channels_last else (w,)
    strides = (t.stride(d) for t in read for d in outer)
    vec = vector(y, *lengths, *strides) if channels_last or out_w == w else 1
    big = max(map(extent, (y, *read, *(t for t in (border,) if t is not None)))) >= LARGE
    encoding = 0 if columns is None else 2 if concat else 1
    spec = Spec(mode, channels_last, c > 0, encoding, height_first, styles is not None, residual is not None, vec, big)
    length = out_c if channels_last else out_w
    lines = y.numel() // length
    row = select(arch_of(y.device), y.element_size(), length)
    tiles = cdiv(length, row.cols)
    half, tables = 0, [0, 0, 0, 0]
    if columns is not None and rows is not None:
        half, tables = columns.shape[0], [*columns.stride(), *rows.stride()]
    with torch.cuda.device_of(y):
        kernel[(tiles * cdiv(lines, row.rows),)](
            x, residual, styles, border, columns, rows, y,
            lines, length // vec, tiles, c // vec if channels_last else c, h, w, out_c, out_h, out_w, left, top, half,
            *_strides(x, outer, vec), *_strides(residual, outer, vec), *tables, *locate_ring(border, h, w),
            **spec.constants(row), **row.options(),
        )  # fmt: skip


TABLE = (  # 16 bytes of each tensor per thread: more would take more registers than let enough threads run
    Row(None, 2, 8, 128, 8, 4, 1),
    Row(None, 2, 32, 32, 32, 4, 1),
    Row(None, 2, 128, 8, 128, 4, 1),
    Row(None, 2, 512, 2, 512, 4, 1),
    Row(None, 2, ANY, 1, 1024, 4, 1),
    Row(None, 4, 8, 64, 8, 4, 1),
    Row(None, 4, 32, 16, 32, 4, 1),
    Row(None, 4, 128, 4, 128, 4, 1),
    Row(None, 4, ANY, 1, 512, 4, 1),
    Row(None, 8, 8, 32, 8, 4, 1),
    Row(None, 8, 32, 8, 32, 4, 1),
    Row(None, 8, ANY, 2, 128, 4, 1),
)


class Spec(NamedTuple):
    """What a binary depends on besides the row of the table and the dtypes."""

    mode: str
    channels_last: bool
    has_x: bool
    encoding: int  # 0: none, 1: added, 2: concatenated
    height_first: bool
    styles: bool
    residual: bool
    vec: int  # divides the innermost lengths and the outer strides, which are passed divided
    big: bool  # 64-bit offsets

    def constants(self, row: Row) -> dict[str, Any]:
        """The constexpr arguments of the kernel."""
        return dict(
            MODE=self.mode, CHANNELS_LAST=self.channels_last, HAS_X=self.has_x, ENCODING=self.encoding,
            HEIGHT_FIRST=self.height_first, STYLES=self.styles, RESIDUAL=self.residual, VEC=self.vec, BIG=self.big,
            ROWS=row.rows, COLS=row.cols,
        )  # fmt: skip


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, length: int) -> Row:
    """The row of the launch table for a call."""
    return first_row(TABLE, arch, itemsize, length)


def _strides(t: torch.Tensor | None, dims: tuple[int, ...], vec: int) -> list[int]:
    return [0 if t is None else t.stride(d) // vec for d in dims]


def locate_ring(border: torch.Tensor | None, h: int, w: int) -> tuple[int, ...]:
    """Strides of n and c, then the offset of the first pixel and the step of top, bottom, left and right."""
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


_NUMBERS = (
    *("lines", "length", "tiles", "c", "h", "w", "out_c", "out_h", "out_w", "left", "top", "half"),
    *("x0", "x1", "x2", "r0", "r1", "r2", "column_c", "column_w", "row_c", "row_h", "ring_n", "ring_c"),
    *("top_at", "top_step", "bottom_at", "bottom_step", "left_at", "left_step", "right_at", "right_step"),
)


@triton.jit(do_not_specialize=_NUMBERS)
def kernel(
    x, residual, styles, border, columns, rows, y,
    lines, length, tiles, c, h, w, out_c, out_h, out_w, left, top, half,
    x0, x1, x2, r0, r1, r2, column_c, column_w, row_c, row_h,
    ring_n, ring_c, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step,
    MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_X: tl.constexpr, ENCODING: tl.constexpr,
    HEIGHT_FIRST: tl.constexpr, STYLES: tl.constexpr, RESIDUAL: tl.constexpr, VEC: tl.constexpr, BIG: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    line = (pid // tiles).to(index_t) * ROWS + tl.arange(0, ROWS)[:, None]
    place = (pid % tiles).to(index_t) * COLS + tl.arange(0, COLS)[None, :]
    width = length.to(index_t) * VEC
    line_ok, place_ok = line < lines, place < width
    # Whatever depends on the line alone has the shape [ROWS, 1], on the place alone [1, COLS].
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
    else:  # whole rows: nothing beside them
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

    z = tl.zeros([ROWS, COLS], math_t)
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
        at = on_ring(oy, ox, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step)
        outside = ((row_ok & column_ok) == 0) & line_ok & place_ok
        ring = tl.load(border + n * ring_n + channel * ring_c + at, mask=outside, other=0.0).to(math_t)
        z = tl.where(inside, z, ring)
    else:
        z = tl.where(inside, z, 0.0)
    tl.store(y + line * width + place, z.to(y.dtype.element_ty), mask=line_ok & place_ok)


@triton.jit
def _source(i, size, MODE: tl.constexpr):
    """The row or column of z behind one of y; outside of [0, size) where there is none."""
    if MODE == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= size, 2 * (size - 1) - i, i)
    return i


@triton.jit
def on_ring(oy, ox, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step):
    """Where a map or ring holds the border's pixel in row oy and column ox of the padded image."""
    beside = tl.where(ox == 0, left_at + (oy - 1) * left_step, right_at + (oy - 1) * right_step)
    beyond = tl.where(oy == 0, top_at + ox * top_step, bottom_at + ox * bottom_step)
    return tl.where((oy == 0) | (oy == h + 1), beyond, beside)
