"""What the tables of more than one family use."""

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
from .engine import Replacement, Report

CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONV_TRANSPOSE2D = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
GRID_SAMPLE = "torch.nn.functional.grid_sample, twice differentiable"


def bias_act(table: Mapping[str, Any], x, b, dim, act, alpha, gain, clamp):
    """NVlabs' bias_act; ``table`` is the module's own, where a fork may have changed a default."""
    row = table.get(act)
    alpha = float(getattr(row, "def_alpha", ACTIVATIONS[act].alpha) if alpha is None else alpha)
    gain = float(getattr(row, "def_gain", ACTIVATIONS[act].gain) if gain is None else gain)
    clamp = None if clamp is None or math.isinf(clamp) else float(clamp)
    return functional.bias_act(*promoted(x, b), dim, act, alpha, gain, clamp)


def fits_channels(x: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is None or (x.ndim > 1 and b.shape == x.shape[1:2])


def plain_leaky_relu(input, bias, negative_slope, scale):
    """Compute the fused op in plain torch, for modules that have no such path of their own."""
    if bias is not None:
        input = input + bias.reshape(1, -1, *[1] * (input.ndim - 2))
    return F.leaky_relu(input, negative_slope) * scale


def promoted(x: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Plain torch adds a bias of another dtype by promotion; the ops here want one dtype."""
    if b is None or b.dtype == x.dtype:
        return x, b
    dtype = torch.promote_types(x.dtype, b.dtype)
    return x.to(dtype), b.to(dtype)


def convolutions(conv2d: Any, conv_transpose2d: Any, prefix: str = "") -> Mapping[str, Replacement]:
    return {
        f"{prefix}conv2d": Replacement(conv2d, "torch.nn.functional.conv2d, weight gated"),
        f"{prefix}conv_transpose2d": Replacement(
            conv_transpose2d, "torch.nn.functional.conv_transpose2d, weight gated"
        ),
    }


def conv2d_gradfix(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    """The module's ``enabled`` and ``weight_gradients_disabled`` stay where they are and are read at each use."""
    flags = vars(module)
    return convolutions(*gradfix.convolutions(lambda: flags["enabled"], lambda: flags["weight_gradients_disabled"]))


GRADFIX_FLAGS = ("enabled", "weight_gradients_disabled", "no_weight_gradients")
CONV2D_GRADFIX: dict[str, Any] = {
    "functions": {"conv2d": CONV2D, "conv_transpose2d": CONV_TRANSPOSE2D},
    "build": conv2d_gradfix,
    "attributes": GRADFIX_FLAGS,
}
