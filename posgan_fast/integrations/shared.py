"""What the tables of more than one family use."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from ..ops import _check
from . import gradfix
from .engine import Replacement, Report

CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONV_TRANSPOSE2D = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def takes(x: Any) -> bool:
    """Whether the ops here serve ``x``. A traced graph is left in plain torch ops, for whoever loads or exports it."""
    return (
        isinstance(x, torch.Tensor)
        and x.dtype in _check.FLOATS
        and x.device.type in ("cpu", "cuda")
        and not torch.jit.is_tracing()
    )


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


CONV2D_GRADFIX: dict[str, Any] = {
    "functions": {"conv2d": CONV2D, "conv_transpose2d": CONV_TRANSPOSE2D},
    "build": conv2d_gradfix,
    "attributes": ("enabled", "weight_gradients_disabled", "no_weight_gradients"),
}
