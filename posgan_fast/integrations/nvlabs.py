"""The table of NVlabs stylegan2-ada-pytorch, stylegan3 and forks: ``torch_utils.ops.*``, ``torch_utils.custom_ops``.

The module's own code serves calls with ``impl="ref"`` and calls that this library's ops do not support; for calls that
torch records or transforms, it is told to use its plain-torch path. All other calls come here, on CPU and GPU alike.
``filter2d``, ``upsample2d`` and ``downsample2d`` need no row: they call ``upfirdn2d`` by its global name, which is
replaced. ``filtered_lrelu`` is not replaced, and requests for its plugin are passed on.
In PadInv and Hammer (``third_party.stylegan*_official_ops``) every signature ends with ``impl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch.nn import functional as F

from .. import functional
from ..ops.bias_act import ACTIVATIONS
from . import gradfix, plugins, shared
from .calls import supports, transformed
from .engine import MORE, Replacement, Target
from .reports import PluginRequest, Report
from .shared import CONV2D, CONV2D_GRADFIX, CONV_TRANSPOSE2D


def _upfirdn2d(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.upfirdn2d

    def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        if impl != "cuda" or not supports(x, f) or (f is not None and f.requires_grad):
            return theirs(x, f, up, down, padding, flip_filter, gain, "ref" if transformed() else impl)
        return functional.upfirdn2d(x, f, up, down, padding, bool(flip_filter), float(gain))

    return {"upfirdn2d": Replacement(upfirdn2d, "posgan_fast.functional.upfirdn2d")}


def _bias_act(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.bias_act
    table = getattr(module, "activation_funcs", {})

    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        if impl != "cuda" or act not in ACTIVATIONS or not supports(x, b):
            return theirs(x, b, dim, act, alpha, gain, clamp, "ref" if transformed() else impl)
        return shared.bias_act(table, x, b, dim, act, alpha, gain, clamp)

    return {"bias_act": Replacement(bias_act, "posgan_fast.functional.bias_act")}


def _conv2d_gradfix_impl(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """Replace PadInv's convolutions, in which only ``impl="cuda"`` honours ``no_weight_gradients``."""
    ours = shared.conv2d_gradfix(module, report)
    gated, gated_transposed = ours["conv2d"].function, ours["conv_transpose2d"].function

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, impl="cuda"):
        op = gated if impl == "cuda" else F.conv2d
        return op(input, weight, bias, stride, padding, dilation, groups)

    def conv_transpose2d(
        input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, impl="cuda"
    ):
        op = gated_transposed if impl == "cuda" else F.conv_transpose2d
        return op(input, weight, bias, stride, padding, output_padding, groups, dilation)

    return shared.convolution_replacements(conv2d, conv_transpose2d)


def _grid_sample_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def grid_sample(input, grid):
        return gradfix.grid_sample(input, grid)

    return {"grid_sample": Replacement(grid_sample, shared.GRID_SAMPLE)}


def _grid_sample_gradfix_impl(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def grid_sample(input, grid, impl="cuda"):  # other values of impl need no second derivative; it does no harm
        return gradfix.grid_sample(input, grid)

    return {"grid_sample": Replacement(grid_sample, shared.GRID_SAMPLE)}


def _fma(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def fma(a, b, c):  # => a * b + c
        return torch.addcmul(c, a, b)

    return {"fma": Replacement(fma, "torch.addcmul")}


def _fma_impl(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def fma(a, b, c, impl="cuda"):
        return torch.addcmul(c, a, b)

    return {"fma": Replacement(fma, "torch.addcmul")}


def _custom_ops(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.get_plugin

    def get_plugin(module_name, sources, *args, **kwargs):
        plugin = plugins.answer(module_name, sources)
        report.add(PluginRequest(module_name, f"{module.__name__}.get_plugin", plugin is not None))
        return theirs(module_name, sources, *args, **kwargs) if plugin is None else plugin

    return {"get_plugin": Replacement(get_plugin, "posgan_fast.integrations.plugins.answer")}


_UPFIRDN2D = ("x", "f", "up", "down", "padding", "flip_filter", "gain", "impl")
_BIAS_ACT = ("x", "b", "dim", "act", "alpha", "gain", "clamp", "impl")
_CONVOLUTIONS_IMPL = {"conv2d": (*CONV2D, "impl"), "conv_transpose2d": (*CONV_TRANSPOSE2D, "impl")}

TARGETS = (
    Target("nvlabs", "upfirdn2d", {"upfirdn2d": _UPFIRDN2D}, _upfirdn2d),
    Target("nvlabs", "bias_act", {"bias_act": _BIAS_ACT}, _bias_act),
    Target("nvlabs", "ops.conv2d_gradfix", **CONV2D_GRADFIX),
    Target("nvlabs", "ops.conv2d_gradfix", _CONVOLUTIONS_IMPL, _conv2d_gradfix_impl, shared.GRADFIX_FLAGS),
    Target("nvlabs", "grid_sample_gradfix", {"grid_sample": ("input", "grid")}, _grid_sample_gradfix),
    Target("nvlabs", "grid_sample_gradfix", {"grid_sample": ("input", "grid", "impl")}, _grid_sample_gradfix_impl),
    Target("nvlabs", "ops.fma", {"fma": ("a", "b", "c")}, _fma),
    Target("nvlabs", "ops.fma", {"fma": ("a", "b", "c", "impl")}, _fma_impl),
    Target("nvlabs", "custom_ops", {"get_plugin": ("module_name", "sources", MORE)}, _custom_ops),
)
