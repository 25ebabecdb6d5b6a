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
