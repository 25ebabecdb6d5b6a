"""Triton kernel of bias_act and its first two derivatives, one pass over memory.

With ``v = x + b`` and ``y = gain * act(v)``, and 1[y] true where ``-clamp < y < clamp`` (always, if clamp < 0):

    order 0:  out = clamp(y)
    order 1:  out = x * gain * act'(v) * 1[y]         x: gradient; ref: input, or output if act' can be read off it
    order 2:  out = x * dy * gain * act''(v) * 1[y]   x, dy: gradients; ref: input

Memory is seen as rows: [N * C, step] with a bias per row (NCHW), [numel / C, C] with a bias per column (channels_last,
linear layers), or one row without a bias; so finding the bias costs no division per element.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .launch import ANY, LARGE, Row, arch_of, cdiv, first_row, vector

NO_BIAS, BIAS_PER_ROW, BIAS_PER_COLUMN = 0, 1, 2


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    ref: torch.Tensor | None,
    dy: torch.Tensor | None,
    out: torch.Tensor,
    step: int,
    order: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> None:
    """Write the result to ``out``, which may be ``x`` at order 0. ``x``, ``ref``, ``dy``, ``out`` are dense with equal
    strides; element ``i`` of memory has bias ``b[i // step % len(b)]``; ``clamp`` < 0 means none."""
    numel = out.numel()
    if numel == 0:
        return
    reads_output = act == "relu" or (act == "lrelu" and alpha >= 0)
    if order == 1 and reads_output:
        b = None
    if b is None:
        bias, rows, cols = NO_BIAS, 1, numel
    elif step == 1:
        bias, rows, cols = BIAS_PER_COLUMN, numel // b.numel(), b.numel()
    else:
        step = min(step, numel // b.numel())  # the stride of a dimension of size 1 may be anything
        bias, rows, cols = BIAS_PER_ROW, numel // step, step
    spec = Spec(act, order, reads_output, bias, clamp >= 0, vector(x, cols), numel >= LARGE)
    row = select(arch_of(x.device), x.element_size(), cols)
    tiles = cdiv(cols, row.cols)
    channels = 1 if b is None else b.numel()
    with torch.cuda.device_of(x):
        kernel[(tiles * cdiv(rows, row.rows),)](
            x, b, ref, dy, out, rows, cols // spec.vec, channels, tiles, float(alpha), float(gain), float(clamp),
            **spec.constants(row), **row.options(),
        )  # fmt: skip


TABLE = (  # 32 bytes of each tensor per thread: two loads of 16 bytes in flight
    Row(None, 2, 4, 512, 4, 4, 1),
    Row(None, 2, 32, 128, 16, 4, 1),
    Row(None, 2, 128, 32, 64, 4, 1),
    Row(None, 2, 1024, 8, 256, 4, 1),
    Row(None, 2, ANY, 1, 2048, 4, 1),
    Row(None, 4, 4, 256, 4, 4, 1),
    Row(None, 4, 32, 64, 16, 4, 1),
    Row(None, 4, 128, 16, 64, 4, 1),
    Row(None, 4, 512, 4, 256, 4, 1),
    Row(None, 4, ANY, 1, 1024, 4, 1),
    Row(None, 8, 4, 128, 4, 4, 1),
    Row(None, 8, 32, 32, 16, 4, 1),
    Row(None, 8, 128, 8, 64, 4, 1),
    Row(None, 8, ANY, 1, 512, 4, 1),
)


class Spec(NamedTuple):
    """What a binary depends on besides the row of the table and the dtypes."""

    act: str
    order: int
    reads_output: bool
    bias: int
    clamp: bool
    vec: int  # divides the length of a row, which is passed divided, so that Triton can prove the alignment
    big: bool  # 64-bit offsets

    def constants(self, row: Row) -> dict[str, Any]:
        """The constexpr arguments of the kernel."""
        return dict(
            ACT=self.act, ORDER=self.order, READS_OUTPUT=self.reads_output, BIAS=self.bias, CLAMP=self.clamp,
            VEC=self.vec, BIG=self.big, ROWS=row.rows, COLS=row.cols,
        )  # fmt: skip


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, cols: int) -> Row:
    """The row of the launch table for a call."""
    return first_row(TABLE, arch, itemsize, cols)


@triton.jit(do_not_specialize=("rows", "cols", "channels", "tiles"))
def kernel(
    x, b, ref, dy, out, rows, cols, channels, tiles, alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, ORDER: tl.constexpr, READS_OUTPUT: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    VEC: tl.constexpr, BIG: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int64 if BIG else tl.int32
    alpha = tl.full([], alpha, math_t)
    gain = tl.full([], gain, math_t)
    clamp = tl.full([], clamp, math_t)
    pid = tl.program_id(0)
    row = (pid // tiles).to(index_t) * ROWS + tl.arange(0, ROWS)
    col = (pid % tiles).to(index_t) * COLS + tl.arange(0, COLS)[None, :]
    width = cols.to(index_t) * VEC
    mask = (row < rows)[:, None] & (col < width)
    offset = row[:, None] * width + col
    g = tl.load(x + offset, mask=mask).to(math_t)
    v = g if ORDER == 0 else tl.load(ref + offset, mask=mask).to(math_t)
    if BIAS == 1 and ROWS == 1:
        v += tl.load(b + (pid // tiles) % channels).to(math_t)
    elif BIAS == 1:
        v += tl.load(b + row % channels, mask=row < rows).to(math_t)[:, None]
    elif BIAS == 2:
        v += tl.load(b + col, mask=col < width).to(math_t)

    if ORDER == 0:
        result = activate(v, alpha, gain, clamp, ACT, CLAMP)
    elif ORDER == 1 and READS_OUTPUT:
        y = v
        result = g * gain * _slope(tl.where(gain < 0, -y, y), alpha, ACT)  # the sign alone: a product could underflow
    else:
        if ORDER == 1:
            result = g * gain * _slope(v, alpha, ACT)
        else:
            result = g * tl.load(dy + offset, mask=mask).to(math_t) * gain * _curvature(v, ACT)
        if CLAMP:
            y = gain * _value(v, alpha, ACT)
    if CLAMP and ORDER > 0:
        result = tl.where((y > -clamp) & (y < clamp), result, 0.0)
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate(v, alpha, gain, clamp, ACT: tl.constexpr, CLAMP: tl.constexpr):
    """clamp(gain * act(v)) in the type of v, which the other numbers need not have."""
    result = tl.full([], gain, v.dtype) * _value(v, tl.full([], alpha, v.dtype), ACT)
    if CLAMP:  # comparisons, not minimum and maximum, so that NaN stays
        clamp = tl.full([], clamp, v.dtype)
        result = tl.where(result > clamp, clamp, tl.where(result < -clamp, -clamp, result))
    return result


@triton.jit
def _value(v, alpha, ACT: tl.constexpr):
    if ACT == "linear":
        r = v
    elif ACT == "relu":
        r = tl.where(v < 0, 0.0, v)
    elif ACT == "lrelu":
        r = tl.where(v > 0, v, alpha * v)
    elif ACT == "tanh":
        e = _expm1(-2 * tl.abs(v))
        r = tl.where(v < 0, e, -e) / (2 + e)
    elif ACT == "sigmoid":
        r, _ = _sigmoids(v)
    elif ACT == "elu":
        r = tl.where(v > 0, v, _expm1(v))
    elif ACT == "selu":
        r = tl.where(v > 0, 1.0507009873554805 * v, 1.0507009873554805 * 1.6732632423543772 * _expm1(v))
    elif ACT == "softplus":
        r = tl.where(v > 0, v, 0.0) + _log1p(tl.exp(-tl.abs(v)))
    elif ACT == "swish":
        s, _ = _sigmoids(v)
        r = v * s
    else:
        tl.static_assert(False, "unknown activation")
    return r


@triton.jit
def _slope(v, alpha, ACT: tl.constexpr):
    """act' at v; for linear, relu and lrelu any number of the sign of v will do."""
    if ACT == "linear":
        r = tl.full(v.shape, 1.0, v.dtype)
    elif ACT == "relu":
        r = tl.where(v > 0, 1.0, 0.0).to(v.dtype)
    elif ACT == "lrelu":
        r = tl.where(v > 0, 1.0, alpha)
    elif ACT == "tanh":
        s, t = _sigmoids(2 * v)
        r = 4 * s * t
    elif ACT == "sigmoid":
        s, t = _sigmoids(v)
        r = s * t
    elif ACT == "elu":
        r = tl.where(v > 0, 1.0, tl.exp(v))
    elif ACT == "selu":
        r = tl.where(v > 0, 1.0507009873554805, 1.0507009873554805 * 1.6732632423543772 * tl.exp(v))
    elif ACT == "softplus":
        r, _ = _sigmoids(v)
    elif ACT == "swish":
        s, t = _sigmoids(v)
        r = s * (1 + v * t)
    else:
        tl.static_assert(False, "unknown activation")
    return r


@triton.jit
def _curvature(v, ACT: tl.constexpr):
    s, t = _sigmoids(v)
    if ACT == "tanh":
        s, t = _sigmoids(2 * v)
        r = -8 * s * t * _value(v, 0.0, ACT)
    elif ACT == "sigmoid":
        r = s * t * (t - s)
    elif ACT == "elu":
        r = tl.where(v > 0, 0.0, tl.exp(v))
    elif ACT == "selu":
        r = tl.where(v > 0, 0.0, 1.0507009873554805 * 1.6732632423543772 * tl.exp(v))
    elif ACT == "softplus":
        r = s * t
    elif ACT == "swish":
        r = s * t * (2 + v * (t - s))
    else:
        r = tl.zeros(v.shape, v.dtype)
    return r


@triton.jit
def _sigmoids(v):
    """sigmoid(v) and sigmoid(-v), both without cancellation or overflow."""
    e = tl.exp(-tl.abs(v))
    large = 1 / (1 + e)
    small = e * large
    return tl.where(v < 0, small, large), tl.where(v < 0, large, small)


@triton.jit
def _expm1(v):
    """exp(v) - 1 for v <= 0 without cancellation: the error of exp leaves the quotient (Kahan)."""
    u = tl.exp(v)
    return tl.where(u == 1, v, tl.where(u - 1 == -1, -1.0, (u - 1) * v / tl.log(u)))


@triton.jit
def _log1p(v):
    """log(1 + v) for 0 <= v <= 1, in the same way."""
    u = 1 + v
    return tl.where(u == 1, v, tl.log(u) * v / (u - 1))
