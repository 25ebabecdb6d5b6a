"""Runs two style layers in succession; on CUDA the first one applies the styles of the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ops.modulated_conv2d.pair import modulated_conv2d_pair
from .style import StyleConv
from .unchanged import is_unchanged


def run_pair(
    layers: Sequence[Any], x: torch.Tensor, ws: Sequence[torch.Tensor], given: Sequence[dict[str, Any]] = ({}, {})
) -> torch.Tensor:
    """Compute ``second(first(x, ws[0], **given[0]), ws[1], **given[1])`` for two :class:`posgan_fast.nn.StyleConv`.

    In inference of several samples on CUDA the first layer multiplies its result by the styles of the second, which
    then needs no pass for it (:mod:`posgan_fast.ops.modulated_conv2d.pair`). Everywhere else the modules are called.
    """
    first, second = layers
    infers = x.shape[0] > 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not infers or not all(is_unchanged(layer, StyleConv) and layer.up_after_conv is None for layer in layers):
        return second(first(x, ws[0], **given[0]), ws[1], **given[1])
    return modulated_conv2d_pair(
        first.arguments(x, ws[0], **given[0]), lambda y: second.arguments(y, ws[1], **given[1])
    )
