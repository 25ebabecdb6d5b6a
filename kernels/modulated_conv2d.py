"""Triton kernel of modulated_conv2d without resampling: the whole style layer as one implicit matrix product.

    y[n, o] = clamp(gain * act(conv(pad(x[n] * styles[n]), weight)[o] * dcoefs[n, o] + noise[n or 0] + bias[o]))

for kernels of 1 x 1 and 3 x 3 pixels in channels_last. The rows of the product are pixels, its columns filters, its
depth taps times input channels. A program computes a tile of pixels of one sample, so styles and coefficients are
vectors along the channels that the whole tile shares; a tile across samples would gather them for every pixel. The
price is a ragged tile per sample. Tiles of 3 x 3 kernels are two-dimensional: their nine reads of a pixel meet in a
cache. Without a padding map, a small weight for each sample may hold the styles: then the main loop only loads and
multiplies.

The kernel serves the layers of the launch table. They are bound by memory traffic, and separate stages would move three
times as much. For all other layers the vendor's convolution is faster.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bias_act import activate
from .epilogue2d import noise_mode
from .launch import (
    ANY,
    INT32_LIMIT,
    Activation,
    arch_of,
    cdiv,
    constants,
    extent,
    first_config,
    has_channels_last_strides,
    vector_size,
)
from .prologue2d import border_geometry, border_offset


def serves(x: torch.Tensor, weight: torch.Tensor, padding: int) -> bool:
    """Tell whether the launch table lists the layer: ``x`` [N, I, H, W] in channels_last, ``weight`` [O, I, k, k]."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    if not has_channels_last_strides(x) or kh != kw or padding != kh // 2:
        return False
    return select(arch_of(x.device), x.element_size(), kh, c, o, n * h * w) is not None


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor | None,
    border: torch.Tensor | None,
    dcoefs: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    flip: bool,
    activation: Activation,
) -> None:
    """Write the result to ``y``, dense in channels_last, for a layer that the launch table lists. ``x`` has unit stride
    along the channels; ``weight`` [O, I, k, k] is dense in channels_last, correlated if ``flip`` and else convolved;
    ``styles`` [N, I], or None where ``weight`` [N * O, I, k, k] holds those of each sample, ``dcoefs`` [N, O],
    ``noise`` [N or 1, 1, H, W] in float32 and ``bias`` [O] are contiguous;
    ``border`` [N, I, h, w] or [N, I, ring] has any strides.

    Raises:
        ValueError: the launch table does not list the layer.
    """
    if y.numel() == 0:
        return
    n, c, h, w = x.shape
    o, side = y.shape[1], weight.shape[2]
    config = select(arch_of(x.device), x.element_size(), side, c, o, n * h * w)
    if config is None:
        raise ValueError(f"x: expected a layer of the launch table, got {tuple(x.shape)} and {tuple(weight.shape)}")
    strides = x.stride(0), x.stride(2), x.stride(3)
    use_int32_index = max(map(extent, (x, y) if border is None else (x, y, border))) < INT32_LIMIT
    geometry = border_geometry(border, h, w)
    if side == 1 and x.stride(2) == w * x.stride(3):
        h, w = 1, h * w
    vec, out_vec = vector_size(x, c, *strides), vector_size(x, o)
    act, alpha, gain, clamp = activation
    key = KernelKey(
        act, side, styles is not None, border is not None, dcoefs is not None, noise_mode(noise), bias is not None,
        clamp >= 0, vec, out_vec, use_int32_index,
    )  # fmt: skip
    tiles = cdiv(o, config.block_o), cdiv(w, config.block_w), cdiv(h, config.block_h)
    tap0, tap_step = (0, 1) if flip else (side * side - 1, -1)
    with torch.cuda.device_of(y):
        kernel[(tiles[0] * tiles[1] * tiles[2] * n,)](
            x, weight, styles, border, dcoefs, noise, bias, y,
            c // vec, o // out_vec, h, w, *tiles, tap0, tap_step, *(stride // vec for stride in strides), *geometry,
            float(alpha), float(gain), float(clamp), **constants(key, config), **config.options(),
        )  # fmt: skip


class KernelConfig(NamedTuple):
    """One row of the launch table: which layers it serves, its tile, and where it was measured."""

    arch: int | None  # compute capability times 10; None: any that has no configs of its own
    itemsize: int
    side: int  # the convolution's kernel is side x side
    channels: int  # serves up to this many input channels
    filters: int  # serves up to this many output channels
    pixels: int  # serves batches of at least this many pixels
    block_h: int
    block_w: int
    block_o: int  # output channels of a tile
    block_k: int  # input channels of a step
    num_warps: int
    num_stages: int
    maxnreg: int | None  # registers per thread; stated where ptxas would spill to raise occupancy
    measured: str = "not measured yet"

    def options(self) -> dict[str, int | None]:
        """Return the kernel's compile options."""
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=self.maxnreg)


LARGE_IMAGES = 2**16  # 256 x 256 pixels
# A 3x3 layer of 64 channels does 288 operations per byte in half precision, near an H100's ratio of tensor cores to
# memory. A layer to RGB is bound by memory at any depth; in float32, without tensor cores, hardly any other layer is.
# Asynchronous copies bypass L1, and a 3x3 kernel reads its tile nine times. From L2 that takes longer than the separate
# stages of 64 channels, so these rows are not pipelined; with 128 channels it takes as long as the products, which
# pipelining overlaps.
TABLE = (
    KernelConfig(None, 2, 3, 64, 16, LARGE_IMAGES, 8, 16, 16, 32, 4, 1, None),
    KernelConfig(None, 2, 3, 64, 32, LARGE_IMAGES, 8, 16, 32, 32, 4, 1, None),
    KernelConfig(None, 2, 3, 64, 64, LARGE_IMAGES, 8, 16, 64, 32, 8, 1, 192),
    KernelConfig(None, 2, 3, 128, 64, LARGE_IMAGES, 8, 16, 64, 64, 8, 3, None),
    KernelConfig(None, 2, 3, 128, 128, LARGE_IMAGES, 8, 16, 128, 64, 8, 3, None),
    KernelConfig(None, 2, 1, 32, 4, 0, 1, 64, 16, 32, 4, 3, None),
    KernelConfig(None, 2, 1, ANY, 4, 0, 1, 64, 16, 64, 4, 3, None),
    KernelConfig(None, 2, 1, 64, 64, LARGE_IMAGES, 1, 128, 64, 32, 8, 3, None),
    KernelConfig(None, 4, 3, 64, 4, LARGE_IMAGES, 8, 16, 4, 16, 4, 1, None),
    KernelConfig(None, 4, 1, ANY, 4, 0, 1, 128, 4, 16, 4, 2, None),
)


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    act: str
    side: int
    styles: bool  # else the weights hold them
    border: bool
    dcoefs: bool
    noise: int
    bias: bool
    clamp: bool
    vec: int  # divides input channels and strides of x; the launcher passes quotients, so that alignment is provable
    out_vec: int  # divides the output channels
    use_int32_index: bool


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, side: int, channels: int, filters: int, pixels: int) -> KernelConfig | None:
    """Return the config that serves the layer; None if separate stages serve it better."""

    def serves(config: KernelConfig) -> bool:
        fits = channels <= config.channels and filters <= config.filters and pixels >= config.pixels
        return fits and (config.itemsize, config.side) == (itemsize, side)

    return first_config(TABLE, arch, serves)


_RUNTIME = (
    *("c", "out_c", "h", "w", "tiles_o", "tiles_x", "tiles_y", "tap0", "tap_step", "x_n", "x_h", "x_w"),
    *("border_n", "border_c", "top_at", "top_step", "bottom_at", "bottom_step"),
    *("left_at", "left_step", "right_at", "right_step"),
)


@triton.jit(do_not_specialize=_RUNTIME)
def kernel(
    x, weight, styles, border, dcoefs, noise, bias, y,
    c, out_c, h, w, tiles_o, tiles_x, tiles_y, tap0, tap_step, x_n, x_h, x_w,
    border_n, border_c, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step,
    alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, SIDE: tl.constexpr, STYLES: tl.constexpr, BORDER: tl.constexpr, DCOEFS: tl.constexpr,
    NOISE: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr, VEC: tl.constexpr, OUT_VEC: tl.constexpr,
    USE_INT32_INDEX: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    pid = tl.program_id(0)
    o = (pid % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)[None, :]
    pid = pid // tiles_o
    place = tl.arange(0, BLOCK_H * BLOCK_W)[:, None]
    ox = (pid % tiles_x).to(index_t) * BLOCK_W + place % BLOCK_W
    pid = pid // tiles_x
    oy = (pid % tiles_y).to(index_t) * BLOCK_H + place // BLOCK_W
    n = (pid // tiles_y).to(index_t)
    channels, filters = c * VEC, out_c * OUT_VEC
    in_image, in_filters = (oy < h) & (ox < w), o < filters

    if not STYLES:
        weight += n * filters * (SIDE * SIDE) * channels
    acc = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_O], tl.float32)
    steps = tl.cdiv(channels, BLOCK_K)
    for step in range(SIDE * SIDE * steps):
        tap = step // steps
        i, j = oy + (tap // SIDE - SIDE // 2), ox + (tap % SIDE - SIDE // 2)
        inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
        k = (step % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_channels = k < channels
        x_at = (n * x_n + i * x_h + j * x_w) * VEC + k[None, :]
        z = tl.load(x + x_at, mask=inside & in_channels[None, :], other=0.0)
        if STYLES:
            z = z.to(tl.float32) * tl.load(styles + n * channels + k, mask=in_channels, other=0.0)[None, :]
        if BORDER:
            at = border_offset(
                i + 1, j + 1, h, top_at, top_step, bottom_at, bottom_step, left_at, left_step, right_at, right_step
            )
            outside = in_image & (inside == 0) & in_channels[None, :]
            border_at = n * border_n + k[None, :] * border_c + at
            z = tl.where(inside, z, tl.load(border + border_at, mask=outside, other=0.0).to(z.dtype))
        weight_at = (o * (SIDE * SIDE) + tap0 + tap * tap_step) * channels + k[:, None]
        filter_tile = tl.load(weight + weight_at, mask=in_filters & in_channels[:, None], other=0.0)
        acc = tl.dot(z.to(x.dtype.element_ty), filter_tile, acc, input_precision="ieee")

    pixel = oy * w + ox
    if NOISE == 2:
        noise += n * h * w
    v = acc
    if DCOEFS:
        v *= tl.load(dcoefs + n * filters + o, mask=in_filters)
    if NOISE:
        v += tl.load(noise + pixel, mask=in_image)
    if BIAS:
        v += tl.load(bias + o, mask=in_filters).to(tl.float32)
    v = activate(v, alpha, gain, clamp, ACT, CLAMP)
    y_at = (n * h * w + pixel) * filters + o
    tl.store(y + y_at, v.to(y.dtype.element_ty), mask=in_image & in_filters)
