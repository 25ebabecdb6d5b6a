"""The layers of :mod:`posgan_fast.nn` in plain torch, to measure against: the same parameters, torch's layers only.

They are written as the released code writes them: one weight for each sample in a grouped convolution, FIR filters as
depthwise convolutions, batch normalisation and activations as modules of their own.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from posgan_fast import functional as PF
from posgan_fast import nn

_ACTS = {
    "linear": lambda x, alpha: x,
    "lrelu": lambda x, alpha: F.leaky_relu(x, 0.2 if alpha is None else alpha),
    "relu": lambda x, alpha: F.relu(x),
    "tanh": lambda x, alpha: x.tanh(),
}


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Run the networks of this library on plain torch for the time of the block."""
    forwards: dict[type, Any] = {
        nn.ConvNormAct2d: _conv_norm_act,
        nn.PositionalNoise2d: _positional_noise,
        nn.StyleConv: _style_conv,
        nn.ToRGB: _to_rgb,
        nn.EqualConv2d: _equal_conv,
        nn.EqualLinear: _equal_linear,
    }
    with contextlib.ExitStack() as stack:
        for layer, forward in forwards.items():
            stack.enter_context(mock.patch.object(layer, "forward", forward))
        stack.enter_context(mock.patch.object(PF, "upsample2d", _upsample))
        yield


def _conv_norm_act(self: nn.ConvNormAct2d, x: torch.Tensor) -> torch.Tensor:
    if self.padding_mode == "reflect":
        x = F.conv2d(F.pad(x, (self.padding,) * 4, mode="reflect"), self.conv.weight, self.conv.bias)
    else:
        x = self.conv(x)
    return _ACTS[self.act](x if self.bn is None else self.bn(x), self.alpha)


def _positional_noise(self: nn.PositionalNoise2d, noise: torch.Tensor, image=None, weight=1.0) -> torch.Tensor:
    if self.encode is not None:
        noise = noise + _grid(self.encode, *noise.shape[2:], self.channels, self.layout, self.div_half_dim)
    x0, x1, y0, y1 = self.padding
    mode = "reflect" if self.mode == "reflect" else "constant"
    noise = F.pad(noise, (x0, x1, y0, y1), mode=mode)
    x = noise * weight
    return x.expand(-1, self.channels, -1, -1) if image is None else x + F.pad(image, (x0, x1, y0, y1), mode=mode)


@functools.lru_cache(maxsize=64)
def _grid(encode: str, height: int, width: int, channels: int, layout: str, half: bool) -> torch.Tensor:
    if encode == "csg":
        return PF.cartesian_grid2d(height, width, layout=layout)
    return PF.sinusoidal_encoding2d(height, width, channels, layout=layout, div_half_dim=half)


def _modulated(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, demodulate: bool, padding: int) -> Any:
    n, i, h, w = x.shape
    o, k = weight.shape[0], weight.shape[2]
    each = weight[None] * styles[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        each = each * (each.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    y = F.conv2d(x.reshape(1, n * i, h, w), each.reshape(n * o, i, k, k), padding=padding, groups=n)
    return y.reshape(n, o, *y.shape[2:])


def _style_conv(self: nn.StyleConv, x, w, *, pad_map=None, noise_mode=None, noise=None, gain=1.0) -> torch.Tensor:
    noise = self._noise(x, noise_mode, noise)
    styles = self.affine(w)
    if self.up_after_conv is False:
        x = self._interpolate(x)
    x = _modulated(x, self.weight, styles, True, self.padding)
    if self.up_after_conv:
        x = self._interpolate(x)
    if noise is not None:
        x = x + noise
    return F.leaky_relu(x + self.bias[:, None, None], 0.2) * (math.sqrt(2) * gain)


def _to_rgb(self: nn.ToRGB, x: torch.Tensor, w: torch.Tensor, skip=None) -> torch.Tensor:
    y = _modulated(x, self.weight, self.affine(w) * self.style_gain, False, 0)
    return y + self.bias[:, None, None]


def _equal_conv(self: nn.EqualConv2d, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    weight, padding = self.weight * self.weight_gain, self.padding
    if self.down > 1 and self.resample_filter is not None:
        taps, k = self.resample_filter.shape[0], weight.shape[2]
        more = taps - self.down + k - 1
        x, padding = _fir(x, self.resample_filter, (more + 1) // 2, more // 2), 0
    x = F.conv2d(x, weight, stride=self.down, padding=padding)
    if self.bias is not None:
        x = x + self.bias[:, None, None]
    return (F.leaky_relu(x, 0.2) * math.sqrt(2) if self.act == "lrelu" else x) * gain


def _equal_linear(self: nn.EqualLinear, x: torch.Tensor) -> torch.Tensor:
    bias = None if self.bias is None else self.bias * self.lr_multiplier
    x = F.linear(x, self.weight * self.weight_gain, bias)
    return F.leaky_relu(x, 0.2) * math.sqrt(2) if self.act == "lrelu" else x


def _fir(x: torch.Tensor, f: torch.Tensor, before: int, after: int) -> torch.Tensor:
    kernel = f.flip(0, 1)[None, None].expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (before, after) * 2), kernel, groups=x.shape[1])


def _upsample(x: torch.Tensor, f: torch.Tensor, up: int = 2) -> torch.Tensor:
    n, c, h, w = x.shape
    stuffed = x.new_zeros(n, c, h, up, w, up)
    stuffed[:, :, :, 0, :, 0] = x
    taps = f.shape[0]
    return _fir(stuffed.reshape(n, c, h * up, w * up), f * up**2, (taps + up - 1) // 2, (taps - up) // 2)
