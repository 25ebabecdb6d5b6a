"""Stand-ins for the CUDA plugins that the families compile: modules with the same functions and argument order.

The names of the plugin and of its source files identify a request; all others are passed on. Like the compiled
functions, these compute values only: their callers build the derivatives out of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from .. import backend, functional
from ..ops import bias_act as _bias_act

_NAMES = {row.index: name for name, row in _bias_act.ACTIVATIONS.items()}


def answer(name: str, sources: str | Sequence[str]) -> ModuleType | None:
    """Return the stand-in for plugin ``name`` made of ``sources``; None if the request is not one of the families'.

    Example:
        >>> plugin = answer("upfirdn2d_plugin", ["ops/upfirdn2d.cpp", "ops/upfirdn2d.cu"])
        >>> plugin.upfirdn2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1), 2, 2, 1, 1, 0, 0, 0, 0, False, 4.0).shape
        torch.Size([1, 1, 4, 4])
        >>> answer("upfirdn2d_plugin", ["others.cu"]) is None
        True
    """
    files = {os.path.basename(s) for s in ([sources] if isinstance(sources, str) else sources)}
    if name not in _KNOWN or files != _KNOWN[name][0]:
        return None
    return _stand_in(name)


def bias_act_plugin(x, b, xref, yref, dy, grad, dim, act, alpha, gain, clamp):
    """NVlabs' ``bias_act_plugin.bias_act``: the value or, by ``grad``, a derivative. An empty tensor means none."""
    act, b = _NAMES[act], _given(b)
    arguments = (dim, act, float(alpha), float(gain))
    clamp = float(clamp)
    if grad == 0:
        return torch.ops.posgan_fast.bias_act(x, b, *arguments, clamp, _backend(x))
    if grad == 1 and act == "linear":  # NVlabs saves no tensor for it, so its gradient ignores the clamp
        return torch.ops.posgan_fast.bias_act(x, None, *arguments, -1.0, _backend(x))
    if grad == 1 and act in ("relu", "lrelu"):
        if act == "lrelu" and alpha < 0:
            raise ValueError(f"alpha: expected a slope >= 0, since the plugin is given the output only, got {alpha}")
        return torch.ops.posgan_fast.bias_act_grad(x, yref, None, *arguments, clamp, _backend(x))
    if grad == 1:
        return torch.ops.posgan_fast.bias_act_grad(x, xref, b, *arguments, clamp, _backend(x))
    return torch.ops.posgan_fast.bias_act_grad2(x, dy, xref, b, *arguments, clamp, _backend(x))


def upfirdn2d_plugin(x, f, upx, upy, downx, downy, padx0, padx1, pady0, pady1, flip, gain):
    """NVlabs' ``upfirdn2d_plugin.upfirdn2d``: x [N, C, H, W], f [fh, fw]."""
    pad = (padx0, padx1, pady0, pady1)
    return functional.upfirdn2d(x, f, (upx, upy), (downx, downy), pad, flip_filter=bool(flip), gain=float(gain))


def fused_bias_act(input, bias, refer, act, grad, alpha, scale):
    """rosinality's ``fused.fused_bias_act``: act 1 (linear) or 3 (leaky ReLU).

    The first derivative takes the slope from the sign of ``refer``, the forward's output; the second is zero.
    """
    bias = _given(bias)
    if grad == 2:
        return torch.zeros_like(input)
    if grad == 0 or act != 3:
        name = "lrelu" if act == 3 else "linear"
        return torch.ops.posgan_fast.bias_act(input, bias, 1, name, alpha, scale, -1.0, _backend(input))
    if bias is not None:  # in the double backward, the gradient of the bias
        input = input + bias.reshape(1, -1, *[1] * (input.ndim - 2))
    return torch.ops.posgan_fast.bias_act_grad(
        input, refer, None, 1, "lrelu", float(alpha), float(scale), -1.0, _backend(input)
    )


def upfirdn2d_minor_last(input, kernel, *scaling_and_padding):
    """rosinality's ``upfirdn2d.upfirdn2d``: input [M, H, W, minor].

    alias-free-gan's plugin has the same name. Its calls have two arguments more, a flag and a gain, and its input is
    [N, C, H, W].
    """
    if len(scaling_and_padding) == 10:
        return upfirdn2d_plugin(input, kernel, *scaling_and_padding)
    out = upfirdn2d_channels_first(input.permute(0, 3, 1, 2), kernel, *scaling_and_padding)
    return out.permute(0, 2, 3, 1).contiguous()


def upfirdn2d_channels_first(input, kernel, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1):
    """stylegan2_torch's ``upfirdn2d_.upfirdn2d``: input [M, 1, H, W]."""
    pad = (pad_x0, pad_x1, pad_y0, pad_y1)
    return functional.upfirdn2d(input, kernel, (up_x, up_y), (down_x, down_y), pad)


_ROSINALITY_UPFIRDN2D = {"upfirdn2d.cpp", "upfirdn2d_kernel.cu"}
# By plugin: names of its source files, name of its function, our function.
_KNOWN: dict[str, tuple[set[str], str, Callable[..., torch.Tensor]]] = {
    "bias_act_plugin": ({"bias_act.cpp", "bias_act.cu"}, "bias_act", bias_act_plugin),
    "upfirdn2d_plugin": ({"upfirdn2d.cpp", "upfirdn2d.cu"}, "upfirdn2d", upfirdn2d_plugin),
    "fused": ({"fused_bias_act.cpp", "fused_bias_act_kernel.cu"}, "fused_bias_act", fused_bias_act),
    "upfirdn2d": (_ROSINALITY_UPFIRDN2D, "upfirdn2d", upfirdn2d_minor_last),
    "upfirdn2d_": (_ROSINALITY_UPFIRDN2D, "upfirdn2d", upfirdn2d_channels_first),
}


@functools.cache
def _stand_in(name: str) -> ModuleType:
    _, function_name, function = _KNOWN[name]
    module = ModuleType(name, f"Stand-in of posgan_fast for a compiled plugin: {function_name}.")
    module.__dict__[function_name] = torch.no_grad()(function)
    return module


def _given(t: torch.Tensor) -> torch.Tensor | None:
    return t if t.numel() else None


def _backend(x: torch.Tensor) -> Any:
    return backend.resolve(_bias_act.NAME, _bias_act.IMPLS, x, None)
