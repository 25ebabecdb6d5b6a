"""Independent answers in float64: scipy for resampling, closed forms from numpy for activations."""

from __future__ import annotations

import numpy as np
import scipy.signal
import scipy.special
import torch


def upfirdn2d(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """Zero insertion, padding or cropping, scipy.signal.convolve, decimation."""
    x = x.detach().double().numpy()
    f = np.ones((1, 1)) if f is None else f.detach().double().numpy()
    f = np.outer(f, f) if f.ndim == 1 else f
    kernel = f[::-1, ::-1] if flip_filter else f  # convolve flips once more
    n, c, h, w = x.shape
    u = np.zeros((n, c, h * up[1], w * up[0]))
    u[:, :, :: up[1], :: up[0]] = x
    grown = [max(p, 0) for p in padding]
    u = np.pad(u, ((0, 0), (0, 0), (grown[2], grown[3]), (grown[0], grown[1])))
    cut = [max(-p, 0) for p in padding]
    u = u[:, :, cut[2] : u.shape[2] - cut[3], cut[0] : u.shape[3] - cut[1]]
    u = np.concatenate([u, np.zeros((1, *u.shape[1:]))])  # scipy refuses empty arrays
    y = scipy.signal.convolve(u, kernel[None, None], mode="valid", method="direct")[:n]
    return torch.from_numpy(gain * y[:, :, :: down[1], :: down[0]])


def upfirdn_separable(x, f, up, down):
    """scipy.signal.upfirdn over both axes, for calls whose padding is taps - 1 before and the same after."""
    y = scipy.signal.upfirdn(f.double().numpy(), x.double().numpy(), up, down, axis=3)
    return torch.from_numpy(scipy.signal.upfirdn(f.double().numpy(), y, up, down, axis=2))


_SELU = (1.0507009873554805, 1.6732632423543772)


def activation(act, v, alpha):
    """Value, first and second derivative of an activation at the float64 array v."""
    s, c = scipy.special.expit(v), scipy.special.expit(-v)  # c = 1 - s without cancellation
    negative = np.exp(np.minimum(v, 0))
    one, zero = np.ones_like(v), np.zeros_like(v)
    if act == "linear":
        return v, one, zero
    if act == "relu":
        return np.maximum(v, 0), (v > 0) * one, zero
    if act == "lrelu":
        return np.where(v > 0, v, alpha * v), np.where(v > 0, 1, alpha), zero
    if act == "tanh":
        return np.tanh(v), np.cosh(v) ** -2, -2 * np.tanh(v) * np.cosh(v) ** -2
    if act == "sigmoid":
        return s, s * c, s * c * (c - s)
    if act == "elu":
        return (
            np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
            np.where(v > 0, 1, negative),
            np.where(v > 0, 0, negative),
        )
    if act == "selu":
        scale, slope = _SELU[0], _SELU[0] * _SELU[1]
        value = np.where(v > 0, scale * v, slope * np.expm1(np.minimum(v, 0)))
        return value, np.where(v > 0, scale, slope * negative), np.where(v > 0, 0, slope * negative)
    if act == "softplus":
        return np.logaddexp(0, v), s, s * c
    return v * s, s + v * s * c, s * c * (2 + v * (c - s))


def bias_act(x, b, dim, act, alpha, gain, clamp, g=None, h=None):
    """y, and with g the gradient dx of <y, g>, and with h the gradients of <dx, h> in g and x. All float64."""
    x = x.detach().double().numpy()
    v = (
        x
        if b is None
        else x + b.detach().double().numpy().reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    )
    value, first, second = activation(act, v, alpha)
    y = gain * value
    inside = np.ones_like(y) if clamp is None else (np.abs(y) < clamp) * 1.0
    results = [y if clamp is None else np.clip(y, -clamp, clamp)]
    if g is not None:
        g = g.detach().double().numpy()
        results.append(g * gain * first * inside)
    if h is not None:
        h = h.detach().double().numpy()
        results += [h * gain * first * inside, h * g * gain * second * inside]
    return [torch.from_numpy(np.ascontiguousarray(r)) for r in results]


def ring_positions(h, w):
    """Row and column in a map [h + 2, w + 2] of each value of a compact ring."""
    top, bottom = ([(row, j) for j in range(w + 2)] for row in (0, h + 1))
    left, right = ([(i, column) for i in range(1, h + 1)] for column in (0, w + 1))
    return np.array([*top, *bottom, *left, *right])


def surrounded(z, border):
    """z [N, C, h, w] with the ring of a map's centre, or a compact ring, around it."""
    n, c, h, w = z.shape
    border = border.detach().double().numpy()
    out = np.zeros((n, c, h + 2, w + 2))
    rows, columns = ring_positions(h, w).T
    if border.ndim == 3:
        out[:, :, rows, columns] = border
    else:
        top, left = (border.shape[2] - h - 2) // 2, (border.shape[3] - w - 2) // 2
        out[:, :, rows, columns] = border[:, :, rows + top, columns + left]
    out[:, :, 1:-1, 1:-1] = z
    return out


def padded(z, sides, mode):
    """z [N, C, h, w] with zeros or its reflection on the left, right, top and bottom."""
    left, right, top, bottom = sides
    return np.pad(z, ((0, 0), (0, 0), (top, bottom), (left, right)), "constant" if mode == "zeros" else "reflect")


def spe(h, w, channels, layout="mmgen", div_half_dim=False, center_shift=None):
    """The sinusoidal encoding position by position; center_shift as the released code treats it."""
    d = channels // 2
    n = d // 2

    def vector(p):
        if layout == "paper":
            return [g(p / 10000 ** (2 * k / d)) for k in range(n) for g in (np.sin, np.cos)]
        freq = [10000 ** (-k / (n if div_half_dim else n - 1)) for k in range(n)]
        return [g(p * o) if p else 0.0 for g in (np.sin, np.cos) for o in freq]

    def positions(size):
        if layout == "paper":
            return range(size)
        shift = 0 if center_shift is None else center_shift - size // 2 - size % 2
        seen, result = 0, []
        for p in range(1, size + 1):  # whatever is not the padding index is numbered through
            seen += p + shift != 0
            result.append(seen if p + shift != 0 else 0)
        return result

    rows, columns = np.array([vector(p) for p in positions(h)]), np.array([vector(p) for p in positions(w)])
    rows = np.broadcast_to(rows.T[:, :, None], (d, h, w))
    columns = np.broadcast_to(columns.T[:, None, :], (d, h, w))
    return np.concatenate([rows, columns] if layout == "paper" else [columns, rows])


def csg(h, w, layout="mmgen"):
    i, j = np.mgrid[:h, :w].astype(float)
    if layout == "paper":
        return np.stack([2 * (i / h - 0.5), 2 * (j / w - 0.5)])
    return np.stack([2 * j / max(w - 1, 1) - 1, 2 * i / max(h - 1, 1) - 1])


def modulated_conv2d(
    x, weight, styles, up=1, down=1, padding=0, pad_map=None, f=None, demodulate=True, flip_weight=True, noise=None,
    bias=None, act="linear", alpha=0.2, gain=1.0, clamp=None, eps=1e-8,
):  # fmt: skip
    """The style layer sample by sample, as the definition says it: zero insertion, one filter, full correlations."""
    x, weight, styles = (t.detach().double().numpy() for t in (x, weight, styles))
    f = np.ones((1, 1)) if f is None else f.detach().double().numpy()
    f = np.outer(f, f) if f.ndim == 1 else f
    kernel = weight if flip_weight else weight[:, :, ::-1, ::-1]
    kh, kw = weight.shape[2:]
    (fh, fw), z = f.shape, x * styles[:, :, None, None]
    if pad_map is not None and up == 1:
        z, padding = surrounded(z, pad_map), 0
    grow = [padding] * 4  # left, right, top, bottom
    if up > 1:
        grow = [padding + p for t in (fw, fh) for p in ((t + up - 1) // 2, (t - up) // 2)]
    if down > 1:
        grow = [padding + p for t in (fw, fh) for p in ((t - down + 1) // 2, (t - down) // 2)]
    stuffed = np.zeros((*z.shape[:2], z.shape[2] * up, z.shape[3] * up))
    stuffed[:, :, ::up, ::up] = z
    if pad_map is not None and up > 1:
        # convolved first, without the trailing zeros of the last pixel, on the whole support; then the map, the filter
        stuffed = stuffed[:, :, : stuffed.shape[2] - up + 1, : stuffed.shape[3] - up + 1]
        t = _correlate(np.pad(stuffed, ((0, 0), (0, 0), (kh - 1,) * 2, (kw - 1,) * 2)), kernel)
        t = surrounded(t, pad_map)
        cut = [grow[0] - kw, grow[1] - kw + up - 1, grow[2] - kh, grow[3] - kh + up - 1]
        t = _cropped_or_padded(t, cut)
        y = up * up * _filtered(t, f)
    elif up > 1:
        y = up * up * _correlate(_filtered(_cropped_or_padded(stuffed, grow), f), kernel)
    elif down > 1:
        y = _correlate(_filtered(_cropped_or_padded(stuffed, grow), f), kernel)[:, :, ::down, ::down]
    else:
        y = _correlate(_cropped_or_padded(stuffed, grow), kernel)
    if demodulate:
        per_sample = weight[None] * styles[:, None, :, None, None]  # [N, O, I, kh, kw]
        y = y / np.sqrt((per_sample**2).sum((2, 3, 4)) + eps)[:, :, None, None]
    if noise is not None:
        y = y + noise.detach().double().numpy()
    return bias_act(torch.from_numpy(y), bias, 1, act, alpha, gain, clamp)[0]


def conv2d(
    x, weight, bias=None, scale=None, stride=1, padding=0, padding_mode="zeros", act="linear", alpha=0.2, gain=1.0,
    clamp=None,
):  # fmt: skip
    """A convolution of the padded input, every so many rows and columns of it."""
    x, weight = (t.detach().double().numpy() for t in (x, weight))
    y = _correlate(padded(x, [padding] * 4, padding_mode), weight)[:, :, ::stride, ::stride]
    if scale is not None:
        y = y * (scale.detach().double().numpy()[:, None, None] if isinstance(scale, torch.Tensor) else scale)
    return bias_act(torch.from_numpy(np.ascontiguousarray(y)), bias, 1, act, alpha, gain, clamp)[0]


def _correlate(x, kernel):
    return np.stack(
        [[scipy.signal.correlate(sample, k, mode="valid", method="direct")[0] for k in kernel] for sample in x]
    )


def _filtered(x, f):
    return scipy.signal.convolve(x, f[None, None], mode="valid", method="direct")


def _cropped_or_padded(x, sides):
    left, right, top, bottom = sides
    x = np.pad(x, ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))))
    return x[:, :, max(-top, 0) : x.shape[2] - max(-bottom, 0), max(-left, 0) : x.shape[3] - max(-right, 0)]
