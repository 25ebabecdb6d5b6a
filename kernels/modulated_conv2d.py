"""Triton kernel of modulated_conv2d without resampling: the whole style layer as one implicit matrix product.

    y[n, o] = clamp(gain * act(conv(pad(x[n] * styles[n]), weight)[o] * scale[n, o] + noise[n or 0] + b[o]))

for kernels of 1 x 1 and 3 x 3 pixels in channels_last. The rows of the product are pixels, its columns filters, its
depth taps times input channels. A program makes a tile of pixels of one sample: styles and coefficients then are
vectors along the channels, shared by the tile, where tiles across samples would gather them for every pixel; the price
is a ragged tile per sample. Tiles of 3 x 3 kernels are two-dimensional, so that their nine reads of a pixel meet in L1.

It serves what the launch table lists: layers that would spend their time on moving memory, of which the stages between
a prologue and an epilogue read and write three times as much. For all others the vendor's convolution is the better.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .bias_act import activate
from .epilogue2d import NO_NOISE, NOISE_PER_SAMPLE, ONE_NOISE
from .launch import ANY, LARGE, arch_of, cdiv, extent, is_channels_last, preferred, vector
from .prologue2d import locate_ring, on_ring


def serves(x: torch.Tensor, weight: torch.Tensor, padding: int) -> bool:
    """Whether the launch table lists the layer: ``x`` [N, I, H, W] in channels_last, ``weight`` [O, I, k, k]."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    if not is_channels_last(x) or kh != kw or padding != kh // 2:
        return False
    return select(arch_of(x.device), x.element_size(), kh, c, o, n * h * w) is not None


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    border: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor,
    flip: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> None:
    """Write the result to ``y``, dense in channels_last, for a layer that the launch table lists. ``x`` has unit stride
    along the channels; ``weight`` [O, I, k, k] is dense in channels_last, correlated if ``flip`` and else convolved;
    ``styles`` [N, I], ``scale`` [N, O], ``noise`` [N or 1, 1, H, W] in float32 and ``b`` [O] are contiguous;
    ``border`` [N, I, h, w] or [N, I, ring] has any strides; ``clamp`` < 0 means none."""
    if y.numel() == 0:
        return
    n, c, h, w = x.shape
    o, _, side, _ = weight.shape
    row = select(arch_of(x.device), x.element_size(), side, c, o, n * h * w)
    if row is None:
        raise ValueError(f"x: expected a layer of the launch table, got {tuple(x.shape)} and {tuple(weight.shape)}")
    strides = x.stride(0), x.stride(2), x.stride(3)
    big = max(map(extent, (x, y) if border is None else (x, y, border))) >= LARGE
    ring = locate_ring(border, h, w)
    if side == 1 and x.stride(2) == w * x.stride(3):
        h, w = 1, h * w
    vec, out_vec = vector(x, c, *strides), vector(x, o)
    noises = NO_NOISE if noise is None else ONE_NOISE if noise.shape[0] == 1 else NOISE_PER_SAMPLE
    spec = Spec(
        act, side, border is not None, scale is not None, noises, b is not None, clamp >= 0, vec, out_vec, big
    )  # fmt: skip
    tiles = cdiv(o, row.cols), cdiv(w, row.tile_w), cdiv(h, row.tile_h)
    tap0, tap_step = (0, 1) if flip else (side * side - 1, -1)
    with torch.cuda.device_of(y):
        kernel[(tiles[0] * tiles[1] * tiles[2] * n,)](
            x, weight, styles, border, scale, noise, b, y,
            c // vec, o // out_vec, h, w, *tiles, tap0, tap_step, *(stride // vec for stride in strides), *ring,
            float(alpha), float(gain), float(clamp), **spec.constants(row), **row.options(),
        )  # fmt: skip


class Row(NamedTuple):
    """One row of the launch table: the layers it serves, its tile, and where it was measured."""

    arch: int | None  # compute capability times 10; None: any that has no rows of its own
    itemsize: int
    side: int  # of the convolution's kernel
    channels: int  # serves up to this many input channels
    filters: int  # and output channels
    pixels: int  # from this many pixels of the batch on
    tile_h: int
    tile_w: int
    cols: int  # output channels of a tile
    depth: int  # input channels of a step
    num_warps: int
    num_stages: int
    registers: int | None  # a thread's limit, where ptxas alone would spill to run more threads
    measured: str = "not measured yet"

    def options(self) -> dict[str, int | None]:
        """The compile options of the kernel."""
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=self.registers)


LARGE_IMAGES = 2**16  # 256 x 256 pixels
# A 3x3 layer of 64 channels does 288 operations per byte in half precision, about what the memory of an H100 feeds its
# tensor cores. An image of RGB is bound by memory at any depth; in float32, which gets no tensor cores, little else is.
# The steps of 3x3 kernels are not pipelined: that takes asynchronous copies, which pass L1 by.
TABLE = (
    Row(None, 2, 3, 64, 16, LARGE_IMAGES, 8, 16, 16, 32, 4, 1, None),
    Row(None, 2, 3, 64, 32, LARGE_IMAGES, 8, 16, 32, 32, 4, 1, None),
    Row(None, 2, 3, 64, 64, LARGE_IMAGES, 8, 16, 64, 32, 8, 1, 192),
    Row(None, 2, 1, 32, 4, 0, 1, 64, 16, 32, 4, 3, None),
    Row(None, 2, 1, ANY, 4, 0, 1, 64, 16, 64, 4, 3, None),
    Row(None, 2, 1, 64, 64, LARGE_IMAGES, 1, 128, 64, 32, 8, 3, None),
    Row(None, 4, 3, 64, 4, LARGE_IMAGES, 8, 16, 4, 16, 4, 1, None),
    Row(None, 4, 1, ANY, 4, 0, 1, 128, 4, 16, 4, 2, None),
)


class Spec(NamedTuple):
    """What a binary depends on besides the row of the table and the dtypes."""

    act: str
    side: int
    border: bool
    scale: bool
    noise: int
    bias: bool
    clamp: bool
    vec: int  # divides the input channels and the strides of x, which are passed divided, for Triton to prove alignment
    out_vec: int  # divides the output channels
    big: bool  # 64-bit offsets

    def constants(self, row: Row) -> dict[str, Any]:
        """The constexpr arguments of the kernel."""
        return dict(
            ACT=self.act, SIDE=self.side, BORDER=self.border, SCALE=self.scale, NOISE=self.noise, BIAS=self.bias,
            CLAMP=self.clamp, VEC=self.vec, OUT_VEC=self.out_vec, BIG=self.big, TILE_H=row.tile_h, TILE_W=row.tile_w,
            COLS=row.cols, DEPTH=row.depth,
        )  # fmt: skip


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, side: int, channels: int, filters: int, pixels: int) -> Row | None:
    """The first row for this architecture, else for any, that serves the layer; None: the stages serve it better."""
    rows = (row for row in TABLE if (row.itemsize, row.side) == (itemsize, side) and pixels >= row.pixels)
    rows = (row for row in rows if channels <= row.channels and filters <= row.filters)
    return next(preferred(rows, arch), None)


_NUMBERS = (
    *("c", "out_c", "h", "w", "tiles_o", "tiles_x", "tiles_y", "tap0", "tap_step", "x_n", "x_h", "x_w"),
    *("ring_n", "ring_c", "top_at", "top_step", "bottom_at", "bottom_step"),
    *("left_at", "left_step", "right_at", "right_step"),
)


@triton.jit(do_not_specialize=_NUMBERS)
def kernel(
    x, weight, styles, border, scale, noise, b, y,
    c, out_c, h, w, tiles_o, tiles_x, tiles_y, tap0, tap_step, x_n, x_h, x_w,
    ring_n, ring_c, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step,
    alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, SIDE: tl.constexpr, BORDER: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    BIAS: tl.constexpr, CLAMP: tl.constexpr, VEC: tl.constexpr, OUT_VEC: tl.constexpr, BIG: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    index_t: tl.constexpr = tl.int64 if BIG else tl.int32
    pid = tl.program_id(0)
    o = (pid % tiles_o) * COLS + tl.arange(0, COLS)[None, :]
    pid = pid // tiles_o
    place = tl.arange(0, TILE_H * TILE_W)[:, None]
    ox = (pid % tiles_x).to(index_t) * TILE_W + place % TILE_W
    pid = pid // tiles_x
    oy = (pid % tiles_y).to(index_t) * TILE_H + place // TILE_W
    n = (pid // tiles_y).to(index_t)
    channels, filters = c * VEC, out_c * OUT_VEC
    in_image, in_filters = (oy < h) & (ox < w), o < filters

    acc = tl.zeros([TILE_H * TILE_W, COLS], tl.float32)
    steps = tl.cdiv(channels, DEPTH)
    for step in range(SIDE * SIDE * steps):
        tap = step // steps
        i, j = oy + (tap // SIDE - SIDE // 2), ox + (tap % SIDE - SIDE // 2)
        inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
        k = (step % steps) * DEPTH + tl.arange(0, DEPTH)
        in_channels = k < channels
        x_at = (n * x_n + i * x_h + j * x_w) * VEC + k[None, :]
        z = tl.load(x + x_at, mask=inside & in_channels[None, :], other=0.0).to(tl.float32)
        z *= tl.load(styles + n * channels + k, mask=in_channels, other=0.0)[None, :]
        if BORDER:
            at = on_ring(
                i + 1, j + 1, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step
            )
            outside = in_image & (inside == 0) & in_channels[None, :]
            ring_at = n * ring_n + k[None, :] * ring_c + at
            z = tl.where(inside, z, tl.load(border + ring_at, mask=outside, other=0.0).to(tl.float32))
        weight_at = (o * (SIDE * SIDE) + tap0 + tap * tap_step) * channels + k[:, None]
        filter_tile = tl.load(weight + weight_at, mask=in_filters & in_channels[:, None], other=0.0)
        acc = tl.dot(z.to(x.dtype.element_ty), filter_tile, acc, input_precision="ieee")

    pixel = oy * w + ox
    if NOISE == 2:
        noise += n * h * w
    v = acc
    if SCALE:
        v *= tl.load(scale + n * filters + o, mask=in_filters)
    if NOISE:
        v += tl.load(noise + pixel, mask=in_image)
    if BIAS:
        v += tl.load(b + o, mask=in_filters).to(tl.float32)
    v = activate(v, alpha, gain, clamp, ACT, CLAMP)
    y_at = (n * h * w + pixel) * filters + o
    tl.store(y + y_at, v.to(y.dtype.element_ty), mask=in_image & in_filters)
