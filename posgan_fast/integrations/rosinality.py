"""The table of rosinality/stylegan2-pytorch, its forks (``op`` packages), stylegan2-torch and torch-conv-gradfix.

Differences from NVlabs: two numbers of padding are (before, after) on both axes, the filter has two axes and contains
the gain, and the filter is never flipped. Results are contiguous wherever those of the modules are, since callers use
``view``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from .. import functional
from . import gradfix, plugins
from .calls import supports, transformed
from .engine import MORE, Replacement, Target
from .reports import PluginRequest, Report
from .shared import (
    CONV2D,
    CONV2D_GRADFIX,
    CONV_TRANSPOSE2D,
    GRID_SAMPLE,
    convolution_replacements,
    is_channel_bias,
    plain_leaky_relu,
    promote,
)


def _upfirdn2d(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _upfirdn2d_serving(module.upfirdn2d)

    def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
        return serve(input, kernel, up, down, pad)

    return _upfirdn2d_replacement(upfirdn2d)


def _upfirdn2d_inputs(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _upfirdn2d_serving(module.upfirdn2d)

    def upfirdn2d(inputs, kernel, up=1, down=1, pad=(0, 0)):
        return serve(inputs, kernel, up, down, pad)

    return _upfirdn2d_replacement(upfirdn2d)


def _upfirdn2d_device(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _upfirdn2d_serving(module.upfirdn2d)

    def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0), device="cpu"):
        return serve(input, kernel, up, down, pad, device)

    return _upfirdn2d_replacement(upfirdn2d)


def _upfirdn2d_gain(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """Replace alias-free-gan-pytorch's upfirdn2d, which takes separable filters, a flag and a gain."""
    theirs = module.upfirdn2d

    def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0), flip_filter=False, gain=1):
        if not supports(input, kernel) or kernel.requires_grad:
            return theirs(input, kernel, up, down, pad, flip_filter, gain)
        pad = (*pad, *pad) if len(pad) == 2 else tuple(pad)
        input = input.contiguous()
        return functional.upfirdn2d(input, kernel, _pair(up), _pair(down), pad, bool(flip_filter), float(gain))

    return _upfirdn2d_replacement(upfirdn2d)


def _upfirdn2d_serving(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function behind all signatures of upfirdn2d, for a module whose own function is ``theirs``."""
    # Most forks use the first two numbers of a padding, whatever its length; forks that call len() on it accept four.
    reads_four = "len" in _code(theirs, "co_names")

    def serve(input, kernel, up, down, pad, *more):  # ``more`` matters to theirs alone: it selects one of its kernels
        if not supports(input, kernel) or kernel.requires_grad:  # on CPU theirs computes a gradient of the kernel
            return theirs(input, kernel, up, down, pad, *more)
        pad = tuple(pad) if reads_four and len(pad) == 4 else (*pad[:2], *pad[:2])
        return functional.upfirdn2d(input.contiguous(), kernel, _pair(up), _pair(down), pad)

    return serve


def _upfirdn2d_replacement(function: Callable[..., Any]) -> Mapping[str, Replacement]:
    return {"upfirdn2d": Replacement(function, "posgan_fast.functional.upfirdn2d")}


def _fused_act(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _fused_leaky_relu_serving(module.fused_leaky_relu)

    def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
        return serve(input, bias, negative_slope, scale)

    return _fused_act_replacement(fused_leaky_relu)


def _fused_act_inputs(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _fused_leaky_relu_serving(module.fused_leaky_relu)

    def fused_leaky_relu(inputs, bias=None, negative_slope=0.2, scale=2**0.5):
        return serve(inputs, bias, negative_slope, scale)

    return _fused_act_replacement(fused_leaky_relu)


def _fused_act_device(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    serve = _fused_leaky_relu_serving(module.fused_leaky_relu)

    def fused_leaky_relu(input, bias, negative_slope=0.2, scale=2**0.5, device="cpu"):
        return serve(input, bias, negative_slope, scale, device)

    return _fused_act_replacement(fused_leaky_relu)


def _fused_act_trace_model(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.fused_leaky_relu
    serve = _fused_leaky_relu_serving(theirs)

    def fused_leaky_relu(input, bias, negative_slope=0.2, scale=2**0.5, trace_model=False):
        if trace_model:  # asks for plain torch ops
            return theirs(input, bias, negative_slope, scale, trace_model)
        return serve(input, bias, negative_slope, scale, trace_model)

    return _fused_act_replacement(fused_leaky_relu)


def _fused_leaky_relu_serving(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function behind all signatures of fused_leaky_relu, for a module whose own function is ``theirs``."""
    # On CPU rosinality ignores negative_slope and uses 0.2. So do we, so that models give the same results as before.
    # Forks that corrected this, and forks without a CPU path, do not have both constants.
    constants, names = _code(theirs, "co_consts"), _code(theirs, "co_names")
    cpu_slope = 0.2 if "cpu" in constants and 0.2 in constants else None
    without_cpu = "apply" in names and "cpu" not in constants  # psp, e4e, basicsr: compiled code only

    def serve(input, bias, negative_slope, scale, *more):
        if transformed() and without_cpu and input.device.type == "cpu":
            return plain_leaky_relu(input, bias, negative_slope, scale)
        if not supports(input, bias) or not is_channel_bias(input, bias):
            return theirs(input, bias, negative_slope, scale, *more)
        # StyleCLIP passes [batch, layer, channel], channels last; where the bias fits both axes, theirs must decide.
        if not without_cpu and input.ndim == 3 and input.shape[1] == input.shape[2]:
            return theirs(input, bias, negative_slope, scale, *more)
        on_cpu = input.device.type == "cpu"
        slope = cpu_slope if on_cpu and cpu_slope is not None else float(negative_slope)
        input, bias = promote(input if on_cpu else input.contiguous(), bias)
        return functional.bias_act(input, bias, 1, "lrelu", slope, float(scale))

    return serve


def _fused_act_replacement(function: Callable[..., Any]) -> Mapping[str, Replacement]:
    return {"fused_leaky_relu": Replacement(function, "posgan_fast.functional.bias_act")}


def _grid_sample(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """Replace the grid_sample of ``--augment``, whose backward current torch cannot run."""

    def grid_sample(input, grid):
        return gradfix.grid_sample(input, grid)

    return {"grid_sample": Replacement(grid_sample, GRID_SAMPLE)}


def _conv_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """Replace torch-conv-gradfix's convolutions: methods of a class, conv_transpose2d with dilation before groups."""
    holder = module.ConvGradFix
    conv2d, transposed = gradfix.convolutions(lambda: holder.enabled.enabled, lambda: holder._no_weight_grad)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
        return transposed(input, weight, bias, stride, padding, output_padding, groups, dilation)

    return convolution_replacements(conv2d, conv_transpose2d, "ConvGradFix.")


def _cpp_extension(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.load

    def load(name, sources, *args, **kwargs):
        plugin = plugins.answer(name, sources)
        report.add(PluginRequest(name, "torch.utils.cpp_extension.load", plugin is not None))
        return theirs(name, sources, *args, **kwargs) if plugin is None else plugin

    return {"load": Replacement(load, "posgan_fast.integrations.plugins.answer")}


def _code(function: Callable[..., Any], field: str) -> tuple[Any, ...]:
    """A field of a function's code object; empty for callables that have none."""
    return getattr(getattr(function, "__code__", None), field, ())


def _pair(factor: int | Iterable[int]) -> int | tuple[int, ...]:
    return tuple(factor) if isinstance(factor, Iterable) else factor


_GRADFIX_CLASS = {
    "ConvGradFix.conv2d": CONV2D,
    "ConvGradFix.conv_transpose2d": (*CONV_TRANSPOSE2D[:-2], "dilation", "groups"),
}
_UPFIRDN2D = ("input", "kernel", "up", "down", "pad")
_FUSED_ACT = ("input", "bias", "negative_slope", "scale")
_GRID_SAMPLE = {
    "GridSampleForward.forward": ("ctx", "input", "grid"),
    "GridSampleBackward.forward": ("ctx", "grad_output", "input", "grid"),
}

TARGETS = (
    Target("rosinality", "upfirdn2d", {"upfirdn2d": _UPFIRDN2D}, _upfirdn2d),
    Target("rosinality", "upfirdn2d", {"upfirdn2d": ("inputs", *_UPFIRDN2D[1:])}, _upfirdn2d_inputs),
    Target("rosinality", "upfirdn2d", {"upfirdn2d": (*_UPFIRDN2D, "device")}, _upfirdn2d_device),
    Target("rosinality", "upfirdn2d", {"upfirdn2d": (*_UPFIRDN2D, "flip_filter", "gain")}, _upfirdn2d_gain),
    Target("rosinality", "fused_act", {"fused_leaky_relu": _FUSED_ACT}, _fused_act),
    Target("rosinality", "fused_act", {"fused_leaky_relu": ("inputs", *_FUSED_ACT[1:])}, _fused_act_inputs),
    Target("rosinality", "fused_act", {"fused_leaky_relu": (*_FUSED_ACT, "device")}, _fused_act_device),
    Target("rosinality", "fused_act", {"fused_leaky_relu": (*_FUSED_ACT, "trace_model")}, _fused_act_trace_model),
    Target("rosinality", "op.conv2d_gradfix", **CONV2D_GRADFIX),
    Target("rosinality", "non_leaking", _GRID_SAMPLE, _grid_sample, ("grid_sample",)),
    Target("rosinality", "simple_augment", _GRID_SAMPLE, _grid_sample, ("grid_sample",)),
    Target(
        "rosinality",
        "conv_gradfix",
        _GRADFIX_CLASS,
        _conv_gradfix,
        ("ConvGradFix.enabled.enabled", "ConvGradFix._no_weight_grad"),
    ),
    Target("rosinality", "torch.utils.cpp_extension", {"load": ("name", "sources", MORE)}, _cpp_extension),
)
