"""Triton kernel of bias_act and its first two derivatives, in one pass over memory.

With ``v = x + b`` and ``y = gain * act(v)``, and 1[y] true where ``-clamp < y < clamp`` (always, if clamp < 0):

    grad 0:  out = clamp(y)
    grad 1:  out = x * gain * act'(v) * 1[y]         x: gradient; ref: input, or output if act' can be read from it
    grad 2:  out = x * dy * gain * act''(v) * 1[y]   x, dy: gradients; ref: input

The kernel sees memory as rows: [N * C, step] with a bias per row (NCHW), [numel / C, C] with a bias per column
(channels_last, linear layers), or one row without a bias. Finding the bias costs no division per element.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import ANY, INT32_LIMIT, Activation, KernelConfig, arch_of, cdiv, config_for_length, constants, vector_size

NO_BIAS, BIAS_PER_ROW, BIAS_PER_COLUMN = 0, 1, 2
SELU_SCALE, SELU_ALPHA = tl.constexpr(1.0507009873554805), tl.constexpr(1.6732632423543772)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    ref: torch.Tensor | None,
    dy: torch.Tensor | None,
    out: torch.Tensor,
    step: int,
    grad: int,
    activation: Activation,
) -> None:
    """Write derivative ``grad`` to ``out``, which may be ``x`` if ``grad`` is 0. ``x``, ``ref``, ``dy`` and ``out`` are
    dense with equal strides; element ``i`` of memory has bias ``b[i // step % len(b)]``."""
    numel = out.numel()
    if numel == 0:
        return
    act, alpha, gain, clamp = activation
    reads_output = slope_is_read_from_output(act, alpha)
    if grad == 1 and reads_output:
        b = None
    if b is None:
        bias, rows, cols = NO_BIAS, 1, numel
    elif step == 1:
        bias, rows, cols = BIAS_PER_COLUMN, numel // b.numel(), b.numel()
    else:
        bias, rows, cols = BIAS_PER_ROW, numel // step, step
    key = KernelKey(act, grad, reads_output, bias, clamp >= 0, vector_size(x, cols), numel < INT32_LIMIT)
    config = select(arch_of(x.device), x.element_size(), cols)
    tiles = cdiv(cols, config.block_cols)
    channels = 1 if b is None else b.numel()
    with torch.cuda.device_of(x):
        kernel[(tiles * cdiv(rows, config.block_rows),)](
            x, b, ref, dy, out, rows, cols // key.vec, channels, tiles, float(alpha), float(gain), float(clamp),
            **constants(key, config), **config.options(),
        )  # fmt: skip


def slope_is_read_from_output(act: str, alpha: float) -> bool:
    """Tell whether the sign of the output determines act', so that backward need not keep the input."""
    return act == "relu" or (act == "lrelu" and alpha >= 0)


TABLE = (  # 32 bytes of each tensor per thread: two loads of 16 bytes in flight
    KernelConfig(None, 2, 4, 512, 4, 4, 1),
    KernelConfig(None, 2, 32, 128, 16, 4, 1),
    KernelConfig(None, 2, 128, 32, 64, 4, 1),
    KernelConfig(None, 2, 1024, 8, 256, 4, 1),
    KernelConfig(None, 2, ANY, 1, 2048, 4, 1),
    KernelConfig(None, 4, 4, 256, 4, 4, 1),
    KernelConfig(None, 4, 32, 64, 16, 4, 1),
    KernelConfig(None, 4, 128, 16, 64, 4, 1),
    KernelConfig(None, 4, 512, 4, 256, 4, 1),
    KernelConfig(None, 4, ANY, 1, 1024, 4, 1),
    KernelConfig(None, 8, 4, 128, 4, 4, 1),
    KernelConfig(None, 8, 32, 32, 16, 4, 1),
    KernelConfig(None, 8, 128, 8, 64, 4, 1),
    KernelConfig(None, 8, ANY, 1, 512, 4, 1),
)


class KernelKey(NamedTuple):
    """Properties of a call that its binary depends on, besides the config and the dtypes."""

    act: str
    grad: int
    reads_output: bool
    bias: int
    clamp: bool
    vec: int  # divides the length of a row; the launcher passes the quotient, so that Triton can prove the alignment
    use_int32_index: bool


@functools.lru_cache(4096)
def select(arch: int, itemsize: int, cols: int) -> KernelConfig:
    """Return the config of the launch table for rows of memory of this length."""
    return config_for_length(TABLE, arch, itemsize, cols)


@triton.jit(do_not_specialize=("rows", "cols", "channels", "tiles"))
def kernel(
    x, b, ref, dy, out, rows, cols, channels, tiles, alpha: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACT: tl.constexpr, GRAD: tl.constexpr, READS_OUTPUT: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    VEC: tl.constexpr, USE_INT32_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    math_t: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index_t: tl.constexpr = tl.int32 if USE_INT32_INDEX else tl.int64
    alpha = tl.full([], alpha, math_t)
    gain = tl.full([], gain, math_t)
    clamp = tl.full([], clamp, math_t)
    pid = tl.program_id(0)
    row = (pid // tiles).to(index_t) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = (pid % tiles).to(index_t) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    width = cols.to(index_t) * VEC
    mask = (row < rows)[:, None] & (col < width)
    offset = row[:, None] * width + col
    g = tl.load(x + offset, mask=mask).to(math_t)
    v = g if GRAD == 0 else tl.load(ref + offset, mask=mask).to(math_t)
    if BIAS == 1 and BLOCK_ROWS == 1:
        v += tl.load(b + (pid // tiles) % channels).to(math_t)
    elif BIAS == 1:
        v += tl.load(b + row % channels, mask=row < rows).to(math_t)[:, None]
    elif BIAS == 2:
        v += tl.load(b + col, mask=col < width).to(math_t)

    if GRAD == 0:
        result = activate(v, alpha, gain, clamp, ACT, CLAMP)
    elif GRAD == 1:
        result = differentiate(g, v, alpha, gain, clamp, ACT, READS_OUTPUT, CLAMP)
    else:
        result = g * tl.load(dy + offset, mask=mask).to(math_t) * gain * _second_derivative(v, ACT)
        if CLAMP:
            y = gain * _value(v, alpha, ACT)
            result = tl.where((y > -clamp) & (y < clamp), result, 0.0)
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate(v, alpha, gain, clamp, ACT: tl.constexpr, CLAMP: tl.constexpr):
    """Return clamp(gain * act(v)) in the type of v, to which the numbers are cast."""
    result = tl.full([], gain, v.dtype) * _value(v, tl.full([], alpha, v.dtype), ACT)
    if CLAMP:  # comparisons keep NaN, minimum and maximum would not
        clamp = tl.full([], clamp, v.dtype)
        result = tl.where(result > clamp, clamp, tl.where(result < -clamp, -clamp, result))
    return result


@triton.jit
def differentiate(g, v, alpha, gain, clamp, ACT: tl.constexpr, READS_OUTPUT: tl.constexpr, CLAMP: tl.constexpr):
    """Return g * gain * act'(v) inside the clamp, else 0, where v is the input of the activation or its result."""
    alpha = tl.full([], alpha, v.dtype)
    gain = tl.full([], gain, v.dtype)
    clamp = tl.full([], clamp, v.dtype)
    if READS_OUTPUT:  # of the sign of v * gain, a product that could underflow
        result = g * gain * _first_derivative(tl.where(gain < 0, -v, v), alpha, ACT)
    else:
        result = g * gain * _first_derivative(v, alpha, ACT)
    if CLAMP:
        y = v if READS_OUTPUT else gain * _value(v, alpha, ACT)
        result = tl.where((y > -clamp) & (y < clamp), result, 0.0)
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
        r = tl.where(v > 0, SELU_SCALE * v, SELU_SCALE * SELU_ALPHA * _expm1(v))
    elif ACT == "softplus":
        r = tl.where(v > 0, v, 0.0) + _log1p(tl.exp(-tl.abs(v)))
    elif ACT == "swish":
        s, _ = _sigmoids(v)
        r = v * s
    else:
        tl.static_assert(False, "unknown activation")
    return r


@triton.jit
def _first_derivative(v, alpha, ACT: tl.constexpr):
    """Return act' at v; linear, relu and lrelu need the sign of v only."""
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
        r = tl.where(v > 0, SELU_SCALE, SELU_SCALE * SELU_ALPHA * tl.exp(v))
    elif ACT == "softplus":
        r, _ = _sigmoids(v)
    elif ACT == "swish":
        s, t = _sigmoids(v)
        r = s * (1 + v * t)
    else:
        tl.static_assert(False, "unknown activation")
    return r


@triton.jit
def _second_derivative(v, ACT: tl.constexpr):
    s, t = _sigmoids(v)
    if ACT == "tanh":
        s, t = _sigmoids(2 * v)
        r = -8 * s * t * _value(v, 0.0, ACT)
    elif ACT == "sigmoid":
        r = s * t * (t - s)
    elif ACT == "elu":
        r = tl.where(v > 0, 0.0, tl.exp(v))
    elif ACT == "selu":
        r = tl.where(v > 0, 0.0, SELU_SCALE * SELU_ALPHA * tl.exp(v))
    elif ACT == "softplus":
        r = s * t
    elif ACT == "swish":
        r = s * t * (2 + v * (t - s))
    else:
        r = tl.zeros(v.shape, v.dtype)
    return r


@triton.jit
def _sigmoids(v):
    """Return sigmoid(v) and sigmoid(-v), both without cancellation or overflow."""
    e = tl.exp(-tl.abs(v))
    large = 1 / (1 + e)
    small = e * large
    return tl.where(v < 0, small, large), tl.where(v < 0, large, small)


@triton.jit
def _expm1(v):
    """Return exp(v) - 1 for v <= 0 without cancellation: the error of exp cancels in the quotient (Kahan)."""
    u = tl.exp(v)
    return tl.where(u == 1, v, tl.where(u - 1 == -1, -1.0, (u - 1) * v / tl.log(u)))


@triton.jit
def _log1p(v):
    """Return log(1 + v) for 0 <= v <= 1, by the same method."""
    u = 1 + v
    return tl.where(u == 1, v, tl.log(u) * v / (u - 1))
