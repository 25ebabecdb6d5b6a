"""Signatures and replacements that the tables of several families use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional
from ..ops.bias_act import ACTIVATIONS
from . import gradfix
from .engine import Replacement
from .reports import Report

CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONV_TRANSPOSE2D = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
GRID_SAMPLE = "torch.nn.functional.grid_sample, twice differentiable"


def bias_act(table: Mapping[str, Any], x, b, dim, act, alpha, gain, clamp):
    """Serve NVlabs' bias_act. ``table`` is the module's own table of activations, since forks change its defaults."""
    row = table.get(act)
    alpha = float(getattr(row, "def_alpha", ACTIVATIONS[act].alpha) if alpha is None else alpha)
    gain = float(getattr(row, "def_gain", ACTIVATIONS[act].gain) if gain is None else gain)
    clamp = None if clamp is None or math.isinf(clamp) else float(clamp)
    return functional.bias_act(*promote(x, b), dim, act, alpha, gain, clamp)


def is_channel_bias(x: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Return whether ``b`` is None or has one element for each channel of ``x``, [N, C, ...]."""
    return b is None or (x.ndim > 1 and b.shape == x.shape[1:2])


def plain_leaky_relu(input, bias, negative_slope, scale):
    """Compute fused_leaky_relu in plain torch, for modules that have no such path of their own."""
    if bias is not None:
        input = input + bias.reshape(1, -1, *[1] * (input.ndim - 2))
    return F.leaky_relu(input, negative_slope) * scale


def promote(x: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cast both to one dtype, as plain torch does when it adds them; this library's ops take one dtype only."""
    if b is None or b.dtype == x.dtype:
        return x, b
    dtype = torch.promote_types(x.dtype, b.dtype)
    return x.to(dtype), b.to(dtype)


def convolution_replacements(conv2d: Any, conv_transpose2d: Any, prefix: str = "") -> Mapping[str, Replacement]:
    """Replace both convolutions of a module or, with the prefix "Class.", of a class in it."""
    return {
        f"{prefix}conv2d": Replacement(conv2d, "torch.nn.functional.conv2d, weight gated"),
        f"{prefix}conv_transpose2d": Replacement(
            conv_transpose2d, "torch.nn.functional.conv_transpose2d, weight gated"
        ),
    }


def conv2d_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """Replace the convolutions of a gradfix module; the new ones read the module's flags at each call."""
    flags = vars(module)
    conv2d, transposed = gradfix.convolutions(lambda: flags["enabled"], lambda: flags["weight_gradients_disabled"])
    return convolution_replacements(conv2d, transposed)


GRADFIX_FLAGS = ("enabled", "weight_gradients_disabled", "no_weight_gradients")
CONV2D_GRADFIX: dict[str, Any] = {
    "functions": {"conv2d": CONV2D, "conv_transpose2d": CONV_TRANSPOSE2D},
    "build": conv2d_gradfix,
    "attributes": GRADFIX_FLAGS,
}
