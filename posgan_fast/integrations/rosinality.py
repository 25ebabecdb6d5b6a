"""rosinality/stylegan2-pytorch and its forks (``op`` packages), and the PyPI packages stylegan2-torch and
torch-conv-gradfix.

Differences from NVlabs: a padding of two numbers is (before, after) on both axes, the filter is rank 2 and holds the
gain, the convolution is never flipped. Results are contiguous where the modules' own are: callers use ``view``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType

from .. import functional
from . import gradfix, plugins
from .engine import MORE, PluginRequest, Replacement, Report, Target
from .shared import CONV2D, CONV2D_GRADFIX, CONV_TRANSPOSE2D, convolutions, promoted, takes


def _upfirdn2d(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.upfirdn2d

    def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
        if not takes(input) or kernel.requires_grad:  # on CPU theirs has a gradient for the kernel
            return theirs(input, kernel, up, down, pad)
        pad = (*pad, *pad) if len(pad) == 2 else tuple(pad)
        return functional.upfirdn2d(input.contiguous(), kernel, _both(up), _both(down), pad)

    return {"upfirdn2d": Replacement(upfirdn2d, "posgan_fast.functional.upfirdn2d")}


def _fused_act(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.fused_leaky_relu
    # On CPU rosinality writes 0.2 where the argument belongs. A model trained or checked there with another slope keeps
    # its results; forks that mended it, or have no CPU path, have no such constant.
    constants = getattr(getattr(theirs, "__code__", None), "co_consts", ())
    cpu_slope = 0.2 if "cpu" in constants and 0.2 in constants else None

    def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
        fits = bias is None or (takes(bias) and input.ndim > 1 and bias.shape == input.shape[1:2])
        if not takes(input) or not fits:
            return theirs(input, bias, negative_slope, scale)
        on_cpu = input.device.type == "cpu"
        slope = cpu_slope if on_cpu and cpu_slope is not None else float(negative_slope)
        input, bias = promoted(input if on_cpu else input.contiguous(), bias)
        return functional.bias_act(input, bias, 1, "lrelu", slope, float(scale))

    return {"fused_leaky_relu": Replacement(fused_leaky_relu, "posgan_fast.functional.bias_act")}


def _conv_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """torch-conv-gradfix keeps functions and flags on a class, and the last two arguments the other way round."""
    holder = module.ConvGradFix
    conv2d, transposed = gradfix.convolutions(lambda: holder.enabled.enabled, lambda: holder._no_weight_grad)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
        return transposed(input, weight, bias, stride, padding, output_padding, groups, dilation)

    return convolutions(conv2d, conv_transpose2d, "ConvGradFix.")


def _cpp_extension(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.load

    def load(name, sources, *args, **kwargs):
        plugin = plugins.answer(name, sources)
        report.add(PluginRequest(name, "torch.utils.cpp_extension.load", plugin is not None))
        return theirs(name, sources, *args, **kwargs) if plugin is None else plugin

    return {"load": Replacement(load, "posgan_fast.integrations.plugins.answer")}


def _both(factor: int | Iterable[int]) -> int | tuple[int, ...]:
    return tuple(factor) if isinstance(factor, Iterable) else factor


_SWAPPED = (*CONV_TRANSPOSE2D[:-2], "dilation", "groups")

TARGETS = (
    Target("rosinality", "upfirdn2d", {"upfirdn2d": ("input", "kernel", "up", "down", "pad")}, _upfirdn2d),
    Target(
        "rosinality",
        "fused_act",
        {"fused_leaky_relu": ("input", "bias", "negative_slope", "scale")},
        _fused_act,
    ),
    Target("rosinality", "op.conv2d_gradfix", **CONV2D_GRADFIX),
    Target(
        "rosinality",
        "conv_gradfix",
        {"ConvGradFix.conv2d": CONV2D, "ConvGradFix.conv_transpose2d": _SWAPPED},
        _conv_gradfix,
        ("ConvGradFix.enabled.enabled", "ConvGradFix._no_weight_grad"),
    ),
    Target("rosinality", "torch.utils.cpp_extension", {"load": ("name", "sources", MORE)}, _cpp_extension),
)
