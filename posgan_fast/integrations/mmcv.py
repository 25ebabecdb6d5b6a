"""The table of mmcv, whose ops mmgeneration uses: 1.x follows rosinality, 2.x follows NVlabs with names of its own.

Two kinds of module match other tables: ``upfirdn2d`` of mmcv 1.x has rosinality's signature, ``conv2d_gradfix`` (mmcv
2.x and mmgeneration) has NVlabs'. ``filter2d``, ``upsample2d`` and ``downsample2d`` need no row: they call
``upfirdn2d`` by its global name, which is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from .. import functional
from ..ops.bias_act import ACTIVATIONS
from . import shared
from .calls import supports, transformed
from .engine import Replacement, Target
from .reports import Report


def _fused_bias_leakyrelu(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.fused_bias_leakyrelu
    plain = getattr(module, "bias_leakyrelu_ref", shared.plain_leaky_relu)

    def fused_bias_leakyrelu(input, bias, negative_slope=0.2, scale=2**0.5):
        if transformed():
            return plain(input, bias, negative_slope, scale)
        if not supports(input, bias) or not shared.is_channel_bias(input, bias):
            return theirs(input, bias, negative_slope, scale)
        if input.device.type == "cpu":
            input, bias = shared.promote(input, bias)
        elif bias is not None:
            bias = bias.to(input.dtype)
        return functional.bias_act(input, bias, 1, "lrelu", float(negative_slope), float(scale))

    return {"fused_bias_leakyrelu": Replacement(fused_bias_leakyrelu, "posgan_fast.functional.bias_act")}


def _upfirdn2d(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.upfirdn2d

    def upfirdn2d(input, filter, up=1, down=1, padding=0, flip_filter=False, gain=1, use_custom_op=True):
        if not use_custom_op or not supports(input, filter) or (filter is not None and filter.requires_grad):
            custom = use_custom_op and not transformed()
            return theirs(input, filter, up, down, padding, flip_filter, gain, custom)
        return functional.upfirdn2d(input, filter, up, down, padding, bool(flip_filter), float(gain))

    return {"upfirdn2d": Replacement(upfirdn2d, "posgan_fast.functional.upfirdn2d")}


def _bias_act(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.bias_act
    table = getattr(module, "activation_funcs", {})

    def bias_act(input, bias=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, use_custom_op=True):
        if not use_custom_op or act not in ACTIVATIONS or not supports(input, bias):
            custom = use_custom_op and not transformed()
            return theirs(input, bias, dim, act, alpha, gain, clamp, custom)
        return shared.bias_act(table, input, bias, dim, act, alpha, gain, clamp)

    return {"bias_act": Replacement(bias_act, "posgan_fast.functional.bias_act")}


_UPFIRDN2D = ("input", "filter", "up", "down", "padding", "flip_filter", "gain", "use_custom_op")
_BIAS_ACT = ("input", "bias", "dim", "act", "alpha", "gain", "clamp", "use_custom_op")

TARGETS = (
    Target(
        "mmcv",
        "fused_bias_leakyrelu",
        {"fused_bias_leakyrelu": ("input", "bias", "negative_slope", "scale")},
        _fused_bias_leakyrelu,
    ),
    Target("mmcv", "upfirdn2d", {"upfirdn2d": _UPFIRDN2D}, _upfirdn2d),
    Target("mmcv", "bias_act", {"bias_act": _BIAS_ACT}, _bias_act),
)
