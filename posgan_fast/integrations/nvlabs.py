"""NVlabs stylegan2-ada-pytorch, stylegan3 and their forks: ``torch_utils.ops.*`` and ``torch_utils.custom_ops``.

``impl="ref"`` stays the module's own plain-torch path, and so does any call these ops do not take; everything else
comes here on CPU and GPU alike. ``filter2d``, ``upsample2d`` and ``downsample2d`` call ``upfirdn2d`` through their
module and follow. ``filtered_lrelu`` is not replaced, and its plugin request passes through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import torch

from .. import functional
from ..ops.bias_act import ACTIVATIONS
from . import gradfix, plugins
from .engine import MORE, PluginRequest, Replacement, Report, Target
from .shared import CONV2D_GRADFIX, promoted, takes


def _upfirdn2d(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.upfirdn2d

    def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        if impl != "cuda" or not takes(x) or (f is not None and f.requires_grad):
            return theirs(x, f, up, down, padding, flip_filter, gain, impl)
        return functional.upfirdn2d(x, f, up, down, padding, bool(flip_filter), float(gain))

    return {"upfirdn2d": Replacement(upfirdn2d, "posgan_fast.functional.upfirdn2d")}


def _bias_act(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module.bias_act
    table = getattr(module, "activation_funcs", {})  # a fork may have changed a default, or added an activation

    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        ours = impl == "cuda" and act in ACTIVATIONS and takes(x) and (b is None or takes(b))
        if not ours:
            return theirs(x, b, dim, act, alpha, gain, clamp, impl)
        row = table.get(act)
        alpha = float(getattr(row, "def_alpha", ACTIVATIONS[act].alpha) if alpha is None else alpha)
        gain = float(getattr(row, "def_gain", ACTIVATIONS[act].gain) if gain is None else gain)
        clamp = None if clamp is None or math.isinf(clamp) else float(clamp)
        return functional.bias_act(*promoted(x, b), dim, act, alpha, gain, clamp)

    return {"bias_act": Replacement(bias_act, "posgan_fast.functional.bias_act")}


def _grid_sample_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def grid_sample(input, grid):
        return gradfix.grid_sample(input, grid)

    return {"grid_sample": Replacement(grid_sample, "torch.nn.functional.grid_sample, twice differentiable")}


def _fma(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    def fma(a, b, c):  # => a * b + c
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

TARGETS = (
    Target("nvlabs", "upfirdn2d", {"upfirdn2d": _UPFIRDN2D}, _upfirdn2d),
    Target("nvlabs", "bias_act", {"bias_act": _BIAS_ACT}, _bias_act),
    Target("nvlabs", "ops.conv2d_gradfix", **CONV2D_GRADFIX),
    Target("nvlabs", "grid_sample_gradfix", {"grid_sample": ("input", "grid")}, _grid_sample_gradfix),
    Target("nvlabs", "ops.fma", {"fma": ("a", "b", "c")}, _fma),
    Target("nvlabs", "custom_ops", {"get_plugin": ("module_name", "sources", MORE)}, _custom_ops),
)
