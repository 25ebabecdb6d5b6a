"""The style layer and toRGB of five families of StyleGAN2, each from its definition and in its own names, in float64.

Sample by sample on plain torch, nothing of posgan_fast. ``n`` numbers the style layers, 0 at 4 pixels, odd ones
enlarge; ``b`` the blocks. States hold float64. ``eps`` is where the family has it, under the root of the sum over its
weight: families that multiply the weight by c = 1 / sqrt(I * k * k) first have a sum smaller by c^2.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]
EPS = 1e-8


# NVlabs: raw weights, gains in the calls, clamps


def nvlabs_layer(state: State, n: int, x, w, *, eps: float = EPS, gain: float = 1.0, clamp: float | None = None):
    layer = _under(state, f"synthesis.b{_side(n)}.conv{1 - n % 2}")
    weight = layer["weight"]  # [O, I, k, k]
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["affine.weight"] @ latent / sqrt(len(latent)) + layer["affine.bias"]  # [I]
        d = 1 / torch.sqrt((weight * s[:, None, None]).square().sum((1, 2, 3)) + eps)  # [O]
        z = features * s[:, None, None]
        if n % 2:
            y = 4 * _convolved(_transposed(z, weight), layer["resample_filter"], (1, 1))
        else:
            y = F.conv2d(z, weight, padding=1)
        y = y * d[:, None, None] + layer["noise_const"] * layer["noise_strength"] + layer["bias"][:, None, None]
        results.append(_clamped(_leaky(y) * gain, None if clamp is None else clamp * gain))
    return torch.stack(results)


def nvlabs_rgb(state: State, b: int, x, w, skip=None, *, clamp: float | None = None):
    block = f"synthesis.b{4 * 2**b}"
    layer = _under(state, f"{block}.torgb")
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["affine.weight"] @ latent / sqrt(len(latent)) + layer["affine.bias"]
        y = F.conv2d(features * (s / sqrt(len(s)))[:, None, None], layer["weight"])
        results.append(_clamped(y + layer["bias"][:, None, None], clamp))
    y = torch.stack(results)
    return y if skip is None else y + 4 * _convolved(_stuffed(skip), state[f"{block}.resample_filter"], (2, 1))


# rosinality: scaled weights of rank 5, kernels of sum 4, no clamp


def rosinality_layer(state: State, n: int, x, w, *, eps: float = EPS):
    layer = _under(state, f"convs.{n - 1}" if n else "conv1")
    raw = layer["conv.weight"][0]  # [O, I, k, k]
    weight = raw / sqrt(raw[0].numel())
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["conv.modulation.weight"] @ latent / sqrt(len(latent)) + layer["conv.modulation.bias"]
        mine = weight * s[None, :, None, None]
        mine = mine / torch.sqrt(mine.square().sum((1, 2, 3), keepdim=True) + eps)
        if n % 2:
            y = _convolved(_transposed(features, mine), layer["conv.blur.kernel"], (1, 1))
        else:
            y = F.conv2d(features, mine, padding=1)
        y = y + layer["noise.weight"] * state[f"noises.noise_{n}"][0]
        results.append(_leaky(y + layer["activate.bias"][:, None, None]))
    return torch.stack(results)


def rosinality_rgb(state: State, b: int, x, w, skip=None):
    layer = _under(state, f"to_rgbs.{b - 1}" if b else "to_rgb1")
    raw = layer["conv.weight"][0]  # [3, I, 1, 1]
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["conv.modulation.weight"] @ latent / sqrt(len(latent)) + layer["conv.modulation.bias"]
        results.append(F.conv2d(features, raw / sqrt(raw[0].numel()) * s[None, :, None, None]) + layer["bias"][0])
    y = torch.stack(results)
    return y if skip is None else y + _convolved(_stuffed(skip), layer["upsample.kernel"], (2, 1))


# mmgeneration: as rosinality, the scale in a hook on ``weight_orig``


def mmgeneration_layer(state: State, n: int, x, w, *, eps: float = EPS):
    layer = _under(state, f"convs.{n - 1}" if n else "conv1")
    orig = layer["conv.weight_orig"]  # [1, O, I, k, k]
    weight = orig * sqrt(1 / orig[0, 0].numel())
    linear = layer["conv.style_modulation.linear.weight_orig"]
    styles = w @ (linear * sqrt(1 / linear.shape[1])).t() + layer["conv.style_modulation.bias"]  # [N, I]
    results = []
    for features, s in zip(x, styles, strict=True):
        mine = weight[0] * s[None, :, None, None]
        mine = mine * (mine.square().sum((1, 2, 3), keepdim=True) + eps).rsqrt()
        if n % 2:
            y = _convolved(_transposed(features, mine), layer["conv.blur.kernel"], (1, 1))
        else:
            y = F.conv2d(features, mine, padding=1)
        y = y + layer["noise_injector.weight"] * state[f"injected_noise_{n}"][0]
        results.append(_leaky(y + layer["activate.bias"][:, None, None]))
    return torch.stack(results)


def mmgeneration_rgb(state: State, b: int, x, w, skip=None):
    layer = _under(state, f"to_rgbs.{b - 1}" if b else "to_rgb1")
    orig, linear = layer["conv.weight_orig"], layer["conv.style_modulation.linear.weight_orig"]
    styles = w @ (linear * sqrt(1 / linear.shape[1])).t() + layer["conv.style_modulation.bias"]
    weight = orig[0] * sqrt(1 / orig[0, 0].numel())
    y = torch.stack([F.conv2d(one, weight * s[None, :, None, None]) for one, s in zip(x, styles, strict=True)])
    y = y + layer["bias"]
    return y if skip is None else y + _convolved(_stuffed(skip), layer["upsample.kernel"], (2, 1))


# Hammer, the base of PadInv: raw weights, gains in the calls, clamps


def hammer_layer(state: State, n: int, x, w, *, eps: float = EPS, gain: float = 1.0, clamp: float | None = None):
    layer = _under(state, f"synthesis.layer{n}")
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["style.weight"] @ latent / sqrt(len(latent)) + layer["style.bias"]
        z, weight, fir = features * s[:, None, None], layer["weight"], layer.get("filter")
        y = F.conv2d(z, weight, padding=1) if fir is None else 4 * _convolved(_transposed(z, weight), fir, (1, 1))
        d = ((weight * s[:, None, None]) ** 2).sum((1, 2, 3)).add(eps).rsqrt()
        y = y * d[:, None, None] + layer["noise"][0] * layer["noise_strength"] + layer["bias"][:, None, None]
        results.append(_clamped(_leaky(y) * gain, None if clamp is None else clamp * gain))
    return torch.stack(results)


def hammer_rgb(state: State, b: int, x, w, skip=None, *, clamp: float | None = None):
    layer = _under(state, f"synthesis.output{b}")
    weight = layer["weight"]  # [3, I, 1, 1]
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["style.weight"] @ latent / sqrt(len(latent)) + layer["style.bias"]
        y = F.conv2d(features * (s / sqrt(weight[0].numel()))[:, None, None], weight)
        results.append(_clamped(y + layer["bias"][:, None, None], clamp))
    y = torch.stack(results)
    return y if skip is None else y + 4 * _convolved(_stuffed(skip), state["synthesis.filter"], (2, 1))


# genforce: scaled weights, mirrored ones where it enlarges, styles without their one, filters correlate, sum 4


def genforce_layer(state: State, n: int, x, w, *, eps: float = EPS):
    layer = _under(state, f"synthesis.layer{n}")
    weight = layer["weight"] / sqrt(layer["weight"][0].numel())
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["style.weight"] @ latent / sqrt(len(latent)) + layer["style.bias"] + 1.0
        mine = weight * s[None, :, None, None]
        mine = mine / torch.sqrt(mine.square().sum((1, 2, 3), keepdim=True) + eps)
        if n % 2:
            y = _correlated(_transposed(features, mine.flip(2, 3)), layer["filter.kernel"][0, 0], (1, 1))
        else:
            y = F.conv2d(features, mine, padding=1)
        y = y + layer["noise"][0] * layer["noise_strength"]
        results.append(_leaky(y + layer["bias"][:, None, None]))
    return torch.stack(results)


def genforce_rgb(state: State, b: int, x, w, skip=None):
    layer = _under(state, f"synthesis.output{b}")
    weight = layer["weight"] / sqrt(layer["weight"][0].numel())
    results = []
    for features, latent in zip(x, w, strict=True):
        s = layer["style.weight"] @ latent / sqrt(len(latent)) + layer["style.bias"] + 1.0
        results.append(F.conv2d(features, weight * s[None, :, None, None]) + layer["bias"][:, None, None])
    y = torch.stack(results)
    return y if skip is None else y + _correlated(_stuffed(skip), state["synthesis.upsample.kernel"][0, 0], (2, 1))


class Family(NamedTuple):
    layer: Callable[..., torch.Tensor]
    rgb: Callable[..., torch.Tensor]
    constant: str
    scaled: bool = False  # c is part of the weight that is demodulated
    clamps: bool = False


FAMILIES = {
    "nvlabs": Family(nvlabs_layer, nvlabs_rgb, "synthesis.b4.const", clamps=True),
    "rosinality": Family(rosinality_layer, rosinality_rgb, "input.input", scaled=True),
    "mmgeneration": Family(mmgeneration_layer, mmgeneration_rgb, "constant_input.input", scaled=True),
    "hammer": Family(hammer_layer, hammer_rgb, "synthesis.early_layer.const", clamps=True),
    "genforce": Family(genforce_layer, genforce_rgb, "synthesis.early_layer.const", scaled=True),
}


def image(family: str, state: State, ws: torch.Tensor) -> torch.Tensor:
    """The whole network on latents [N, layers + 1, W]: toRGB shares its latent with the next layer."""
    layer, rgb, constant = FAMILIES[family][:3]
    x = state[constant].reshape(-1, 4, 4).expand(len(ws), -1, -1, -1)
    x = layer(state, 0, x, ws[:, 0])
    y = rgb(state, 0, x, ws[:, 1])
    for b in range(1, ws.shape[1] // 2):
        x = layer(state, 2 * b - 1, x, ws[:, 2 * b - 1])
        x = layer(state, 2 * b, x, ws[:, 2 * b])
        y = rgb(state, b, x, ws[:, 2 * b + 1], y)
    return y


def _under(state: State, prefix: str) -> State:
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _side(n: int) -> int:
    return 4 * 2 ** ((n + 1) // 2)


def _transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # [I, H, W], [O, I, 3, 3] => [O, 2H+1, 2W+1]
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)


def _stuffed(x: torch.Tensor) -> torch.Tensor:
    """Every pixel followed by a zero."""
    y = x.new_zeros(*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1])
    y[..., ::2, ::2] = x
    return y


def _correlated(x: torch.Tensor, taps: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Each channel with the filter; ``padding`` is before and after, on both axes."""
    x = F.pad(x, padding * 2)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return F.conv2d(flat, taps[None, None]).reshape(*x.shape[:-2], x.shape[-2] - 3, x.shape[-1] - 3)


def _convolved(x: torch.Tensor, taps: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    return _correlated(x, taps.flip(0, 1), padding)


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.2 * x) * sqrt(2)


def _clamped(x: torch.Tensor, bound: float | None) -> torch.Tensor:
    return x if bound is None else x.clamp(-bound, bound)
