"""Two style layers in succession, for devices on which memory is the wall."""

from __future__ import annotations

from typing import Any

import torch

from ..ops.modulated_conv2d.pair import modulated_conv2d_pair
from .style import StyleConv
from .unchanged import is_unchanged


def run_pair(
    first: StyleConv, second: StyleConv, x: torch.Tensor, to_first: dict[str, Any], to_second: dict[str, Any]
) -> torch.Tensor:
    """Compute ``second(first(x, **to_first), **to_second)``.

    In inference of several samples on CUDA the first layer multiplies its result by the styles of the second, which
    then needs no pass for it (:mod:`posgan_fast.ops.modulated_conv2d.pair`).
    """
    if not all(is_unchanged(layer, StyleConv) and not layer.up_after_conv for layer in (first, second)):
        return second(first(x, **to_first), **to_second)
    return modulated_conv2d_pair(first.arguments(x, **to_first), lambda y: second.arguments(y, **to_second))
