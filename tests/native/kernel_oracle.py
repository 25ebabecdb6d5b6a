"""The ops in numpy float64, written from their definitions and nothing else."""

from __future__ import annotations

import numpy as np

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")  # ids 1..9


def upfirdn2d(x, f, up, down, pad, flip, gain):
    """Zero-insertion, padding or cropping, correlation with the (flipped) filter, decimation. x is [N, C, H, W]."""
    taps = np.outer(f, f) if f.ndim == 1 else f
    taps = taps if flip else taps[::-1, ::-1]
    n, c, h, w = x.shape
    (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1) = up, down, pad
    stuffed = np.zeros((n, c, h * up_y, w * up_x))
    stuffed[:, :, ::up_y, ::up_x] = x
    padded = np.pad(stuffed, ((0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    padded = padded[:, :, max(-y0, 0) : padded.shape[2] - max(-y1, 0), max(-x0, 0) : padded.shape[3] - max(-x1, 0)]
    out_h, out_w = padded.shape[2] - taps.shape[0] + 1, padded.shape[3] - taps.shape[1] + 1
    y = np.zeros((n, c, out_h, out_w))
    for ky in range(taps.shape[0]):
        for kx in range(taps.shape[1]):
            y += taps[ky, kx] * padded[:, :, ky : ky + out_h, kx : kx + out_w]
    return gain * y[:, :, ::down_y, ::down_x]  # [N, C, OH, OW]


def activation(act, v, alpha):
    """The activation and its first two derivatives at v."""
    one, zero = np.ones_like(v), np.zeros_like(v)
    if act == "linear":
        return v, one, zero
    if act in ("relu", "lrelu"):
        slope = np.where(v > 0, 1.0, alpha if act == "lrelu" else 0.0)
        return (np.where(v < 0, 0.0, v) if act == "relu" else v * slope), slope, zero
    if act == "tanh":
        t = np.tanh(v)
        return t, np.cosh(v) ** -2.0, -2 * t * np.cosh(v) ** -2.0
    if act in ("elu", "selu"):
        scale, a = (SELU_SCALE, SELU_ALPHA) if act == "selu" else (1.0, 1.0)
        e = scale * a * np.exp(np.minimum(v, 0))
        positive = v > 0
        value = np.where(positive, scale * v, scale * a * np.expm1(np.minimum(v, 0)))
        return value, np.where(positive, scale, e), np.where(positive, 0.0, e)
    s, not_s = 1 / (1 + np.exp(-v)), 1 / (1 + np.exp(v))
    if act == "sigmoid":
        return s, s * not_s, s * not_s * (not_s - s)
    if act == "softplus":
        return np.logaddexp(0, v), s, s * not_s
    return v * s, s + v * s * not_s, 2 * s * not_s + v * s * not_s * (not_s - s)  # swish


def bias_act(x, b, g, dy, grad, act, alpha, gain, clamp):
    """The op at grad 0; dx from g at grad 1; the derivative of dx by x times dy at grad 2. b has the shape of x."""
    value, first, second = activation(act, x + b, alpha)
    y = gain * value
    if grad == 0:
        return y if clamp < 0 else np.clip(y, -clamp, clamp)
    inside = np.ones_like(y) if clamp < 0 else (y > -clamp) & (y < clamp)
    return inside * gain * (g * first if grad == 1 else g * dy * second)


def prologue2d(x, residual, styles, border, columns, rows, pad, mode, concat, height_first):
    """Encode, scale, add, pad. x is [N, C, H, W]; border a map or the ring: top, bottom, left, right."""
    n, _, h, w = x.shape
    z = x
    if columns is not None:
        halves = [np.repeat(columns[:, None, :], h, 1), np.repeat(rows[:, :, None], w, 2)]
        e = np.concatenate(halves[::-1] if height_first else halves)[None]
        z = np.concatenate([x, np.repeat(e, n, 0)], 1) if concat else x + e
    if styles is not None:
        z = z * styles[:, :, None, None]
    if residual is not None:
        z = z + residual
    left, right, top, bottom = pad
    y = np.pad(z, ((0, 0), (0, 0), (top, bottom), (left, right)), "reflect" if mode == "reflect" else "constant")
    if mode != "instance":
        return y
    if border.ndim == 4:
        top, left = (border.shape[2] - h - 2) // 2, (border.shape[3] - w - 2) // 2
        around = border[:, :, top : top + h + 2, left : left + w + 2].copy()
    else:
        around = np.zeros_like(y)
        around[:, :, 0], around[:, :, -1] = border[:, :, : w + 2], border[:, :, w + 2 : 2 * w + 4]
        around[:, :, 1:-1, 0] = border[:, :, 2 * w + 4 : 2 * w + 4 + h]
        around[:, :, 1:-1, -1] = border[:, :, 2 * w + 4 + h :]
    around[:, :, 1:-1, 1:-1] = z
    return around
