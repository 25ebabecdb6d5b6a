"""Convolutions of other projects that have no style."""

from __future__ import annotations

import math
from typing import Any

import torch

from .foreign import (
    BLUR,
    FUSED,
    Converted,
    Pattern,
    check_gain,
    check_lrelu,
    copied,
    equalised,
    expect,
    half_clamp,
    padding_of,
    recognise,
    unless_filtered,
)


def _conv(weight, bias, scale, *, bias_scale=1.0, **arguments) -> Converted:
    o, i, k, _ = weight.shape
    state = {"weight": copied(weight, scale * math.sqrt(i * k * k))}
    if bias is not None:
        state["bias"] = copied(bias, bias_scale)
    return Converted(dict(in_channels=i, out_channels=o, kernel_size=k, bias=bias is not None, **arguments), state)


def _rosinality_conv(module: Any) -> Converted:
    stride, padding = _one(module.stride, "stride"), _one(module.padding, "padding")
    settings = dict(stride=stride, padding=padding, resample_filter=None)
    return _conv(module.weight, module.bias, module.scale, **settings)


def _mmgeneration_conv(module: Any) -> Converted:
    conv = module.conv
    expect(module, "with_activation", False, getattr(module, "with_activation", False))
    expect(conv, "groups", 1, conv.groups)
    expect(conv, "dilation", 1, _one(conv.dilation, "dilation"))
    expect(conv, "padding_mode", "zeros", conv.padding_mode)
    stride, padding = _one(conv.stride, "stride"), _one(conv.padding, "padding")
    settings = dict(stride=stride, padding=padding, resample_filter=None)
    return _conv(conv.weight_orig, conv.bias, equalised(conv), **settings)


def _one(value: Any, name: str) -> int:
    """Return the number that ``value`` has for both axes."""
    numbers = set(value) if isinstance(value, (tuple, list)) else {value}
    if len(numbers) != 1 or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"module: expected one {name} for both axes, got {value!r}")
    return numbers.pop()


def _nvlabs_conv(module: Any) -> Converted:
    check_gain(module, module.activation)
    found = _conv(
        module.weight, module.bias, module.weight_gain, up=module.up, down=module.down, padding=module.padding,
        act=module.activation, clamp=module.conv_clamp,
    )  # fmt: skip
    return Converted(found.arguments, found.state | {"resample_filter": copied(module.resample_filter)})


def _hammer_conv(module: Any) -> Converted | None:
    """Read ConvLayer, whose padding tells whether it downsamples (discriminator) or upsamples (generator)."""
    factor, k, up, down = module.scale_factor, module.kernel_size, 1, 1
    resamples = factor > 1
    if resamples:
        taps = module.filter.shape[-1]
        upsamples = module.filter_padding[0] == k // 2 + (taps + factor - 1) // 2
        up, down = (factor, 1) if upsamples else (1, factor)
    check_gain(module, module.activation_type)
    found = _conv(
        module.weight, module.bias, module.wscale, bias_scale=getattr(module, "bscale", 1.0), up=up, down=down,
        act=module.activation_type, clamp=module.conv_clamp,
    )  # fmt: skip
    state = found.state | ({"resample_filter": copied(module.filter)} if resamples else {})
    return Converted(found.arguments | unless_filtered(state), state)


_CONVS = (
    Pattern("rosinality's EqualConv2d", "weight:4 bias?", "scale stride padding", _rosinality_conv),
    Pattern("NVlabs' Conv2dLayer", "weight:4 bias? resample_filter", "up down weight_gain conv_clamp", _nvlabs_conv),
    Pattern("mmgeneration's EqualizedLRConvModule", "conv.weight_orig:4 conv.bias?", "conv.stride", _mmgeneration_conv),
    Pattern("Hammer's ConvLayer", "weight:4 bias? filter?", "wscale scale_factor conv_clamp", _hammer_conv),
)
_IN_SEQUENCE = (_CONVS[0], _CONVS[2])  # rosinality's and mmgeneration's


class _ConvLayer(Pattern):
    """A sequence of an optional blur, a convolution and an optional activation."""

    def matches(self, module: torch.nn.Module) -> bool:
        return isinstance(module, torch.nn.Sequential)


def _conv_layer(module: Any) -> Converted | None:
    parts = list(module)
    blur = parts.pop(0) if parts and BLUR.matches(parts[0]) else None
    activate = parts.pop() if len(parts) == 2 and FUSED.matches(parts[1]) else None
    if len(parts) != 1 or not any(pattern.matches(parts[0]) for pattern in _IN_SEQUENCE):
        return None
    conv = parts[0]
    arguments, state = recognise(conv, _IN_SEQUENCE, "its convolution")
    arguments["clamp"] = half_clamp(module)
    if activate is not None:
        if activate.bias is not None and "bias" in state:
            return None
        check_lrelu(activate, activate.negative_slope, activate.scale)
        arguments["act"] = "lrelu"
        if activate.bias is not None:
            arguments["bias"] = True
            state["bias"] = copied(activate.bias, shape=(activate.bias.numel(),))
    if blur is not None:
        expect(conv, "padding", 0, arguments["padding"])
        down = arguments["stride"]
        if down == 1:
            raise ValueError("module: expected a stride of 2 or more behind a filter, got 1")
        padding = padding_of(blur, arguments["kernel_size"], 1, down)
        arguments |= dict(stride=1, down=down, padding=padding)
        state["resample_filter"] = copied(blur.kernel)
    return Converted(arguments, state)


EQUAL_CONV2D = (*_CONVS, _ConvLayer("ConvLayer of rosinality or mmgeneration", "", "", _conv_layer))
