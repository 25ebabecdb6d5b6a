"""Triton kernels of upfirdn2d: upsample, pad or crop, filter and downsample in one pass over memory.

Per axis, with ``g = f`` reversed unless ``flip_filter``, tap ``k = i*up - o*down + pad0`` joins input i to output o:

    y[o] = gain * sum_i g[k] * x[i],  0 <= i < size, 0 <= k < taps

The kernels never load nor multiply a zero-inserted sample. A separable filter runs along the row first; the
result stays in registers and feeds every output row that it reaches.

Two kernels. ``_streamed`` serves the filters of GANs: taps and factors are unrolled; a program walks down a strip of
the image, loads an input row once and keeps the sums of the output rows that are not complete yet. ``_looped`` serves
every other size: one binary for all factors and taps.

Both give a lane to each output of a row: columns in NCHW, channels in channels_last. Under upsampling each lane holds
the taps of its own phase, so neighbours share loads through L1 and every store is contiguous. A polyphase split would
save loads, the smaller part of the traffic, but pay with shuffles or half-filled stores.
"""

# Triton grows tuples by concatenation, which mypy takes for a change of type.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import launch
from .launch import ANY, INT32_LIMIT, Resample, arch_of, cdiv, extent, first_config, required, vector_size


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor,
    y: torch.Tensor,
    resample: Resample,
) -> None:
    """Write the result to ``y``. ``x`` [N, C, H, W] has unit stride along W, or along C with dense
    pixels; ``y`` [N, C, OH, OW] is dense in the same format; ``f`` [taps] or [fh, fw] is contiguous."""
    if y.numel() == 0:
        return
    (up_x, up_y), (down_x, down_y), (pad_x, _, pad_y, _), flip, gain = resample
    n, c, h, w = x.shape
    oh, ow = y.shape[2:]
    sn, sc, sh, sw = x.stride()
    channels_last = c > 1 and sc == 1 and y.is_contiguous(memory_format=torch.channels_last)
    use_int32_index = max(y.numel(), extent(x)) < INT32_LIMIT
    aligned = channels_last and (x.data_ptr() | y.data_ptr()) % 16 == 0
    vec = vector_size(x, c, sn, sh, sw) if aligned else 1
    fh, fw = f.shape[0], f.shape[-1]
    key = KernelKey(
        channels_last, f.ndim == 1, fw, fh, up_x, up_y, down_x, down_y, -pad_y % up_y, vec, use_int32_index
    )  # fmt: skip
    config = select(arch_of(x.device), key, x.element_size(), c if channels_last else ow)

    planes, samples = (c, n) if channels_last else (n * c, 1)
    programs = cdiv(planes, config.block_planes) * cdiv(ow, config.block_cols) * samples
    tile_h = key.tile_h(config, oh, programs)
    tiles = (cdiv(planes, config.block_planes), cdiv(ow, config.block_cols), cdiv(oh, tile_h))
    tap0, tap_step = (0, 1) if flip else (f.numel() - 1, -1)
    args = [
        *(planes, c // vec, h, w, oh, ow),
        *(sn // vec, sc, sh // vec, sw // vec),
        *(cdiv(pad_x, up_x), cdiv(pad_y, up_y), -pad_x % up_x),
        *(tap0, tap_step, tile_h, *tiles),
    ]
    if config.kernel == "looped":
        args += [fw, fh, up_x, up_y, down_x, down_y, key.rest_y]
    with torch.cuda.device_of(x):
        KERNELS[config.kernel][(programs * tiles[2],)](
            x, f, y, gain, *args, **constants(key, config), **config.options(x.element_size())
        )


class KernelConfig(NamedTuple):
    """One row of the launch table: which calls it serves, its tile, and where it was measured."""

    arch: int | None  # compute capability times 10; None: any that has no configs of its own
    kernel: str  # "full" and "separable" run _streamed
    layout: str  # "nchw", "nhwc", or "nhwc1" where channels are not in whole vectors of 16 bytes
    itemsizes: tuple[int, ...]
    limit: int  # serves an output width (nchw) or a number of channels (nhwc) up to this
    block_planes: int
    block_cols: int
    block_rows: int  # output rows of a tile at most
    unroll: int  # rows of a step of _streamed, counted in the larger of input and output
    num_warps: int
    num_stages: int
    maxnreg: int  # registers per thread, doubled for float64; stated because ptxas would spill to raise occupancy
    measured: str = "not measured yet"

    def options(self, itemsize: int) -> dict[str, int]:
        """Return the kernel's compile options."""
        registers = min(255, self.maxnreg * (2 if itemsize == 8 else 1))
        return dict(num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=registers)


TABLE = (
    KernelConfig(None, "full", "nchw", (2, 4, 8), 16, 8, 16, 16, 4, 4, 1, 64),
    KernelConfig(None, "full", "nchw", (2, 4, 8), 32, 4, 32, 32, 4, 4, 1, 64),
    KernelConfig(None, "full", "nchw", (2, 4, 8), 64, 2, 64, 32, 4, 4, 1, 64),
    KernelConfig(None, "full", "nchw", (2, 4, 8), ANY, 1, 128, 32, 4, 4, 1, 64),
    KernelConfig(None, "full", "nhwc", (2,), 32, 32, 32, 32, 4, 4, 1, 128),
    KernelConfig(None, "full", "nhwc", (2,), ANY, 64, 16, 32, 4, 4, 1, 128),
    KernelConfig(None, "full", "nhwc", (4,), 32, 32, 16, 32, 4, 4, 1, 96),
    KernelConfig(None, "full", "nhwc", (4,), ANY, 64, 8, 32, 4, 4, 1, 96),
    KernelConfig(None, "full", "nhwc", (8,), ANY, 32, 8, 32, 4, 4, 1, 96),
    KernelConfig(None, "full", "nhwc1", (2, 4, 8), 4, 4, 32, 32, 4, 4, 1, 80),
    KernelConfig(None, "full", "nhwc1", (2, 4, 8), ANY, 32, 4, 32, 4, 4, 1, 80),
    KernelConfig(None, "separable", "nchw", (2, 4, 8), 32, 4, 32, 32, 2, 4, 1, 128),
    KernelConfig(None, "separable", "nchw", (2, 4, 8), ANY, 1, 128, 64, 2, 4, 1, 128),
    KernelConfig(None, "separable", "nhwc", (2, 4, 8), ANY, 32, 8, 64, 2, 4, 1, 168),
    KernelConfig(None, "separable", "nhwc1", (2, 4, 8), ANY, 32, 4, 64, 2, 4, 1, 128),
    KernelConfig(None, "looped", "nchw", (2, 4, 8), 32, 4, 32, 8, 0, 4, 1, 96),
    KernelConfig(None, "looped", "nchw", (2, 4, 8), ANY, 1, 128, 16, 0, 4, 1, 96),
    KernelConfig(None, "looped", "nhwc", (2, 4, 8), ANY, 32, 8, 8, 0, 4, 1, 96),
    KernelConfig(None, "looped", "nhwc1", (2, 4, 8), ANY, 32, 4, 8, 0, 4, 1, 96),
)
ENOUGH_PROGRAMS = 1024  # about one wave on a large GPU: below it, tiles get lower


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    channels_last: bool
    separable: bool
    fw: int
    fh: int
    up_x: int
    up_y: int
    down_x: int
    down_y: int
    rest_y: int  # -pad0 modulo up, along y
    vec: int  # divides strides and channels; the launcher passes quotients, so that Triton can prove the alignment
    use_int32_index: bool

    @property
    def kernel(self) -> str:
        """Choose ``_streamed`` if taps and sums fit in registers and the code stays small, else ``_looped``."""
        taps_x = cdiv(self.fw, self.up_x)
        if self.separable:
            fits = taps_x <= 12 and self.fh <= 24
        else:
            fits = taps_x * self.fh <= 16 and self.fw * self.fh <= 25 and self.fh <= 6
        if not fits or max(self.up_x, self.up_y, self.down_y) > 4:
            return "looped"
        return "separable" if self.separable else "full"

    @property
    def layout(self) -> str:
        if not self.channels_last:
            return "nchw"
        return "nhwc" if self.vec > 1 else "nhwc1"

    def step(self, config: KernelConfig) -> tuple[int, int]:
        """Return the input and output rows of a step, which are such that every step begins at the same phase."""
        common = math.gcd(self.up_y, self.down_y)
        rows_in, rows_out = self.down_y // common, self.up_y // common
        times = max(1, config.unroll // max(rows_in, rows_out))
        return rows_in * times, rows_out * times

    def tile_h(self, config: KernelConfig, oh: int, programs: int) -> int:
        """Return the output rows of a tile; ``programs`` is the number of programs in a row of tiles."""
        if config.kernel == "looped":
            return config.block_rows
        _, step = self.step(config)
        rows = min(config.block_rows, oh)
        while rows > 2 * step and programs * cdiv(oh, rows) < ENOUGH_PROGRAMS:
            rows //= 2
        return cdiv(rows, step) * step


@functools.lru_cache(4096)
def constants(key: KernelKey, config: KernelConfig) -> dict[str, Any]:
    """Return the constexpr arguments of the kernel; ``_looped`` takes filter and factors at run time."""
    named = launch.constants(key, config)
    if config.kernel == "looped":
        return {name: named[name] for name in _CONSTEXPR_LOOPED}
    rows_in, rows_out = key.step(config)
    return {name: value for name, value in named.items() if name != "BLOCK_ROWS"} | dict(IN=rows_in, OUT=rows_out)


@functools.lru_cache(4096)
def select(arch: int, key: KernelKey, itemsize: int, size: int) -> KernelConfig:
    """Return the config for an output width (NCHW) or a number of channels (channels_last)."""
    kind = key.kernel, key.layout

    def serves(config: KernelConfig) -> bool:
        return (config.kernel, config.layout) == kind and itemsize in config.itemsizes and size <= config.limit

    return required(first_config(TABLE, arch, serves))


_RUNTIME = (
    "planes", "channels", "h", "w", "oh", "ow", "sn", "sc", "sh", "sw", "first_x", "first_y", "rest_x",
    "tap0", "tap_step", "tile_h", "tiles_p", "tiles_x", "tiles_y",
)  # fmt: skip
_CONSTEXPR_LOOPED = (
    "CHANNELS_LAST", "SEPARABLE", "VEC", "USE_INT32_INDEX", "BLOCK_PLANES", "BLOCK_COLS", "BLOCK_ROWS",
)  # fmt: skip
_RUNTIME_LOOPED = ("fw", "fh", "up_x", "up_y", "down_x", "down_y", "rest_y")


@triton.jit(do_not_specialize=_RUNTIME)
def _streamed(
    x, f, y, gain: tl.float64,
    planes, channels, h, w, oh, ow, sn, sc, sh, sw, first_x, first_y, rest_x, tap0, tap_step, tile_h,
    tiles_p, tiles_x, tiles_y,
    CHANNELS_LAST: tl.constexpr, SEPARABLE: tl.constexpr, VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr,
    BLOCK_PLANES: tl.constexpr, BLOCK_COLS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    FW: tl.constexpr, FH: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr,
    DOWN_X: tl.constexpr, DOWN_Y: tl.constexpr, REST_Y: tl.constexpr,
):  # fmt: skip
    acc_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    taps_x: tl.constexpr = (FW + UP_X - 1) // UP_X
    width: tl.constexpr = 1 if SEPARABLE else taps_x  # values an input row contributes to a column
    AHEAD: tl.constexpr = (REST_Y + FH - 1) // DOWN_Y
    ox, tile_y, x_plane, y_plane, x_row, y_col, y_row, in_plane = _tile(
        planes, channels, oh, ow, sn, sc, sh, tiles_p, tiles_x, tiles_y,
        CHANNELS_LAST, VEC, USE_INT32_INDEX, BLOCK_PLANES, BLOCK_COLS,
    )  # fmt: skip
    step = sw * VEC if CHANNELS_LAST else 1
    t = ox * DOWN_X + rest_x
    ix = (t + UP_X - 1) // UP_X
    phase = ix * UP_X - t
    ix -= first_x
    x_tile = x + (x_plane + ix * step)
    y_tile = y + (y_plane + ox * y_col)
    in_col = in_plane & (ox < ow)
    zero = tl.zeros(in_plane.shape, acc_t) + tl.zeros(ix.shape, acc_t)

    scale = tl.full([], gain, acc_t)
    row_taps = ()  # [taps_x] if separable
    col_taps = ()  # [FH] if separable, else [FH * taps_x]
    if SEPARABLE:
        for j in tl.static_range(taps_x):
            row_taps += (_tap(f, phase, 0, j * UP_X, tap0, tap_step, FW, UP_X, acc_t),)
        for k in tl.static_range(FH):
            col_taps += (_tap(f, phase, 0, k, tap0, tap_step, FH, 1, acc_t) * scale,)
    else:
        for k in tl.static_range(FH):
            for j in tl.static_range(taps_x):
                col_taps += (_tap(f, phase, k * FW, j * UP_X, tap0, tap_step, FW, UP_X, acc_t) * scale,)

    oy0 = tile_y * tile_h
    end = tl.minimum(oy0 + tile_h, oh)
    iy = oy0 // OUT * IN - first_y
    oy = oy0 - AHEAD
    sums = ()  # one per output row oy, oy + 1, ... that is begun and not complete
    for _ in tl.static_range(AHEAD):
        sums += (zero,)
    for _ in range((end - oy + OUT - 1) // OUT):
        for _r in tl.static_range(OUT):
            sums += (zero,)
        for i in tl.static_range(IN):
            # one unsigned comparison bounds both sides; a row outside the image has no columns
            limit = tl.where((iy + i >= 0) & (iy + i < h), w, 0).to(tl.uint32)
            x_line = x_tile + (iy + i) * x_row
            values = ()
            total = zero
            for j in tl.static_range(taps_x):
                v = tl.load(x_line + j * step, mask=in_plane & ((ix + j).to(tl.uint32) < limit), other=0.0).to(acc_t)
                if SEPARABLE:
                    total += row_taps[j] * v
                else:
                    values += (v,)
            if SEPARABLE:
                values = (total,)
            updated = ()
            for r in tl.static_range(AHEAD + OUT):
                s = _accumulate(sums[r], col_taps, values, i * UP_Y - (r - AHEAD) * DOWN_Y - REST_Y, width, FH)
                updated += (s,)
            sums = updated
        for r in tl.static_range(OUT):
            mask = in_col & (oy + r >= oy0) & (oy + r < end)
            tl.store(y_tile + (oy + r) * y_row, sums[r].to(y.dtype.element_ty), mask=mask)
        sums = sums[OUT:]
        iy += IN
        oy += OUT


@triton.jit(do_not_specialize=_RUNTIME + _RUNTIME_LOOPED)
def _looped(
    x, f, y, gain: tl.float64,
    planes, channels, h, w, oh, ow, sn, sc, sh, sw, first_x, first_y, rest_x, tap0, tap_step, tile_h,
    tiles_p, tiles_x, tiles_y, fw, fh, up_x, up_y, down_x, down_y, rest_y,
    CHANNELS_LAST: tl.constexpr, SEPARABLE: tl.constexpr, VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr,
    BLOCK_PLANES: tl.constexpr, BLOCK_COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    acc_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    ox, tile_y, x_plane, y_plane, x_row, y_col, y_row, in_plane = _tile(
        planes, channels, oh, ow, sn, sc, sh, tiles_p, tiles_x, tiles_y,
        CHANNELS_LAST, VEC, USE_INT32_INDEX, BLOCK_PLANES, BLOCK_COLS,
    )  # fmt: skip
    step = sw * VEC if CHANNELS_LAST else 1
    t = ox * down_x + rest_x
    ix = (t + up_x - 1) // up_x
    phase = (ix * up_x - t)[None, :, :]
    ix -= first_x
    x_tile = (x + (x_plane + ix * step))[None, :, :]
    ix = ix[None, :, :]
    lane = in_plane[None, :, :]
    none = tl.zeros(in_plane.shape, acc_t)[None, :, :] + tl.zeros(phase.shape, acc_t)  # [1, lanes]

    oy0 = tile_y * tile_h
    r = tl.arange(0, BLOCK_ROWS)[:, None, None]
    start = oy0 * down_y + rest_y  # first upsampled row of the tile, counted from a row of x
    i0 = start // up_y
    sums = tl.zeros([BLOCK_ROWS, 1, 1], acc_t) + none  # [BLOCK_ROWS, lanes]
    for i in range(i0, (start + (BLOCK_ROWS - 1) * down_y + fh - 1) // up_y + 1):
        iy = i - first_y
        limit = tl.where((iy >= 0) & (iy < h), w, 0).to(tl.uint32)
        x_line = x_tile + iy * x_row
        ky = (i * up_y - start).to(tl.int32) - r * down_y  # the tap that joins this input row to each output row
        reached = (ky >= 0) & (ky < fh)
        total = none
        for j in range((fw + up_x - 1) // up_x):
            kx = phase + j * up_x
            v = tl.load(x_line + j * step, mask=lane & ((ix + j).to(tl.uint32) < limit), other=0.0).to(acc_t)
            if SEPARABLE:
                total += tl.load(f + (tap0 + tap_step * kx), mask=kx < fw, other=0.0).to(acc_t) * v
            else:
                k = ky * fw + kx
                tap = tl.load(f + (tap0 + tap_step * k), mask=reached & (kx < fw), other=0.0).to(acc_t)
                sums = tl.where(reached, sums + tap * v, sums)
        if SEPARABLE:
            tap = tl.load(f + (tap0 + tap_step * ky), mask=reached, other=0.0).to(acc_t)
            sums = tl.where(reached, sums + tap * total, sums)
    oy = oy0 + r
    y_tile = (y + (y_plane + ox * y_col))[None, :, :] + oy * y_row
    in_col = (in_plane & (ox < ow))[None, :, :]
    tl.store(y_tile, (sums * tl.full([], gain, acc_t)).to(y.dtype.element_ty), mask=in_col & (oy < oh))


@triton.jit
def _tile(
    planes, channels, oh, ow, sn, sc, sh, tiles_p, tiles_x, tiles_y,
    CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr,
    BLOCK_PLANES: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Locate this program's tile: columns, row tile, offsets of the planes, strides, and which lanes have a plane.

    Lanes are [BLOCK_PLANES, BLOCK_COLS] in NCHW, where a plane is a channel of a sample, and [BLOCK_COLS, BLOCK_PLANES]
    in channels_last, where it is a channel. Programs run through memory in order."""
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    x_row = sh.to(index_t) * VEC
    pid = tl.program_id(0)
    if CHANNELS_LAST:
        tile_p = pid % tiles_p
        pid = pid // tiles_p
        ox = (pid % tiles_x) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[:, None]
        pid = pid // tiles_x
        tile_y = (pid % tiles_y).to(index_t)
        n = (pid // tiles_y).to(index_t)
        plane = tile_p * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)[None, :]
        in_plane = plane < channels * VEC
        y_col = channels * VEC
        y_row = ow.to(index_t) * y_col
        x_plane = n * sn * VEC + plane
        y_plane = n * oh * y_row + plane
    else:
        ox = (pid % tiles_x) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
        pid = pid // tiles_x
        tile_y = (pid % tiles_y).to(index_t)
        plane = (pid // tiles_y) * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)[:, None]
        in_plane = plane < planes
        plane = plane.to(index_t)
        y_col = 1
        y_row = ow
        x_plane = (plane // channels) * sn + (plane % channels) * sc
        y_plane = plane * oh * ow
    return ox, tile_y, x_plane, y_plane, x_row, y_col, y_row, in_plane


@triton.jit
def _tap(
    f, phase, BEFORE: tl.constexpr, K: tl.constexpr, tap0, tap_step, END: tl.constexpr, UP: tl.constexpr,
    acc_t: tl.constexpr,
):  # fmt: skip
    """Load tap K + phase of the filter row that begins after BEFORE taps and has END taps. The result is a scalar if UP
    is 1, else it has one tap per column."""
    if UP == 1:
        tap = tl.load(f + (tap0 + tap_step * (BEFORE + K))).to(acc_t)
    else:
        tap = tl.zeros(phase.shape, acc_t)
        for p in tl.static_range(UP):
            if K + p < END:
                tap = tl.where(phase == p, tl.load(f + (tap0 + tap_step * (BEFORE + K + p))).to(acc_t), tap)
    return tap


@triton.jit
def _accumulate(s, taps, values, K: tl.constexpr, WIDTH: tl.constexpr, END: tl.constexpr):
    """Add to an output row the products of an input row with filter row K, if the filter has such a row."""
    if K >= 0 and K < END:
        for j in tl.static_range(WIDTH):
            s += taps[K * WIDTH + j] * values[j]
    return s


KERNELS = {"full": _streamed, "separable": _streamed, "looped": _looped}
