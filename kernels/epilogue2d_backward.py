"""Triton kernel of epilogue2d_backward: the gradients of an epilogue in one pass over memory.

    g  = dy * gain * act'(v) * 1[inside the clamp]       v = x * scale + noise + b, or read off the result y
    dx = g * scale

and the sums of g over channels and over pixels, and of g * x over pixels.

The kernel sees memory as rows, for each sample: [C, H * W] in NCHW, [H * W, C] in channels_last. A program walks down a
strip of rows. It stores the sums along each row at once and those down the columns at its end. Whoever calls adds up
the sums of the strips, so that the order of all additions depends on the sizes alone.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import bias_act
from .bias_act import differentiate
from .epilogue2d import noise_mode
from .launch import (
    INT32_LIMIT,
    Activation,
    KernelConfig,
    arch_of,
    cdiv,
    config_for_length,
    constants,
    vector_size,
)

READS_NOTHING, READS_OUTPUT, READS_INPUT = 0, 1, 2
ENOUGH_PROGRAMS = 1024  # several for each multiprocessor
MOST_STEPS = 16


def epilogue2d_backward(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    x: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    dx: torch.Tensor | None,
    products: bool,
    channels: bool,
    pixels: bool,
    activation: Activation,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Write the gradient of the input to ``dx`` unless it is None. Return the sums over pixels [1 or 2, N, strips, C],
    of g and with ``products`` of g * x, and the sums over channels [strips, N, H * W]; None where they are not wanted.

    Images are dense with equal strides. ``y`` is the result, for relu and lrelu to read their slope from; ``x`` the
    input, if there is no ``y`` or if ``products`` are wanted. ``scale``, ``noise`` and ``b`` are contiguous.
    """
    act, alpha, gain, clamp = activation
    n, c, h, w = dy.shape
    channels_last = not dy.is_contiguous()
    rows, cols = (h * w, c) if channels_last else (c, h * w)
    reads = READS_OUTPUT if y is not None else READS_NOTHING if act == "linear" and clamp < 0 else READS_INPUT
    config = select(arch_of(dy.device), dy.element_size(), cols)
    tiles_x = cdiv(cols, config.block_cols)
    steps = min(MOST_STEPS, max(1, n * tiles_x * cdiv(rows, config.block_rows) // ENOUGH_PROGRAMS))
    tiles_y = cdiv(rows, config.block_rows * steps)
    acc = torch.float64 if dy.dtype == torch.float64 else torch.float32
    strips = (tiles_y, tiles_x) if channels_last else (tiles_x, tiles_y)
    channel_sums = dy.new_empty((2 if products else 1, n, strips[0], c), dtype=acc) if channels else None
    pixel_sums = dy.new_empty((strips[1], n, h * w), dtype=acc) if pixels else None
    sums_read = reads == READS_INPUT
    key = KernelKey(
        act, reads, channels_last, scale is not None, noise_mode(noise) if sums_read else 0,
        b is not None and sums_read, dx is not None, products, channels, pixels, clamp >= 0, vector_size(dy, cols),
        dy.numel() < INT32_LIMIT,
    )  # fmt: skip
    with torch.cuda.device_of(dy):
        kernel[(tiles_x * tiles_y * n,)](
            dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums, n, rows, cols // key.vec, steps, tiles_x, tiles_y,
            float(alpha), float(gain), float(clamp), **constants(key, config), **config.options(),
        )  # fmt: skip
    return channel_sums, pixel_sums


TABLE = bias_act.TABLE  # as many bytes per element and thread, up to the sums


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    act: str
    reads: int
    channels_last: bool
    scale: bool
    noise: int
    bias: bool
    dx: bool
    products: bool
    channels: bool
    pixels: bool
    clamp: bool
    vec: int  # divides the length of a row; the launcher passes the quotient, so that Triton can prove the alignment
    use_int32_index: bool


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, cols: int) -> KernelConfig:
    """Return the config of the launch table for rows of memory of this length."""
    return config_for_length(TABLE, arch, itemsize, cols)


@triton.jit(do_not_specialize=("samples", "rows", "cols", "steps", "tiles_x", "tiles_y"))
def kernel(
    dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums, samples, rows, cols, steps, tiles_x, tiles_y,
    alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, READS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    BIAS: tl.constexpr, DX: tl.constexpr, PRODUCTS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    CLAMP: tl.constexpr, VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if dy.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    pid = tl.program_id(0)
    tile_x = (pid % tiles_x).to(index_t)
    tile_y = (pid // tiles_x % tiles_y).to(index_t)
    n = (pid // tiles_x // tiles_y).to(index_t)
    width = cols.to(index_t) * VEC
    col = tile_x * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    in_col = col < width
    if CHANNELS_LAST:
        if SCALE:
            factor = tl.load(scale + n * width + col, mask=in_col, other=0.0)
        if BIAS:
            bias = tl.load(b + col, mask=in_col, other=0.0).to(math_t)
    down = tl.zeros([BLOCK_ROWS, BLOCK_COLS], math_t)
    down_products = tl.zeros([BLOCK_ROWS, BLOCK_COLS], math_t)
    for step in range(steps):
        row = (tile_y * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
        in_row = row < rows
        mask = in_row & in_col
        offset = (n * rows + row) * width + col
        if not CHANNELS_LAST:
            if SCALE:
                factor = tl.load(scale + n * rows + row, mask=in_row, other=0.0)
            if BIAS:
                bias = tl.load(b + row, mask=in_row, other=0.0).to(math_t)
        g = tl.load(dy + offset, mask=mask, other=0.0).to(math_t)
        if READS == 2 or PRODUCTS:
            z = tl.load(x + offset, mask=mask, other=0.0).to(math_t)
        if READS == 1:
            v = tl.load(y + offset, mask=mask, other=0.0).to(math_t)
            g = differentiate(g, v, alpha, gain, clamp, ACT, True, CLAMP)
        elif READS == 2:
            v = z
            if SCALE:
                v *= factor
            if NOISE:
                first = n * (rows if CHANNELS_LAST else width) if NOISE == 2 else 0
                at, there = (row, in_row) if CHANNELS_LAST else (col, in_col)
                v += tl.load(noise + (first + at), mask=there, other=0.0)
            if BIAS:
                v += bias
            g = tl.where(mask, differentiate(g, v, alpha, gain, clamp, ACT, False, CLAMP), 0.0)
        else:
            g *= tl.full([], gain, math_t)
        if DX:
            tl.store(dx + offset, (g * factor if SCALE else g).to(dx.dtype.element_ty), mask=mask)
        if CHANNELS_LAST:
            if PIXELS:
                at = (tile_x * samples + n) * rows + row
                tl.store(pixel_sums + at, tl.sum(g, 1, keep_dims=True), mask=in_row)
            if CHANNELS:
                down += g
                if PRODUCTS:
                    down_products += g * z
        else:
            if CHANNELS:
                at = (n * tiles_x + tile_x) * rows + row
                tl.store(channel_sums + at, tl.sum(g, 1, keep_dims=True), mask=in_row)
                if PRODUCTS:
                    products = channel_sums + samples * tiles_x * rows.to(tl.int64)
                    tl.store(products + at, tl.sum(g * z, 1, keep_dims=True), mask=in_row)
            if PIXELS:
                down += g
    if CHANNELS_LAST:
        if CHANNELS:
            at = (n * tiles_y + tile_y) * width + col
            tl.store(channel_sums + at, tl.sum(down, 0, keep_dims=True), mask=in_col)
            if PRODUCTS:
                products = channel_sums + samples * tiles_y * width.to(tl.int64)
                tl.store(products + at, tl.sum(down_products, 0, keep_dims=True), mask=in_col)
    elif PIXELS:
        at = (tile_y * samples + n) * width + col
        tl.store(pixel_sums + at, tl.sum(down, 0, keep_dims=True), mask=in_col)
