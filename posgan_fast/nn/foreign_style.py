"""Modulated convolutions, style layers and ToRGB of other projects."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .foreign import (
    UPSAMPLE,
    Converted,
    Pattern,
    affine,
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


class _Modulated(NamedTuple):
    arguments: dict[str, Any]  # shared by ModulatedConv2d and StyleConv
    state: dict[str, torch.Tensor]
    up: int
    down: int
    demodulate: bool
    interpolated: dict[str, Any]


def _modulated(conv: Any) -> _Modulated:
    """Read ModulatedConv2d of rosinality or mmgeneration."""
    orig = hasattr(conv, "style_modulation")
    weight, scale = (conv.weight_orig, equalised(conv)) if orig else (conv.weight, conv.scale)
    state = affine(conv.style_modulation, conv.style_bias) if orig else affine(conv.modulation)
    shape, eps = weight.shape[1:], conv.eps if orig else 1e-8
    interpolates = conv.upsample and getattr(conv, "deconv2conv", False)
    up, down, k = 2 if conv.upsample else 1, 2 if conv.downsample else 1, shape[2]
    interpolated, padding = {}, int(conv.padding)
    if interpolates:
        interpolated, up = _interpolation(conv), int(conv.up_config["scale_factor"])
    elif up * down > 1:
        padding = padding_of(conv.blur, k, up, down)
        state["resample_filter"] = copied(conv.blur.kernel / up**2)
    times = 1.0 if conv.demodulate else scale * math.sqrt(math.prod(shape[1:]))
    state["weight"] = copied(weight, times, shape)
    arguments = dict(
        in_channels=shape[1],
        out_channels=shape[0],
        kernel_size=k,
        w_dim=state["affine.weight"].shape[1],
        padding=padding,
        eps=eps / scale**2,  # they add eps to sums of scaled weights
    )
    return _Modulated(arguments | unless_filtered(state), state, up, down, conv.demodulate, interpolated)


def _interpolation(conv: Any) -> dict[str, Any]:
    given = {name: value for name, value in conv.up_config.items() if name != "scale_factor"}
    expect(conv, "up_config", {"mode": "bilinear", "align_corners": True}, given)
    return dict(up_after_conv=bool(conv.up_after_conv), interp_pad=int(conv.interp_pad or 0))


def _modulated_conv2d(conv: Any) -> Converted:
    found = _modulated(conv)
    if found.interpolated:
        raise ValueError("module: expected deconv2conv False of a layer that enlarges, got True")
    return Converted(found.arguments | dict(up=found.up, down=found.down, demodulate=found.demodulate), found.state)


def _style_conv(module: Any) -> Converted:
    """Read StyledConv of rosinality or mmgeneration."""
    found = _modulated(module.conv)
    expect(module.conv, "demodulate", True, found.demodulate)
    expect(module.conv, "downsample", False, found.down > 1)
    check_lrelu(module.activate, module.activate.negative_slope, module.activate.scale)
    noise = module.noise_injector if hasattr(module, "noise_injector") else module.noise
    bias = module.activate.bias
    arguments = dict(resolution=None, up=found.up, noise_mode="random", clamp=half_clamp(module), **found.interpolated)
    state = {"bias": copied(bias, shape=(bias.numel(),)), "noise_strength": copied(noise.weight, shape=())}
    return Converted(found.arguments | arguments, found.state | state)


def _to_rgb(module: Any) -> Converted:
    """Read ToRGB of rosinality or mmgeneration."""
    conv, found = module.conv, _modulated(module.conv)
    expect(conv, "demodulate", False, found.demodulate)
    expect(conv, "resampling", (1, 1), (found.up, found.down))
    expect(conv, "padding", found.arguments["kernel_size"] // 2, found.arguments["padding"])
    arguments = {name: found.arguments[name] for name in ("in_channels", "out_channels", "w_dim", "kernel_size")}
    state = found.state | {"bias": copied(module.bias, shape=(module.bias.numel(),))}
    if hasattr(module, "upsample"):
        upsample = recognise(module.upsample, (UPSAMPLE,), "the filter of the skip image")
        expect(module.upsample, "factor", 2, upsample.arguments["factor"])
        state["resample_filter"] = copied(module.upsample.kernel / 4)
    return Converted(arguments | dict(clamp=half_clamp(module)) | unless_filtered(state), state)


def _nvlabs_arguments(module: Any) -> dict[str, Any]:
    o, i, k, _ = module.weight.shape
    return dict(in_channels=i, out_channels=o, kernel_size=k, clamp=module.conv_clamp)


def _nvlabs_style_conv(module: Any) -> Converted:
    check_gain(module, module.activation)
    state = {**affine(module.affine), "weight": copied(module.weight), "bias": copied(module.bias)}
    state["resample_filter"] = copied(module.resample_filter)
    if module.use_noise:
        state |= {name: copied(getattr(module, name)) for name in ("noise_const", "noise_strength")}
    arguments = dict(
        w_dim=state["affine.weight"].shape[1],
        resolution=tuple(module.noise_const.shape) if module.use_noise else None,
        up=module.up,
        padding=module.padding,
        use_noise=bool(module.use_noise),
        noise_mode="random",
        act=module.activation,
    )
    return Converted(_nvlabs_arguments(module) | arguments, state)


def _nvlabs_to_rgb(module: Any) -> Converted:
    state = {**affine(module.affine), "bias": copied(module.bias)}
    gain = module.weight_gain * math.sqrt(math.prod(module.weight.shape[1:]))
    state["weight"] = copied(module.weight, gain)
    arguments = dict(w_dim=state["affine.weight"].shape[1], resample_filter=None)
    return Converted(_nvlabs_arguments(module) | arguments, state)


def _hammer(module: Any) -> Converted:
    """Read the part that style layers and ToRGB share: Hammer has one class for both."""
    expect(module, "space_of_latent", "W", module.space_of_latent.upper())
    times = 1.0 if module.demodulate else module.wscale * math.sqrt(math.prod(module.weight.shape[1:]))
    state = {**affine(module.style), "weight": copied(module.weight, times), "bias": copied(module.bias, module.bscale)}
    check_gain(module, module.activation_type)
    return Converted(_nvlabs_arguments(module) | dict(w_dim=state["affine.weight"].shape[1]), state)


def _hammer_style_conv(module: Any) -> Converted | None:
    if not module.demodulate:
        return None
    arguments, state = _hammer(module)
    noisy = module.noise_type != "none"
    if noisy:
        expect(module, "noise_type", "spatial", module.noise_type)
        size = tuple(module.noise.shape[2:])
        state |= {"noise_const": copied(module.noise, shape=size), "noise_strength": copied(module.noise_strength)}
    if module.scale_factor > 1:
        state["resample_filter"] = copied(module.filter)
    arguments |= dict(
        resolution=size if noisy else None,
        up=module.scale_factor,
        use_noise=noisy,
        noise_mode="const",
        act=module.activation_type,
        eps=module.eps,
    )
    return Converted(arguments | unless_filtered(state), state)


def _hammer_to_rgb(module: Any) -> Converted | None:
    if module.demodulate or module.scale_factor != 1 or module.noise_type != "none":
        return None
    expect(module, "activation_type", "linear", module.activation_type)
    arguments, state = _hammer(module)
    return Converted(arguments | unless_filtered(state), state)


_ROSINALITY_CONV = "weight:5 modulation.weight modulation.bias"
_MMGENERATION_CONV = "weight_orig:5 style_modulation.linear.weight_orig style_modulation.bias"
_SETTINGS = "upsample downsample demodulate padding"


def _below(prefix: str, names: str) -> str:
    return " ".join(f"{prefix}.{name}" for name in names.split())


MODULATED_CONV2D = (
    Pattern(
        "rosinality's ModulatedConv2d", f"{_ROSINALITY_CONV} blur.kernel?", f"{_SETTINGS} scale", _modulated_conv2d
    ),
    Pattern(
        "mmgeneration's ModulatedConv2d", f"{_MMGENERATION_CONV} blur.kernel?", f"{_SETTINGS} style_bias eps",
        _modulated_conv2d,
    ),
)  # fmt: skip
_HAMMERS = "scale_factor demodulate wscale noise_type activation_type conv_clamp space_of_latent bscale"
STYLE_CONV = (
    Pattern(
        "rosinality's StyledConv", f"{_below('conv', MODULATED_CONV2D[0].tensors)} noise.weight activate.bias",
        f"{_below('conv', MODULATED_CONV2D[0].attributes)} activate.negative_slope activate.scale", _style_conv,
    ),
    Pattern(
        "mmgeneration's ModulatedStyleConv or ModulatedPEStyleConv",
        f"{_below('conv', MODULATED_CONV2D[1].tensors)} noise_injector.weight activate.bias",
        f"{_below('conv', MODULATED_CONV2D[1].attributes)} activate.negative_slope activate.scale", _style_conv,
    ),
    Pattern(
        "NVlabs' SynthesisLayer",
        "weight:4 bias affine.weight affine.bias resample_filter noise_const? noise_strength?",
        "up padding use_noise activation act_gain conv_clamp", _nvlabs_style_conv,
    ),
    Pattern(
        "Hammer's ModulateConvLayer with demodulation",
        "weight:4 bias style.weight style.bias noise? noise_strength? filter?", f"{_HAMMERS} eps", _hammer_style_conv,
    ),
)  # fmt: skip
TO_RGB = (
    Pattern(
        "rosinality's ToRGB", f"{_below('conv', _ROSINALITY_CONV)} bias upsample.kernel?",
        _below("conv", MODULATED_CONV2D[0].attributes), _to_rgb,
    ),
    Pattern(
        "mmgeneration's ModulatedToRGB", f"{_below('conv', _MMGENERATION_CONV)} bias upsample.kernel?",
        _below("conv", MODULATED_CONV2D[1].attributes), _to_rgb,
    ),
    Pattern("NVlabs' ToRGBLayer", "weight:4 bias affine.weight affine.bias", "weight_gain conv_clamp", _nvlabs_to_rgb),
    Pattern(
        "Hammer's ModulateConvLayer without demodulation", "weight:4 bias style.weight style.bias", _HAMMERS,
        _hammer_to_rgb,
    ),
)  # fmt: skip
